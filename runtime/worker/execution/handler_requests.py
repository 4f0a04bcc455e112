"""Requests from handlers: made on the loop of user code or in a thread of it, and carried to the runtime's own loop."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from runtime.agent.answer_wait import AnswerWait
from runtime.agent.context import Context
from runtime.agent.handler import Handler
from runtime.agent.request_reply import question_key
from runtime.agent.services import AskOptions
from runtime.agent.waiting import GRACE_SECONDS
from runtime.client.pending_request import PendingRequest
from runtime.client.requester import Requester, check_wait
from runtime.errors import NobodyAnswers
from runtime.message import Answer, Draft
from runtime.worker.execution.asking import Asking
from runtime.worker.execution.services import Spans


class HandlerRequests:
    """Makes the requests of handlers, and has the worker's requester send them.

    Args:
        handlers: all that the worker runs.
        requester: sends them, on the runtime's own loop.
        spans: puts the current trace context into them, where one is wanted.
    """

    def __init__(self, handlers: Sequence[Handler], requester: Requester, spans: Spans | None) -> None:
        self._handlers = {handler.name: handler for handler in handlers}
        self._requester = requester
        self._spans = spans

    async def ask(
        self, context: Context, key: str, value: object, seconds: float | None, options: AskOptions
    ) -> Any:
        """Ask, and return the first good answer's value; see `Context.ask`."""
        check_wait(seconds)
        pending = PendingRequest(self._request(context, key, value, options), seconds, is_for_one=True)
        return (await self._asking(context, pending).answers())[0].given()

    async def ask_all(
        self,
        context: Context,
        key: str,
        value: object,
        count: int | None,
        seconds: float | None,
        options: AskOptions,
    ) -> list[Answer]:
        """Ask, and return so many answers; see `Context.ask_all`."""
        check_wait(seconds, count)
        pending = PendingRequest(self._request(context, key, value, options), seconds, count)
        return await self._asking(context, pending).answers()

    def ask_blocking(
        self, context: Context, key: str, value: object, seconds: float | None, options: AskOptions
    ) -> Any:
        """Ask from a thread; see `Context.ask_blocking`."""
        check_wait(seconds)
        pending = PendingRequest(self._request(context, key, value, options), seconds, is_for_one=True)
        return self._asking(context, pending).answers_blocking()[0].given()

    async def send_now(self, context: Context, key: str, value: object, once: str) -> int:
        """Send a message at once; see `Requests.send_now`."""
        return await asyncio.wrap_future(self._send(context, key, value, once))

    def send_now_blocking(self, context: Context, key: str, value: object, once: str) -> int:
        """Send a message at once, from a thread; see `Requests.send_now`."""
        return self._send(context, key, value, once).result()

    def _send(self, context: Context, key: str, value: object, once: str) -> "Future[int]":
        message = context.message
        same = question_key(message, context.handler, key, once, 0)
        draft = Draft(
            key, value,
            agent=context.agent, dedup_key=same, correlation_id=message.correlation, parent_id=message.id,
        )  # fmt: skip
        [draft] = [draft] if self._spans is None else self._spans.emitting([draft])
        return self._requester.submit(partial(self._requester.send, draft))

    def _asking(self, context: Context, pending: PendingRequest) -> Asking:
        draft = pending.draft
        assert draft.dedup_key is not None, "each request of a handler has one"
        is_short = pending.seconds is not None and pending.seconds <= GRACE_SECONDS
        waits = None if is_short else context.kept_waits
        wait = None if waits is None else AnswerWait(waits, draft.key, draft.dedup_key, pending.seconds)
        return Asking(self._requester, pending, wait)

    def _request(self, context: Context, key: str, value: object, options: AskOptions) -> Draft:
        message, handler = context.message, self._handlers[context.handler]
        # This very message would hold up the request, in every worker.
        is_ordered = handler.ordered and key == message.key
        if is_ordered or (handler.concurrency_total == 1 and key in handler.patterns):
            why = "it is ordered" if is_ordered else "concurrency_total=1 lets it have one message in hand"
            raise NobodyAnswers(
                f"{handler.name} asks under {key}, which it handles itself, and {why}: the request would wait for "
                "this very attempt to end. Ask under another key, or emit instead.",
                key,
                None,
            )
        question = question_key(message, handler.name, key, value, 0)
        context.asked[question] = context.asked.get(question, 0) + 1
        if context.asked[question] > 1:
            question = question_key(message, handler.name, key, value, context.asked[question] - 1)
        draft = self._requester.draft(
            key, value, options,
            agent=context.agent, dedup_key=question, correlation_id=message.correlation, parent_id=message.id,
        )  # fmt: skip
        return draft if self._spans is None else self._spans.emitting([draft])[0]
