"""The names of steps, and those that the runtime keeps for steps of its own."""

from collections.abc import Mapping
from typing import Any, Final

from runtime.errors import InvalidValue

UNDO: Final = "undo"
"""The step that says what a delivery has died of, whose other steps are undone now."""
UNDONE: Final = "undone"
"""The steps that name those that were undone before a redrive, and are done again."""
NO_RETURN: Final = ("no_return", "", 1)
"""The step after which no other one is undone."""

MAX_NAME_BYTES: Final = 255
# A message that ends a wait is found after the handler has come to it, so a wait has a place of its own among steps.
WAIT_PREFIX: Final = "wait."
UNDO_PREFIX: Final = "undo."


def label_of(step: Mapping[str, Any]) -> str:
    """Return a step as commands take it: its name, its key in brackets, and its occurrence if that is not the first.

    `runtime.label_of` writes it the same.

    Args:
        step: its name, key and occurrence.
    """
    key = f" [{step['key']}]" if step["key"] else ""
    return f"{step['name']}{key}" + (f" ({step['occurrence']})" if step["occurrence"] > 1 else "")


def check_step_name(name: object, key: object) -> None:
    """Check the name and the key that a handler gives to a step.

    Raises:
        InvalidValue: one of them is no text of a bearable length, or the runtime's own.
    """
    for what, text in (("name", name), ("key", key)):
        if not isinstance(text, str) or "\0" in text or len(text.encode(errors="replace")) > MAX_NAME_BYTES:
            raise InvalidValue(
                f"The {what} of a step is a text of at most {MAX_NAME_BYTES} bytes, not {text!r:.100}."
            )
    if not name:
        raise InvalidValue('A step needs a name: `await context.step("charge", charge, order)`.')
    if str(name).startswith((WAIT_PREFIX, UNDO_PREFIX)) or name in (UNDO, UNDONE, NO_RETURN[0]):
        raise InvalidValue(f"The runtime itself keeps steps named so, for waits and undos: {name!r:.100}.")
