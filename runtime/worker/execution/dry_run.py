"""One attempt outside of the stream: the handler runs for real, and what it would do to the stream is noted instead."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from runtime.agent.agent import Agent
from runtime.agent.context import Context
from runtime.agent.decision_link import DecisionLinks
from runtime.agent.handler import Handler
from runtime.agent.request_reply import RequestState, question_key
from runtime.agent.services import AskOptions, Reads
from runtime.agent.waiting import IsOver, Waited
from runtime.encoding.json import decode
from runtime.errors import RuntimeFault
from runtime.message import Answer, Message
from runtime.store import Delivery, Report
from runtime.worker.execution.attempt import Attempts
from runtime.worker.execution.services import HandlerServices


@dataclass(frozen=True, slots=True)
class Effect:
    """Something that a handler would have done to the stream.

    Attributes:
        kind: emit, broadcast, ask, or send for a message that is written at once.
        key: the key of the message.
        value: its value, as JSON data.
        options: the other fields of an emitted message.
    """

    kind: str
    key: str
    value: Any
    options: Mapping[str, Any] = field(default_factory=dict)


class NoWaits:
    """Ends no wait of a dry run: a worker would suspend the delivery."""

    async def wait(self, waits: Sequence[Mapping[str, Any]], is_over: IsOver, seconds: float) -> Waited:
        """Return at once."""
        return self.wait_blocking(waits, is_over, seconds)

    def wait_blocking(self, waits: Sequence[Mapping[str, Any]], is_over: IsOver, seconds: float) -> Waited:
        """Return at once."""
        return Waited([None] * len(waits))


@dataclass(frozen=True, slots=True)
class DryRun:
    """One attempt, and what it would have done.

    Attributes:
        report: what a worker would have reported.
        effects: what the handler would have done to the stream, in order; emits come last.
    """

    report: Report
    effects: Sequence[Effect]


class StoredAnswers:
    """Answers the requests of a dry run without sending any.

    Args:
        story: the rows of the message's tree: an earlier attempt may have asked the same.
        given: answers by the key of the request, which come first.
        note: told of each request.
    """

    def __init__(
        self, story: Sequence[Mapping[str, Any]], given: Mapping[str, Any], note: Callable[[Effect], None]
    ) -> None:
        self._story = story
        self._given = given
        self._note = note

    async def ask(
        self, context: Context, key: str, value: object, seconds: float | None, options: AskOptions
    ) -> Any:
        """Return the answer that was given, or that the stream has."""
        return self.ask_blocking(context, key, value, seconds, options)

    async def ask_all(
        self,
        context: Context,
        key: str,
        value: object,
        count: int | None,
        seconds: float | None,
        options: AskOptions,
    ) -> list[Answer]:
        """Return the answers that the stream has, or the given one."""
        self._note(Effect("ask", key, value))
        if key in self._given:
            return [Answer(None, self._given[key], None, Message(0, key, self._given[key]))]
        return list(self._found(context, key, value, options).answers[:count])

    def ask_blocking(
        self, context: Context, key: str, value: object, seconds: float | None, options: AskOptions
    ) -> Any:
        """Do the same as `ask`."""
        self._note(Effect("ask", key, value))
        if key in self._given:
            return self._given[key]
        found = self._found(context, key, value, options).best()
        assert found is not None, "nothing waits"
        return found.given()

    async def send_now(self, context: Context, key: str, value: object, once: str) -> int:
        """Note the message, which is not sent; returns no message's id."""
        return self.send_now_blocking(context, key, value, once)

    def send_now_blocking(self, context: Context, key: str, value: object, once: str) -> int:
        """As `send_now`, from a thread."""
        self._note(Effect("send", key, value))
        return 0

    def _found(self, context: Context, key: str, value: object, options: AskOptions) -> RequestState:
        """Find the request of an earlier attempt, with its answers."""
        question = options.get("dedup_key") or question_key(context.message, context.handler, key, value, 0)
        for row in self._story:
            answers = [each for each in self._story if (each["headers"] or {}).get("answers") == row["id"]]
            if row["dedup_key"] == question and answers:
                return RequestState.from_row(
                    {
                        "request": row["id"],
                        "reply_to": (row["headers"] or {}).get("reply_to", ""),
                        "listeners": 1,
                        "waiting": 0,
                        "handled": False,
                        "answers": answers,
                        "seen": [each["id"] for each in answers],
                    },
                    key,
                )
        raise RuntimeFault(
            f"{context.handler} asks under {key}, and a dry run sends no request. The stream has no answer to this one "
            f"from an earlier attempt: give it one by --answer '{key}={{…}}'."
        )


async def dry_run(
    agent: Agent,
    handler: Handler,
    message: Message[Any],
    *,
    story: Sequence[Mapping[str, Any]] = (),
    answers: Mapping[str, Any] | None = None,
    reads: Reads | None = None,
    decision_links: DecisionLinks | None = None,
    at_failure: Callable[[Exception], None] | None = None,
) -> DryRun:
    """Run one attempt of a handler; the message is taken from nobody, and nothing is written.

    Args:
        agent: whose handler runs; its lifespan is entered and left.
        handler: which of its handlers.
        message: the message, with its value as JSON data.
        story: the rows of the message's tree, where answers are looked for.
        answers: answers by the key of the request.
        reads: reads the stream for the handler.
        decision_links: makes links that decide approvals.
        at_failure: called with the error of the attempt while what the lifespan has opened is still there; then the
            attempt has no time limit.
    """
    effects: list[Effect] = []

    async def catch(context: Context, call_next: Callable[[], Any]) -> Any:
        try:
            return await call_next()
        except Exception as error:
            if at_failure is not None:
                at_failure(error)
            raise

    handler = replace(
        handler,
        middlewares=[catch, *handler.middlewares],
        timeout=handler.timeout if at_failure is None else None,
    )
    delivery = Delivery(0, message, "")
    async with agent.hooks.lifespan() if agent.hooks.lifespan else nullcontext() as state:
        services = HandlerServices(
            "dry-run",
            {agent.name: state},
            requests=StoredAnswers(story, answers or {}, effects.append),
            reads=reads,
            decision_links=decision_links,
            wait_keeper=lambda _: NoWaits(),
            send_broadcast=lambda key, text: effects.append(Effect("broadcast", key, _value_of(text))),
        )
        attempts = Attempts([handler], {handler.name: 1}, services, _ignore, _ignore)
        began = time.monotonic()
        if handler.batch is None:
            report = await attempts.one(handler, delivery, began)
        else:
            batch = attempts.gathered(handler, [delivery])
            await attempts.many(batch, began)
            report = batch.reports[message.id]
    for text in report.emits:
        draft = decode(text)
        options = {name: each for name, each in draft.items() if name not in ("key", "value")}
        effects.append(Effect("emit", draft["key"], draft["value"], options))
    return DryRun(report, effects)


def _value_of(text: str) -> Any:
    """Return the value of a broadcast as it crosses the wire."""
    data = decode(text)
    return data.get("value") if isinstance(data, dict) else data


def _ignore(_handler: Handler) -> None:
    """Do nothing: no thread is waited for."""
