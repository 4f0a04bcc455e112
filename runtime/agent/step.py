"""Steps: parts of a handler whose results are kept, so that no later attempt works them out again."""

import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import anyio

from runtime.agent.callables import is_async, place_of
from runtime.agent.refusal import refused_seconds
from runtime.agent.retry import later_seconds
from runtime.agent.step_call import Step, StepCall
from runtime.agent.step_names import NO_RETURN, UNDO_PREFIX, UNDONE
from runtime.agent.step_scope import scoped
from runtime.agent.transaction import Transactions, kept_together, kept_together_blocking
from runtime.encoding.json import decode, encode
from runtime.errors import InvalidValue, LeaseLost, NotAwaited

T = TypeVar("T")
StepPlace: TypeAlias = tuple[str, str, int]
"""The name, the key and the occurrence of a step, which are its identity within a delivery."""

MAX_STEP_BYTES: Final = 2**20
# The steps of a delivery travel with it, so together they have to fit in an answer.
MAX_STEPS: Final = 1_000
MAX_STEPS_BYTES: Final = 4 * 2**20


class StepKeeper(Protocol):
    """Keeps the results of the steps of one delivery."""

    async def keep(self, place: StepPlace, text: str, undo: str | None = None) -> list[Any]:
        """Keep a result, given as JSON text; returns the data of one that is kept already, in a list, or none.

        `undo` says what undoes the step, as JSON text.
        """

    def keep_blocking(self, place: StepPlace, text: str, undo: str | None = None) -> list[Any]:
        """As `keep`, from a thread of user code."""

    def along(self, transactions: Transactions) -> Transactions:
        """Return what opens the transactions that keep the other steps of the delivery."""


def _nothing(_: StepCall) -> str | None:
    return None


