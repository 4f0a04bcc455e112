"""Does a declaration make sense? Each part of one is checked when a module is imported, and said with its cure."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal

from runtime.agent.batch import Batching
from runtime.agent.callables import declared_at, is_async, place_of
from runtime.agent.retry import LONGEST_SECONDS, Retry, is_number, shown
from runtime.agent.schedule import MISSED, Missed
from runtime.errors import DeclarationError, InvalidKey
from runtime.keys import check_key, check_pattern

MAX_BATCH = 1000
MAX_CONCURRENCY = 100_000
MAX_WITHIN_SECONDS = 60
Start = Literal["latest", "earliest"]
Deliver = Literal["once", "each"]

# What needs a record of the subscription, and what to do instead of it.
_NOT_WITH_EACH = {
    "retry": "Nothing is kept that could be tried again: leave retry out, or leave deliver out.",
    "ordered": "Say concurrency=1 instead: then messages are handled one after another as they are read.",
    "dead_blocks": "There are no dead letters of what is not kept: leave it out.",
    "start": (
        "It hears what is written while it runs; to read what was written before, use "
        "stream.listen(pattern, since=…)."
    ),
    "batch": "What is heard is handled as it comes: leave batch out, or leave deliver out.",
    "rate": "What is heard is handled as it comes: leave rate out, or leave deliver out.",
    "concurrency_total": "Each process gets each message: say concurrency=… for one process, or leave deliver out.",
}
Lifespan = Callable[[], AbstractAsyncContextManager[Any]]
Middleware = Callable[[Any, Callable[[], Awaitable[Any]]], Awaitable[Any]]


def check_segment(name: object, what: str) -> str:
    """The name, if it is a single segment of a key."""
    try:
        if isinstance(name, str) and "." not in name:
            return check_key(name)
    except InvalidKey:
        pass
    raise DeclarationError(f"{what} is letters, digits, '_', ':' and '-', such as 'writer', not {name!r}.")


def _as_declaration(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Have a wrong key complained about as a wrong declaration."""

    @functools.wraps(check)
    def checked(given: Any) -> Any:
        try:
            return check(given)
        except InvalidKey as error:
            raise DeclarationError(f"@agent.on(…): {error}") from None

    return checked


@_as_declaration
def check_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns, each once."""
    if not patterns:
        raise DeclarationError('@agent.on(…) needs at least one pattern: @agent.on("task.output").')
    return tuple(dict.fromkeys(check_pattern(pattern) for pattern in patterns))


@_as_declaration
def check_emits(emits: str | None) -> str | None:
    """The key that is emitted under, or None."""
    return None if emits is None else check_key(emits)


@_as_declaration
def check_tick_key(key: str) -> str:
    """The key of a timer's ticks."""
    return check_key(key)


def check_retry(retry: object) -> Retry:
    """What happens after a failure."""
    if retry is None:
        return Retry()
    if not isinstance(retry, Retry):
        raise DeclarationError(f"@agent.on(retry=…) must be a Retry(attempts=3, …), not {retry!r}.")
    return retry


def check_concurrency(limit: object) -> int | None:
    """How many may run at once, or None."""
    if limit is None:
        return None
    if isinstance(limit, int) and not isinstance(limit, bool) and 1 <= limit <= MAX_CONCURRENCY:
        return limit
    raise DeclarationError(
        f"@agent.on(concurrency=…) must be a whole number of 1 or more, at most {MAX_CONCURRENCY:,}, "
        f"not {shown(limit)}."
    )


def check_dead_blocks(dead_blocks: bool, ordered: bool) -> bool:
    """Whether a dead letter holds up its key, which only an ordered one can."""
    if dead_blocks and not ordered:
        raise DeclarationError(
            "@agent.on(dead_blocks=True) needs ordered=True: without an order nothing waits."
        )
    return bool(dead_blocks)


