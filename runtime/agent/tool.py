"""Handlers as tools of language models: what a declaration says about one.

The database keeps it with the subscription, so that a server which has none of the agents' code can list the tools.
"""

import inspect
import re
from collections.abc import Iterable
from typing import Any, Final

from runtime.agent.handler import Handler
from runtime.agent.handler_schemas import returned_type, taken_type
from runtime.encoding.json import encode
from runtime.errors import DeclarationError
from runtime.keys import is_exact

# What the providers of language models accept as a name.
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Tools of the server's own begin so.
RESERVED: Final = "stream_"
_MAX_DESCRIPTION: Final = 4_000
# A model reads the schemas of all tools in each conversation.
_MAX_BYTES: Final = 65_536


def check_tool(name: object, patterns: tuple[str, ...]) -> str | None:
    """Return the name of a handler's tool, or None.

    Args:
        name: as the user gave it.
        patterns: those of the handler.

    Raises:
        DeclarationError: it is no name of a tool, or the handler listens to no key that could be asked under.
    """
    if name is None:
        return None
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise DeclarationError(
            f"@agent.on(tool=…) is 1 to 64 letters, digits, '_' and '-', such as 'refund_order', not {name!r:.80}."
        )
    if name.startswith(RESERVED):
        raise DeclarationError(
            f"@agent.on(tool={name!r}): names that begin with {RESERVED!r} are those of the server's own tools."
        )
    if _key_of(patterns) is None:
        raise DeclarationError(
            f"@agent.on(tool={name!r}) needs a key without wildcards beside its patterns: a call asks under it."
        )
    return name


def check_tools(handlers: Iterable[Handler]) -> None:
    """Check the tools of all handlers of a worker.

    Raises:
        DeclarationError: two have the same name, or the schemas of one are too large.
    """
    names: dict[str, str] = {}
    for handler in handlers:
        if (tool := tool_of(handler)) is None:
            continue
        if (other := names.setdefault(tool["name"], handler.name)) != handler.name:
            raise DeclarationError(
                f"{other} and {handler.name} are both the tool {tool['name']!r}. Rename one of them."
            )
        if (size := len(encode(tool))) > _MAX_BYTES:
            raise DeclarationError(
                f"The schemas of {handler.name}, as the tool {tool['name']!r}, take {size:,} bytes, and {_MAX_BYTES:,} "
                "at most can be given to a language model: annotate it with smaller models."
            )


def tool_of(handler: Handler) -> dict[str, Any] | None:
    """Return what the database keeps of a handler's tool; None if it is none.

    Returns:
        Its `name` and `description`, the `key` that a call asks under, and the JSON schemas of what it takes and
        returns, `input` and `output`, None where that is any value.
    """
    if handler.tool is None:
        return None
    about = inspect.getdoc(handler.function) or f"Asks {handler.name}."
    taken, returned = taken_type(handler), returned_type(handler)
    return {
        "name": handler.tool,
        "key": _key_of(handler.patterns),
        "description": about[:_MAX_DESCRIPTION],
        "input": None if taken is None else taken.json_schema(),
        "output": None if returned is None else returned.json_schema(mode="serialization"),
    }


def _key_of(patterns: tuple[str, ...]) -> str | None:
    """Return the first of the patterns that is a key."""
    return next((each for each in patterns if is_exact(each)), None)
