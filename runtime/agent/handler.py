"""A handler: the declaration of one subscription, with its function, patterns and limits."""

import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.agent.batch import BatchContext, Batching
from runtime.agent.budget import Budget
from runtime.agent.callables import place_of, promises_value
from runtime.agent.context import Context
from runtime.agent.dependencies import Dependencies
from runtime.agent.retry import Retry
from runtime.agent.schedule import Missed, Schedule
from runtime.agent.signature import Signature
from runtime.agent.target import Target
from runtime.agent.undo import Undos
from runtime.agent.validation import Deliver, Middleware, Rate, Start
from runtime.errors import DeclarationError, InvalidValue, NotAwaited
from runtime.message import Message

_log = logging.getLogger("runtime.agent")


@dataclass(frozen=True, slots=True)
class Timer:
    """The schedule of a handler, whose ticks are messages.

    Attributes:
        key: the key of the ticks.
        schedule: when a tick is written.
        missed: which ticks are written for slots at which no worker ran: the last one, all, or none.
    """

    key: str
    schedule: Schedule
    missed: Missed


@dataclass(frozen=True, kw_only=True)
class Handler:
    """A function registered for patterns: the declaration of one subscription.

    Attributes:
        name: the subscription's name, `agent.function`.
        patterns: the keys and patterns it listens to; a message that several of them match comes once.
        is_async: whether it runs on the main loop, as an async function does, also behind a decorator; a plain
            function runs in a worker thread.
        timer: the schedule, for a handler of `every` or `cron`.
        middlewares: around each attempt, the outermost first; the agent's own list, which may still grow.
        undos: what undoes the steps of the agent's handlers; the agent's own, which may still grow.
        dependencies: fills the parameters that providers give, where there are some.
        target: where its messages are posted to, for a handler of `post`.

    The other attributes are the options of `Agent.on`, checked; None stands for no limit.
    """

    name: str
    agent: str
    patterns: tuple[str, ...]
    function: Callable[..., object]
    is_async: bool
    retry: Retry
    concurrency: int | None
    emits: str | None
    ordered: bool
    dead_blocks: bool
    start: Start
    timeout: float | None
    signature: Signature = field(repr=False)
    timer: Timer | None = None
    deliver: Deliver = "once"
    batch: Batching | None = None
    rate: Rate | None = None
    concurrency_total: int | None = None
    budget: Budget | None = None
    version: str | None = None
    pin: bool = False
    tool: str | None = None
    middlewares: Sequence[Middleware] = field(default=(), repr=False, compare=False)
    undos: Undos | None = field(default=None, repr=False, compare=False)
    dependencies: Dependencies | None = field(default=None, repr=False, compare=False)
    target: Target | None = None
    _warned: set[str] = field(default_factory=set, repr=False, compare=False)

    def bind(self, message: Message[Any], context: Context) -> dict[str, Any]:
        """Return the arguments the function wants, by name.

        Raises:
            InvalidPayload: the message's value is not what an annotation says.
        """
        return self.signature.bind(self.name, message, context)

    def emit_result(self, result: object, context: Context) -> None:
        """Emit what the function returned under `emits`; None emits nothing.

        Raises:
            InvalidValue: what it returned cannot be stored.
            NotAwaited: it returned an awaitable.
            DeclarationError: a handler of batches did not return one result for each message.
        """
        if result is None:
            if self.emits is not None and not self._warned:
                self._warn_of_nothing(self.emits)
            return
        self._check_awaited(result)
        if self.emits is not None and isinstance(context, BatchContext):
            self._emit_each(self.emits, result, context)
        elif self.emits is not None:
            context.emit(self.emits, result)
        elif not self._warned and context.message.reply_to is None:
            self._warned.add("result dropped")
            _log.warning(
                "%s returned a value, but it declares no key for it: the value is dropped. "
                'Write emits="some.key" in its @agent.on(…), or return nothing.',
                self.name,
            )

    def _warn_of_nothing(self, key: str) -> None:
        """Warn once if the function's annotation promises a value and it returned None."""
        self._warned.add("nothing returned")
        if promises_value(self.function):
            _log.warning(
                "%s returned None, so nothing is written under %s, though its annotation promises a value. Is a "
                "`return` missing? If None is meant, annotate `-> … | None`. (%s)",
                self.name, key, place_of(self.function),
            )  # fmt: skip

    def _check_awaited(self, result: object) -> None:
        if not isinstance(result, Awaitable):
            return
        if inspect.iscoroutine(result):
            result.close()
        how = "" if self.is_async else "declare the handler with `async def`, and "
        raise NotAwaited(
            f"{self.name} returned a {type(result).__name__} instead of its result: {how}`await` what you return "
            f"({place_of(self.function)})."
        )

    def _emit_each(self, key: str, results: object, context: BatchContext) -> None:
        """Emit the results of a handler of batches, each with the message at the same place as its cause."""
        count = len(context.messages)
        if not isinstance(results, (list, tuple)) or len(results) != count:
            raise DeclarationError(
                f"{self.name} was given {count} messages and must return a list of {count}: what to emit for each, "
                "in their order, and None where there is nothing."
            )
        for message, result in zip(context.messages, results, strict=True):
            if result is None:
                continue
            try:
                self._check_awaited(result)
                context.emit(key, result, cause=message)
            except (InvalidValue, NotAwaited) as error:
                # Only this message fails; the other results stand.
                context.fail(message, error)
