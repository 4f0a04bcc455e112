"""Mistakes of a handler's code that Python reports in words of its own, told with their cures."""

import inspect
import re
from collections.abc import Iterator
from typing import Final

from runtime.agent.batch import BatchContext
from runtime.agent.services import AskOptions
from runtime.errors import NotAwaited, WrongCall, did_you_mean
from runtime.tracebacks import line_of, places_of, text_of

_AWAITED_NOTHING: Final = re.compile(r"\bawait\s+[\w.]*?(\w+\.(?:emit|broadcast|fail|answer))\(")
_WRONG_CALL: Final = re.compile(r"TypeError: (?:Batch)?Context\.([a-z]\w*)\(\) (.+)", re.DOTALL)
_UNEXPECTED: Final = re.compile(r"got an unexpected keyword argument '(\w+)'")


def recognized(error: BaseException) -> NotAwaited | WrongCall | None:
    """Return a mistake in plain words with the traceback of Python's error; None for any other error."""
    if type(error) is not TypeError:
        return None
    mistake = _awaited_nothing(error) or _called_wrongly(error)
    return None if mistake is None else mistake.with_traceback(error.__traceback__)


def _awaited_nothing(error: TypeError) -> NotAwaited | None:
    """Recognize `await context.emit(…)`: nothing comes back that could be awaited."""
    if "await" not in (text := text_of(error)) or "NoneType" not in text:
        return None
    found = _AWAITED_NOTHING.search(line_of(error))
    if found is None:
        return None
    name = found[1]
    method = name.rpartition(".")[2]
    return NotAwaited(
        f"{method} is not awaited: it returns at once. Write `{name}(…)` without `await`{_at(error)}"
    )


def _called_wrongly(error: TypeError) -> WrongCall | None:
    """Recognize a call of a method of the context with arguments that it does not take."""
    found = _WRONG_CALL.fullmatch(text_of(error))
    if found is None:
        return None
    method, complaint = found[1], found[2]
    if unexpected := _UNEXPECTED.match(complaint):
        name = unexpected[1]
        complaint = f"takes no {name}=…{did_you_mean(name, _options(method))}"
    return WrongCall(f"context.{method}(…) {complaint}{_at(error)}")


def _options(method: str) -> Iterator[str]:
    """Yield the names of the arguments of a method of the context."""
    for parameter in inspect.signature(getattr(BatchContext, method)).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            yield from AskOptions.__optional_keys__
        elif parameter.name != "self":
            yield parameter.name


def _at(error: BaseException) -> str:
    places = places_of(error)
    return f" ({places[0]})" if places else ""
