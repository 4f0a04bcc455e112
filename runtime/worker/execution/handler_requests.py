"""How does a handler ask? From the loop of user code, or from a thread of it; the asker lives on the runtime's loop."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from runtime.agent.context import AskOptions, Context
from runtime.agent.handler import Handler
from runtime.agent.request_reply import asking_headers, question_key
from runtime.client.requester import Requester, check_wait
from runtime.errors import NobodyAnswers, RuntimeFault
from runtime.message import Answer, Draft, check_dedup_key

Tracing = Callable[[Sequence[Draft]], list[Draft]]


class HandlerRequests:
    """Turns a handler's questions into requests of its worker.

    Args:
        handlers: all that the worker runs.
        tracing: puts the current trace context into drafts, where one is wanted.
    """

    def __init__(self, handlers: Sequence[Handler], tracing: Tracing | None = None) -> None:
        self._handlers = {handler.name: handler for handler in handlers}
        self._tracing = tracing
        # Set before a handler can run: until then nothing was taken.
        self.asker: Requester | None = None

    async def ask(
        self, context: Context, key: str, value: object, seconds: float | None, options: AskOptions
    ) -> Any:
        """Ask, and return the first good answer's value; see `Context.ask`."""
        return (await asyncio.wrap_future(self._submit(context, key, value, seconds, options))).given()

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
        draft = self._request(context, key, value, seconds, options)
        asker = self._asker()
        return await asyncio.wrap_future(asker.submit(partial(asker.ask_all, draft, count, seconds)))

    def ask_blocking(
        self, context: Context, key: str, value: object, seconds: float | None, options: AskOptions
    ) -> Any:
        """Ask from a thread; see `Context.ask_blocking`."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._submit(context, key, value, seconds, options).result().given()
        raise RuntimeFault(
            f"{context.handler} would block its event loop: write `await context.ask(…)` in an async handler."
        )

    def _submit(
        self, context: Context, key: str, value: object, seconds: float | None, options: AskOptions
    ) -> "Future[Answer]":
        draft, asker = self._request(context, key, value, seconds, options), self._asker()
        return asker.submit(partial(asker.ask, draft, seconds))

    def _asker(self) -> Requester:
        assert self.asker is not None, "handlers run after their worker has begun"
        return self.asker

    def _request(
        self, context: Context, key: str, value: object, seconds: float | None, options: AskOptions
    ) -> Draft:
        check_wait(seconds)
        message, handler = context.message, self._handlers[context.handler]
        # Held up by this very message, in every worker there is.
        is_ordered = handler.ordered and key == message.key
        if is_ordered or (handler.concurrency_total == 1 and key in handler.patterns):
            why = "it is ordered" if is_ordered else "concurrency_total=1 lets it have one message in hand"
            raise NobodyAnswers(
                f"{handler.name} asks under {key}, which it handles itself, and {why}: the request would wait for "
                "this very attempt to end. Ask under another key, or emit instead.",
                key,
                None,
            )
        asker = self._asker()
        question = question_key(message, handler.name, key, value, 0)
        context.asked[question] = context.asked.get(question, 0) + 1
        if context.asked[question] > 1:
            question = question_key(message, handler.name, key, value, context.asked[question] - 1)
        draft = Draft(
            key,
            value,
            agent=context.agent,
            expires_in=options.get("expires_in"),
            priority=options.get("priority", 0),  # type: ignore[arg-type]
            dedup_key=check_dedup_key(options.get("dedup_key")) or question,
            correlation_id=options.get("correlation_id") or message.correlation,
            parent_id=message.id,
            headers=asking_headers(asker.id, asker.reachable_by, options.get("headers")),
        )
        return draft if self._tracing is None else self._tracing([draft])[0]
