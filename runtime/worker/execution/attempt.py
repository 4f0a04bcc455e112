"""Attempts: one call of a handler each, which ends in a report whatever the handler does."""

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import anyio

from runtime.agent.context import Context
from runtime.agent.handler import Handler
from runtime.agent.request_reply import answer_draft
from runtime.agent.waiting import suspension
from runtime.errors import RuntimeFault
from runtime.message import Draft
from runtime.store import Delivery, Report
from runtime.tracebacks import places_of, text_of
from runtime.worker.event_loop import is_of_handler
from runtime.worker.execution import fork
from runtime.worker.execution.batching import Batch
from runtime.worker.execution.cancellation import comes_from_outside
from runtime.worker.execution.failure import failure
from runtime.worker.execution.handler_undos import undo_steps
from runtime.worker.execution.log_context import attempt as attempt_of_logs
from runtime.worker.execution.middleware import surrounded
from runtime.worker.execution.services import HandlerServices, Spans
from runtime.worker.execution.threads import ThreadCall

_log = logging.getLogger("runtime.handlers")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a handler, as observers see it.

    Attributes:
        began: when the handler began, in seconds since the epoch.
        report: how it ended.
    """

    handler: Handler
    delivery: Delivery
    began: float
    report: Report


Observer = Callable[[Attempt], None]


def tell(observers: Iterable[Observer], attempt: Attempt) -> None:
    """Tell each observer of an attempt, whatever another one of them does."""
    for observer in observers:
        try:
            observer(attempt)
        except BaseException as error:  # noqa: BLE001 - an onlooker must not end the work
            places = ", ".join(places_of(error))
            _log.error("the observer failed; the work goes on: %s (at %s)", text_of(error), places)


class Attempts:
    """Calls handlers, on the loop of user code or in threads of theirs.

    Args:
        handlers: the handlers of the worker.
        limits: how many of each may run at once, by the handler's name.
        services: the services that handlers may use.
        left: told of a handler whose plain function was given up on and runs on in its thread.
        ended: told when such a thread has ended.
    """

    def __init__(
        self,
        handlers: Iterable[Handler],
        limits: Mapping[str, int],
        services: HandlerServices,
        left: Callable[[Handler], None],
        ended: Callable[[Handler], None],
    ) -> None:
        self._left = left
        self._ended = ended
        self._generation = fork.Generation.number
        self._context = copy_context()
        self._services = services
        self._spans = services.spans
        self._random = Random()
        self._told_unasked: set[tuple[str, str]] = set()
        self._unreported: dict[int, dict[str, Any]] = {}
        # A limiter each, so that a slow handler takes no other's threads.
        self._threads = {
            handler.name: anyio.CapacityLimiter(limits[handler.name])
            for handler in handlers
            if not handler.is_async
        }

    async def one(self, handler: Handler, delivery: Delivery, clock: float) -> Report:
        """Call a handler with one delivery, which began at this moment of the monotonic clock.

        Raises:
            CancelledError: it was ended from outside; there is no report.
        """
        if self._spans is None:
            return await self._one(handler, delivery, clock)
        report: Report | None = None
        try:
            with self._spans.handling(handler.name, self._services.worker, delivery) as span:
                report = await self._one(handler, delivery, clock)
                self._spans.reported(span, handler.name, report)
        except BaseException as error:
            if comes_from_outside(error):
                raise
            _say_untraced(error)
        # Where no span could even begin, the handler runs without one.
        return await self._one(handler, delivery, clock) if report is None else report

    def usage_of_ended(self, delivery: Delivery) -> dict[str, Any] | None:
        """Return what an attempt without a report has told of its usage; asked once, when it was ended from outside."""
        return self._unreported.pop(id(delivery), None)

    def gathered(self, handler: Handler, deliveries: Sequence[Delivery]) -> Batch:
        """One call to be made with several deliveries."""
        return Batch(handler, deliveries, self._services, self._random)

    async def many(self, batch: Batch, clock: float) -> None:
        """Make the call of a batch, which has a report for each delivery afterwards.

        Raises:
            CancelledError: it was ended from outside; what has no report yet is to be given back.
        """
        if self._spans is None:
            await self._many(batch, clock, lambda _, drafts: drafts)
            return
        try:
            await self._many_traced(batch, clock, self._spans)
        except BaseException as error:
            if comes_from_outside(error):
                raise
            _say_untraced(error)
            if not (batch.has_begun or batch.reports):
                await self._many(batch, clock, lambda _, drafts: drafts)

    async def _many_traced(self, batch: Batch, clock: float, spans: Spans) -> None:
        handler, deliveries = batch.handler, batch.deliveries
        with spans.handling_batch(handler.name, self._services.worker, deliveries) as begun:
            by_message = {each.place[0]: span for each, span in zip(deliveries, begun, strict=True)}
            await self._many(
                batch,
                clock,
                lambda delivery, drafts: _signed(
                    lambda each: spans.emitting(each, by_message[delivery.place[0]]), drafts
                ),
            )
            for number, report in batch.reports.items():
                spans.reported(by_message[number], handler.name, report)

    async def _one(self, handler: Handler, delivery: Delivery, clock: float) -> Report:
        context = self._services.context(handler, delivery)
        attempt_of_logs.set(context)
        try:
            if delivery.undos and delivery.is_undoing:
                return await self._undone(handler, delivery, clock)
            result = await self._result(handler, context)
            handler.emit_result(result, context)
            # A request has headers, and most messages have none.
            if delivery.message.headers and (
                answer := answer_draft(delivery.message, delivery.subscription, handler, result)
            ):
                context.emitted.append(answer)
            if (swallowed := context.suspended) is not None:
                raise RuntimeFault(
                    f"{handler.name} has caught the exception that suspends it while it waits, a BaseException: catch "
                    "Exception instead, or let it pass."
                ) from swallowed
            if delivery.steps and (unasked := context.unasked_steps):
                self._say_unasked(handler, delivery, unasked)
            emitted: Sequence[Draft] = context.emitted
            if self._spans is not None and emitted:
                emitted = _signed(self._spans.emitting, emitted)
            emits = tuple([draft.json for draft in emitted])
            report = Report(delivery, time.monotonic() - clock, emits=emits, usage=context.used)
            if (finish := context.finish) is not None:
                await finish(report)
        except BaseException as error:
            if self._generation != fork.Generation.number:
                fork.leave(error)
            if comes_from_outside(error):
                if context.used is not None:
                    self._unreported[id(delivery)] = context.used
                raise
            seconds = time.monotonic() - clock
            if (suspended := suspension(error)) is not None:
                # At once where a message may have come: the database looks, and puts it off further.
                report = Report(delivery, seconds, "suspended", delay=suspended.delay, waits=suspended.places)
            else:
                report = failure(handler, delivery, seconds, error, self._random, undoes=context.undoes)
            report.usage = context.used
            return report
        finally:
            if context.finish is not None:
                await context.close_transaction()
        if self._generation != fork.Generation.number:
            fork.leave()
        return report

    async def _undone(self, handler: Handler, delivery: Delivery, clock: float) -> Report:
        """Run the undos of a delivery that has died."""
        used = await _InOwnContext(undo_steps(handler, delivery, self._services))
        if self._generation != fork.Generation.number:
            fork.leave()
        return Report(delivery, time.monotonic() - clock, "undone", usage=used)

    def _say_unasked(self, handler: Handler, delivery: Delivery, names: Sequence[str]) -> None:
        """Tell once of steps that are kept and not asked for any more: a new version may have renamed them."""
        version = f" of version {handler.version}" if handler.version else ""
        for name in names:
            if (handler.name, name) not in self._told_unasked:
                self._told_unasked.add((handler.name, name))
                _log.warning(
                    "step %r is stored for message %s, and %s%s no longer asks for it: was it renamed or removed? Its "
                    "result is not used",
                    name, delivery.message.id, handler.name, version,
                )  # fmt: skip

    async def _many(
        self, batch: Batch, clock: float, sign: Callable[[Delivery, list[Draft]], Sequence[Draft]]
    ) -> None:
        attempt_of_logs.set(batch.context)
        try:
            arguments = batch.bind()
            if batch.valid:
                result = await self._result(batch.handler, batch.context, arguments)
                batch.succeed(result, time.monotonic() - clock, sign)
        except BaseException as error:
            if self._generation != fork.Generation.number:
                fork.leave(error)
            if comes_from_outside(error):
                raise
            batch.fail(error, time.monotonic() - clock)
        batch.tell_usage()
        if self._generation != fork.Generation.number:
            fork.leave()

    async def _result(
        self, handler: Handler, context: Context, arguments: dict[str, Any] | None = None
    ) -> object:
        """Return the result of the function with everything around it, within its timeout.

        Args:
            arguments: those of a batch, whose invalid messages have failed before; otherwise they are bound here.
        """
        call = self._call_surrounded if handler.middlewares else self._call
        if handler.timeout is None:
            return await call(handler, context, arguments)
        with anyio.fail_after(handler.timeout):
            return await call(handler, context, arguments)

    async def _call_surrounded(
        self, handler: Handler, context: Context, arguments: dict[str, Any] | None
    ) -> object:
        """Return the result of the function with the agent's middlewares around it, on the loop or in a thread."""
        call = partial(self._call, handler, context, arguments)
        return await _InOwnContext(surrounded(handler.middlewares, context, call))

    async def _call(self, handler: Handler, context: Context, arguments: dict[str, Any] | None) -> object:
        """Return what the function itself returns: a coroutine on this loop, a plain function in a thread."""
        if arguments is None:
            arguments = handler.bind(context.message, context)
        if handler.dependencies is not None:
            where = _on_loop if handler.is_async else partial(self._plain, handler)
            call = handler.dependencies.call(where, handler.function, arguments, context)
            return await _InOwnContext(call)
        if handler.is_async:
            return await _InOwnContext(handler.function(**arguments))  # type: ignore[arg-type]
        return await self._plain(handler, partial(handler.function, **arguments))

    async def _plain(self, handler: Handler, call: Callable[[], object]) -> object:
        """Call a plain function in a thread; what it only passes on to be awaited is awaited here."""
        result = await self._in_thread(handler, call)
        if result is None or not isinstance(result, Awaitable):
            return result
        return await _InOwnContext(_awaited(result))

    async def _in_thread(self, handler: Handler, call: Callable[[], object]) -> object:
        threaded = ThreadCall(call, partial(self._ended, handler), self._context)
        try:
            return await threaded.result(self._threads[handler.name])
        finally:
            if threaded.is_left:
                self._left(handler)


