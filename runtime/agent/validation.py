"""Checks of declarations, made when a module is imported; each error says what to do."""

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from runtime.agent.batch import Batching
from runtime.agent.callables import declared_at, is_async, place_of
from runtime.agent.retry import LONGEST_SECONDS, Retry, is_number, said_of_seconds, short_repr
from runtime.agent.schedule import MISSED, Missed
from runtime.errors import DeclarationError, InvalidKey
from runtime.keys import check_key, check_pattern

MAX_BATCH = 1000
MAX_CONCURRENCY = 100_000
MAX_WITHIN_SECONDS = 60
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
MAX_CONCURRENCY_TOTAL = 1_000_000_000
_RATE = re.compile(r"(\d{1,7})/([smhd])")
Start = Literal["latest", "earliest"]
Deliver = Literal["once", "each"]

# Options that need a record of the subscription, and what to do instead.
_NOT_WITH_EACH = {
    "retry": "No delivery is kept that could be tried again: leave retry out, or leave deliver out.",
    "ordered": "Write concurrency=1 instead: then messages are handled one after another as they are read.",
    "dead_blocks": "Without kept deliveries there are no dead letters: leave it out.",
    "start": "It gets what is written while it runs; to read older messages, use stream.listen(pattern, since=…).",
    "batch": "Messages are handled as they come: leave batch out, or leave deliver out.",
    "tool": "Each process gets each message, and none answers: leave tool out, or leave deliver out.",
    "pin": "Each process gets each message, and goes on with no other's: leave pin out, or leave deliver out.",
    "budget": "Nothing is counted of what each process does: leave budget out, or leave deliver out.",
    "rate": "Messages are handled as they come: leave rate out, or leave deliver out.",
    "concurrency_total": "Each process gets each message: write concurrency=… for one process, or leave deliver out.",
}
Lifespan = Callable[[], AbstractAsyncContextManager[Any]]
Middleware = Callable[[Any, Callable[[], Awaitable[Any]]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Rate:
    """An amount of messages in so many seconds, enforced across all workers by the database's clock."""

    amount: int
    seconds: float

    def __str__(self) -> str:
        unit = next(name for name, seconds in _UNITS.items() if seconds == self.seconds)
        return f"{self.amount}/{unit}"


def check_segment(name: object, what: str) -> str:
    """Return the name, if it is a single segment of a key."""
    try:
        if isinstance(name, str) and "." not in name:
            return check_key(name)
    except InvalidKey:
        pass
    raise DeclarationError(f"{what} is letters, digits, '_', ':' and '-', such as 'writer', not {name!r}.")


@contextmanager
def _declaring() -> Iterator[None]:
    """Turn a wrong key into a wrong declaration."""
    try:
        yield
    except InvalidKey as error:
        raise DeclarationError(f"@agent.on(…): {error}") from None


def check_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the patterns, each once."""
    if not patterns:
        raise DeclarationError('@agent.on(…) needs at least one pattern: @agent.on("task.output").')
    with _declaring():
        return tuple(dict.fromkeys(check_pattern(pattern) for pattern in patterns))


def check_declared_key(key: str) -> str:
    """Return the key of a handler's emits, or of a timer's ticks."""
    with _declaring():
        return check_key(key)


def check_retry(retry: object) -> Retry:
    """Return the retry policy; the default for None."""
    if retry is None:
        return Retry()
    if not isinstance(retry, Retry):
        raise DeclarationError(f"@agent.on(retry=…) must be a Retry(attempts=3, …), not {retry!r}.")
    return retry


def check_concurrency(limit: object) -> int | None:
    """Return the limit of handlers that run at once, or None."""
    if limit is None:
        return None
    if isinstance(limit, int) and not isinstance(limit, bool) and 1 <= limit <= MAX_CONCURRENCY:
        return limit
    raise DeclarationError(
        f"@agent.on(concurrency=…) must be a whole number of 1 or more, at most {MAX_CONCURRENCY:,}, "
        f"not {short_repr(limit)}."
    )


def check_dead_blocks(dead_blocks: bool, ordered: bool) -> bool:
    """Return whether a dead letter blocks its key, which needs an order."""
    if dead_blocks and not ordered:
        raise DeclarationError(
            "@agent.on(dead_blocks=True) needs ordered=True: without an order no message waits for another."
        )
    return bool(dead_blocks)


def check_start(start: object) -> Start:
    """Return where a new subscription begins."""
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


def check_version(version: object, pin: object, batch: Batching | None) -> str | None:
    """Return the version of a handler, or None."""
    if version is None:
        if pin:
            raise DeclarationError(
                '@agent.on(pin=True) needs a version, as in @agent.on(…, version="1", pin=True): only workers of that '
                "version go on with what it has begun."
            )
        return None
    if (
        not isinstance(version, str)
        or not version
        or "\0" in version
        or len(version.encode(errors="replace")) > 255
    ):
        raise DeclarationError(
            f"@agent.on(version=…) is a text of at most 255 bytes, not {short_repr(version)}."
        )
    if pin and batch is not None:
        raise DeclarationError(
            "@agent.on(batch=…) takes no pin=True: a batch has no steps that a later attempt could go on with."
        )
    return version


def check_timeout(seconds: object) -> float | None:
    """Return the seconds an attempt may take, or None."""
    if seconds is None:
        return None
    if is_number(seconds) and 0 < seconds <= LONGEST_SECONDS:
        return seconds
    raise DeclarationError(
        "@agent.on(timeout=…) must be a number of seconds, more than 0 and a year at most, not "
        f"{said_of_seconds(seconds)}."
    )


def check_batch(size: object, within: object) -> Batching | None:
    """Return how many messages one call gets, or None for a handler of single messages."""
    if size is None:
        if within is None:
            return None
        raise DeclarationError("@agent.on(within=…) needs batch=…: it bounds how long a batch is gathered.")
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_BATCH:
        raise DeclarationError(
            f"@agent.on(batch=…) must be a whole number from 1 to {MAX_BATCH}, not {short_repr(size)}."
        )
    if within is None:
        return Batching(size, 0.0)
    if not is_number(within) or not 0 <= within <= MAX_WITHIN_SECONDS:
        raise DeclarationError(
            f"@agent.on(within=…) must be a number of seconds from 0 to {MAX_WITHIN_SECONDS}, not "
            f"{said_of_seconds(within)}: messages that wait for their batch are leased. For rarer batches "
            "use a timer, @agent.every(…), that reads the stream."
        )
    return Batching(size, float(within))


def check_rate(rate: object) -> Rate | None:
    """Return the rate that a text such as "10/s" means, or None for None."""
    if rate is None:
        return None
    found = _RATE.fullmatch(rate) if isinstance(rate, str) else None
    if found is None or int(found[1]) == 0:
        raise DeclarationError(
            f'@agent.on(rate=…) must be a text such as "10/s", "600/m", "1000/h" or "5000/d", not {short_repr(rate)}.'
        )
    return Rate(int(found[1]), _UNITS[found[2]])


def check_concurrency_total(limit: object, batch: int) -> int | None:
    """Return the limit, if it is at least the size of a batch."""
    if limit is None:
        return None
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_CONCURRENCY_TOTAL:
        raise DeclarationError(
            f"@agent.on(concurrency_total=…) must be a whole number of 1 or more, at most {MAX_CONCURRENCY_TOTAL:,}, "
            f"not {short_repr(limit)}."
        )
    if limit < batch:
        raise DeclarationError(
            f"@agent.on(batch={batch}, concurrency_total={limit}) could never fill a batch: concurrency_total counts "
            f"messages, so say {batch} or more."
        )
    return limit


def check_missed(missed: object) -> Missed:
    """Return which missed ticks a timer writes late."""
    for known in MISSED:
        if missed == known:
            return known
    raise DeclarationError(f'missed=… must be "one", "all" or "none", not {missed!r}.')


def check_lifespan(function: object, known: Lifespan | None) -> Lifespan:
    """Return a lifespan as a function that returns an async context manager."""
    if known is not None:
        raise DeclarationError(
            "An agent has one lifespan: enter several context managers in it with an AsyncExitStack."
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
    """Return the middleware, if it is an async function of a context and call_next."""
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