def check_start(start: object) -> Start:
    """Where a new subscription begins."""
    if start == "latest" or start == "earliest":
        return start
    raise DeclarationError(f'@agent.on(start=…) must be "latest" or "earliest", not {start!r}.')


def check_deliver(options: Mapping[str, Any]) -> Deliver:
    """Return whether a message goes to one worker, or to each live process, which excludes some other options."""
    deliver = options.get("deliver", "once")
    if deliver == "once":
        return "once"
    if deliver != "each":
        raise DeclarationError(f'@agent.on(deliver=…) must be "once" or "each", not {deliver!r}.')
    for option, cure in _NOT_WITH_EACH.items():
        if options.get(option) not in (None, False, "latest"):
            raise DeclarationError(f'@agent.on(deliver="each") takes no {option}=…. {cure}')
    return "each"


def check_timeout(seconds: object) -> float | None:
    """Seconds an attempt may take, or None."""
    if seconds is None:
        return None
    if is_number(seconds) and 0 < seconds <= LONGEST_SECONDS:
        return seconds
    raise DeclarationError(
        f"@agent.on(timeout=…) must be more than 0 seconds, a year at most, not {shown(seconds)}."
    )


def check_batch(size: object, within: object) -> Batching | None:
    """How many messages one call gets, or None where it gets one."""
    if size is None:
        if within is None:
            return None
        raise DeclarationError("@agent.on(within=…) needs batch=…: it says how long a batch may gather.")
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_BATCH:
        raise DeclarationError(
            f"@agent.on(batch=…) must be a whole number from 1 to {MAX_BATCH}, not {shown(size)}."
        )
    if within is None:
        return Batching(size, 0.0)
    is_number = isinstance(within, (int, float)) and not isinstance(within, bool)
    if not is_number or not 0 <= within <= MAX_WITHIN_SECONDS:  # type: ignore[operator]
        raise DeclarationError(
            f"@agent.on(within=…) must be 0 to {MAX_WITHIN_SECONDS} seconds, not {shown(within)}: "
            "those that wait are leased. For rarer batches use a timer, @agent.every(…), that reads the stream."
        )
    return Batching(size, float(within))  # type: ignore[arg-type]


def check_missed(missed: object) -> Missed:
    """Which ticks a timer writes late, if there is such a way."""
    for known in MISSED:
        if missed == known:
            return known
    raise DeclarationError(f'missed=… must be "one", "all" or "none", not {missed!r}.')


def check_lifespan(function: object, known: Lifespan | None) -> Lifespan:
    """What sets an agent up and takes it down, as a function that returns an async context manager."""
    if known is not None:
        raise DeclarationError(
            "An agent has one lifespan: enter several things in it, with an AsyncExitStack."
        )
    if not inspect.isfunction(function):
        raise DeclarationError(
            f"{declared_at()}: @agent.lifespan goes above a function, not above {function!r}."
        )
    cure = (
        "Write `@agent.lifespan` above `async def opened(): …; yield state; …`, without parameters, or above a "
        "function that returns an async context manager."
    )
    if any(each.default is each.empty for each in inspect.signature(function).parameters.values()):
        raise DeclarationError(f"The lifespan {function.__name__} is called without arguments. {cure}")
    if inspect.isasyncgenfunction(function):
        return asynccontextmanager(function)
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise DeclarationError(f"The lifespan {function.__name__} does not yield asynchronously. {cure}")
    return function


def check_middleware(function: object) -> Middleware:
    """What goes around each attempt."""
    cure = "Write `async def timing(context, call_next): …; result = await call_next(); …; return result`."
    if not callable(function) or isinstance(function, type) or not is_async(function):
        raise DeclarationError(
            f"{declared_at()}: @agent.middleware goes above an async function, not above {function!r}. {cure}"
        )
    try:
        inspect.signature(function).bind("context", "call_next")
    except TypeError as error:
        raise DeclarationError(
            f"The middleware {place_of(function)} is called with the context and call_next ({error}). {cure}"
        ) from None
    return function