def _signed(sign: Callable[[Sequence[Draft]], Sequence[Draft]], drafts: Sequence[Draft]) -> Sequence[Draft]:
    """The drafts with what a trace needs; as they are where that fails."""
    try:
        return sign(drafts)
    except BaseException as error:  # noqa: BLE001 - what makes spans may be the user's
        _say_untraced(error)
        return drafts


def _say_untraced(error: BaseException) -> None:
    _log.error("an attempt could not be traced; the work goes on: %s", text_of(error))


async def _awaited(result: Awaitable[object]) -> object:
    return await result


async def _on_loop(call: Callable[[], Any]) -> object:
    return await call()


class _InOwnContext:
    """Awaits a coroutine in a context of its own: what one attempt sets in a ContextVar, the next does not see.

    That costs 5 µs an attempt; a task for each, which would have the same effect, costs 20 µs.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, object]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        context, coroutine = copy_context(), self._coroutine
        context.run(is_of_handler.set, True)
        step: Callable[[], Any] = partial(coroutine.send, None)
        while True:
            try:
                awaited = context.run(step)
            except StopIteration as end:
                return end.value
            try:
                step = partial(coroutine.send, (yield awaited))
            except GeneratorExit:
                context.run(coroutine.close)
                raise
            except BaseException as error:  # noqa: BLE001 - it is the coroutine's to deal with
                step = partial(coroutine.throw, error)