@dataclass(slots=True)
class Steps:
    """The steps of one attempt: those that earlier attempts have kept, and the new ones.

    Attributes:
        handler: the subscription's name, for errors.
        idempotency_key: that of the delivery.
        kept: the results that earlier attempts have kept, as JSON data.
        keeper: keeps new ones; None outside of a worker, where they are kept nowhere.
        transactions: opens transactions that keep them; None outside of a worker.
        asked: the steps that the handler has come to.
        span: makes the span of a step that runs, by its name.
        undo_of: returns what undoes the step of a call, as JSON text; None for nothing.
        has_undos: whether a finished step is undone if the delivery dies.
    """

    handler: str
    idempotency_key: str
    kept: dict[StepPlace, Any] = field(default_factory=dict)
    keeper: StepKeeper | None = None
    transactions: Transactions | None = None
    asked: set[StepPlace] = field(default_factory=set)
    span: Callable[[str], AbstractContextManager[object]] = nullcontext
    undo_of: Callable[[StepCall], str | None] = _nothing
    has_undos: bool = False
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _running: set[tuple[str, str]] = field(default_factory=set)
    _bytes: int = -1
    _random: Random = field(default_factory=Random)

    async def run(self, call: StepCall) -> Any:
        """Return the kept result of a step, or work it out and keep it; see `Context.step`."""
        with self._begun(call) as place:
            if place not in self.kept:
                undo = self._undo_of(call)
                with self.span(call.name):
                    text, earlier = await self._result(call, place, undo)
                if self.keeper and not call.transaction:
                    earlier = await self.keeper.keep(place, text, undo)
                self._note(place, earlier[0] if earlier else decode(text), undo)
            return call.value_of(self.kept[place])

    def run_blocking(self, call: StepCall) -> Any:
        """As `run`, in the thread of a plain handler."""
        with self._begun(call) as place:
            if place not in self.kept:
                undo = self._undo_of(call)
                with self.span(call.name):
                    text, earlier = self._result_blocking(call, place, undo)
                if self.keeper and not call.transaction:
                    earlier = self.keeper.keep_blocking(place, text, undo)
                self._note(place, earlier[0] if earlier else decode(text), undo)
            return call.value_of(self.kept[place])

    async def end_undos(self) -> None:
        """Keep the mark after which nothing is undone; see `Context.no_return`."""
        if NO_RETURN not in self.kept and self.keeper is not None:
            await self.keeper.keep(NO_RETURN, "true")
        self._note(NO_RETURN, True, None)

    def end_undos_blocking(self) -> None:
        """As `end_undos`, in the thread of a plain handler."""
        if NO_RETURN not in self.kept and self.keeper is not None:
            self.keeper.keep_blocking(NO_RETURN, "true")
        self._note(NO_RETURN, True, None)

    def _undo_of(self, call: StepCall) -> str | None:
        """Return what undoes the step; known before its function runs, so that it can always be kept."""
        undo = self.undo_of(call)
        if undo is not None and len(undo) > MAX_STEP_BYTES:
            raise InvalidValue(
                f"The arguments that the undo of step {call.name!r} takes are {len(undo) / 2**20:.1f} MB as JSON; at "
                f"most {MAX_STEP_BYTES // 2**20} MB are kept. Have the undo work from the step's result."
            )
        return undo

    def _note(self, place: StepPlace, data: Any, undo: str | None) -> None:
        self.kept[place] = data
        self.has_undos = (self.has_undos or undo is not None) and NO_RETURN not in self.kept

    def unasked(self) -> list[str]:
        """The names of the steps that are kept, and were not asked for in this attempt."""
        own = (UNDONE, NO_RETURN[0])
        return sorted({place[0] for place in self.kept if place not in self.asked and place[0] not in own})

    def count(self, name: str, key: str) -> int:
        """Return how often the handler has come to a name and key, this time included."""
        self._counts[name, key] = occurrence = self._counts.get((name, key), 0) + 1
        return occurrence

    def leave_out(self, scope: str) -> None:
        """Take what was kept in a scope as asked for: the part that comes to it does not run, its result is kept."""
        self.asked.update(place for place in self.kept if f"{place[1]}/".startswith(f"{scope}/"))

    @contextmanager
    def _begun(self, call: StepCall) -> Iterator[StepPlace]:
        lane = (call.name, scoped(call.key))
        if lane in self._running:
            raise InvalidValue(
                f"{self.handler} runs two steps named {call.name!r} at the same time, and no attempt could tell which "
                "is which: give each a key of its own, `context.step(…, key=str(order.id))`."
            )
        place = (*lane, self.count(*lane))
        self.asked.add(place)
        self._running.add(lane)
        try:
            yield place
        finally:
            self._running.discard(lane)

    def _text_of(self, call: StepCall, result: Any, undo: str | None) -> str:
        """Return a result as the JSON text that is kept; one that later attempts could not use is refused now."""
        text = encode(result)
        if len(text) > MAX_STEP_BYTES:
            raise InvalidValue(
                f"The result of step {call.name!r} takes {len(text) / 2**20:.1f} MB as JSON; at most "
                f"{MAX_STEP_BYTES // 2**20} MB are kept. Put large data into a file or a bucket and return its address."
            )
        if self._bytes < 0:
            self._bytes = sum(len(encode(data)) for data in self.kept.values())
        self._bytes += len(text) + len(undo or "")
        if len(self.kept) >= MAX_STEPS or self._bytes > MAX_STEPS_BYTES:
            raise InvalidValue(
                f"{self.handler} keeps too much for one message: at most {MAX_STEPS:,} steps of together "
                f"{MAX_STEPS_BYTES // 2**20} MB. Emit a message for each part of the work instead."
            )
        call.value_of(decode(text))
        return text

    async def work_out(self, call: StepCall, place: StepPlace) -> Any:
        """Return the result of a step's function, called again as its retry says; nothing is kept."""

        async def once(step: Step) -> Any:
            with anyio.fail_after(call.timeout):
                return await _called(call.bound(step), is_async(call.function))

        return await self._retried(call, place, once)

    async def _result(self, call: StepCall, place: StepPlace, undo: str | None) -> tuple[str, list[Any]]:
        """Return the text of a result, and what a transaction found to be kept already, in a list."""
        if call.transaction:
            return await self._retried(call, place, partial(self._committed, call, place, undo))
        return self._text_of(call, await self.work_out(call, place), undo), []

    def _result_blocking(self, call: StepCall, place: StepPlace, undo: str | None) -> tuple[str, list[Any]]:
        """As `_result`, in the thread of a plain handler."""
        if call.timeout is not None:
            raise InvalidValue(
                f"Step {call.name!r}: a plain function cannot be stopped in its thread, so step_blocking takes no "
                "timeout. Give the function's own client one."
            )
        if call.transaction:
            return self._retried_blocking(call, place, partial(self._committed_blocking, call, place, undo))
        result = self._retried_blocking(call, place, lambda step: _plain_result(call, call.bound(step)()))
        return self._text_of(call, result, undo), []

    async def _retried(self, call: StepCall, place: StepPlace, once: Callable[[Step], Awaitable[T]]) -> T:
        attempt = 0
        while True:
            attempt += 1
            try:
                return await once(self._step(place, attempt))
            except Exception as error:
                delay = self._delay(call, error, attempt)
                if delay is None:
                    raise
            await anyio.sleep(delay)

    def _retried_blocking(self, call: StepCall, place: StepPlace, once: Callable[[Step], T]) -> T:
        attempt = 0
        while True:
            attempt += 1
            try:
                return once(self._step(place, attempt))
            except Exception as error:
                delay = self._delay(call, error, attempt)
                if delay is None:
                    raise
            time.sleep(delay)

    async def _committed(
        self, call: StepCall, place: StepPlace, undo: str | None, step: Step
    ) -> tuple[str, list[Any]]:
        async def work(connection: Any, blocking: Any) -> str:
            on_loop = is_async(call.function)
            bound = call.bound(step, connection if on_loop else blocking)
            return self._text_of(call, await _called(bound, on_loop), undo)

        return await kept_together(self.transactions, place, work, undo, call.timeout)

    def _committed_blocking(
        self, call: StepCall, place: StepPlace, undo: str | None, step: Step
    ) -> tuple[str, list[Any]]:
        def work(connection: Any) -> str:
            return self._text_of(call, _plain_result(call, call.bound(step, connection)()), undo)

        return kept_together_blocking(self.transactions, place, work, undo)

    def _step(self, place: StepPlace, attempt: int) -> Step:
        name, key, occurrence = place
        own = "_".join((self.idempotency_key, name, *((key,) if key else ()), str(occurrence)))
        done = [name.removeprefix(UNDO_PREFIX), key, occurrence]
        # One that was undone is another one when it is done again: a bank would take it for the one it has refunded.
        undone = sum(done in data for (other, *_), data in self.kept.items() if other == UNDONE)
        return Step(name, key, occurrence, attempt, f"{own}_again{undone}" if undone else own)

    def _delay(self, call: StepCall, error: Exception, attempt: int) -> float | None:
        """The seconds until the function is called again; None where the error ends the attempt of the handler."""
        if call.retry is None or later_seconds(error) is not None or isinstance(error, LeaseLost):
            return None
        if refused_seconds(error) is not None:
            # The handler puts its delivery off, and holds all workers: nobody waits in a slot for a provider.
            return None
        return call.retry.decide(error, attempt, self._random)


async def _called(bound: Callable[[], Any], on_loop: bool) -> Any:
    """Call a function on this loop, or a plain one in a thread, and await what it passes on to be awaited."""
    result = bound() if on_loop else await _in_thread(bound)
    return await result if isinstance(result, Awaitable) else result


async def _in_thread(bound: Callable[[], Any]) -> Any:
    try:
        return await anyio.to_thread.run_sync(bound, abandon_on_cancel=True)
    except RuntimeError as error:
        if str(error) != "no running event loop":
            raise
        # It makes a task or a future, which belongs to the loop's own thread.
        return bound()


def _plain_result(call: StepCall, result: Any) -> Any:
    if isinstance(result, Awaitable):
        if inspect.iscoroutine(result):
            result.close()
        raise NotAwaited(
            f"Step {call.name!r} of a plain handler got an async function: {place_of(call.function)}. Declare the "
            f'handler with `async def` and write `await context.step("{call.name}", …)`, or give it a plain function.'
        )
    return result
