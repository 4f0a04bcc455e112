"""What is a handler? The declaration of one subscription: a function, what it listens to, and its limits."""

import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.agent.batch import BatchContext, Batching
from runtime.agent.context import Context
from runtime.agent.dependencies import Dependencies
from runtime.agent.limits import Rate
from runtime.agent.retry import Retry
from runtime.agent.schedule import Missed, Schedule
from runtime.agent.signature import Signature
from runtime.agent.target import Target
from runtime.agent.validation import Deliver, Middleware, Start
from runtime.errors import DeclarationError, InvalidValue, NotAwaited
from runtime.message import Message

_log = logging.getLogger("runtime.agent")


@dataclass(frozen=True, slots=True)
class Timer:
    """What writes the messages of a handler that runs by the time.

    Attributes:
        key: the key its ticks are written under.
        schedule: when it ticks.
        missed: which ticks are written for the slots nobody was there for: the last one, all, or none.
    """

    key: str
    schedule: Schedule
    missed: Missed


@dataclass(frozen=True, kw_only=True)
class Handler:
    """A function registered for patterns: the declaration of one subscription.

    Attributes:
        name: the subscription's name, `agent.function`.
        patterns: what it listens to; a message that several of them match comes once.
        is_async: whether it runs on the main loop, as an async function does and one behind a decorator; a plain
            function runs in a worker thread.
        retry: what happens after a failure.
        concurrency: how many may run at once in one worker, or None for the worker's own limit.
        emits: the key under which what it returns is written, or None.
        ordered: whether messages of one key are handled one after another, in the order they were written.
        dead_blocks: whether a dead letter holds up its key until somebody redrives or discards it.
        start: whether a new subscription gets what is written from now on, or all there is.
        timeout: seconds one attempt may take, or None for no limit.
        timer: what writes its messages, for a handler that runs by the time.
        deliver: whether one worker gets a message, or each process that is there, at most once and with nothing kept.
        batch: how many messages one call gets, for a handler of many at once.
        rate: how many messages all workers together take in a time, or None.
        concurrency_total: how many messages all workers together may have in hand, or None.
        middlewares: what goes around each attempt, the outermost first; the agent's own list, which may still grow.
        dependencies: what fills the parameters that providers give, where there are some.
        target: where its messages are posted to, for a handler that is a URL.
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
    middlewares: Sequence[Middleware] = field(default=(), repr=False, compare=False)
    dependencies: Dependencies | None = field(default=None, repr=False, compare=False)
    target: Target | None = None
    _said: set[str] = field(default_factory=set, repr=False, compare=False)

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
            NotAwaited: it returned something to be awaited.
            DeclarationError: a handler of batches did not return one result for each message.
        """
        if result is None:
            return
        self._check_awaited(result)
        if self.emits is not None and isinstance(context, BatchContext):
            self._emit_each(self.emits, result, context)
        elif self.emits is not None:
            context.emit(self.emits, result)
        elif not self._said and context.message.reply_to is None:
            self._said.add("result dropped")
            _log.warning(
                "%s returned a value, but it declares no key for it: the value is dropped. "
                'Say emits="some.key" in its @agent.on(…), or return nothing.',
                self.name,
            )

    def _check_awaited(self, result: object) -> None:
        if not isinstance(result, Awaitable):
            return
        if inspect.iscoroutine(result):
            result.close()
        how = "" if self.is_async else "declare it with `async def`, and "
        raise NotAwaited(
            f"{self.name} returned an awaitable, which nobody awaits: {how}write `return await …`."
        )

    def _emit_each(self, key: str, results: object, context: BatchContext) -> None:
        """Emit what a handler of batches returned, each because of the message at the same place."""
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
                # What came of its neighbours is none the worse for it.
                context.fail(message, error)
