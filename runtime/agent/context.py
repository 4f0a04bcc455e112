"""The context of a handler: it emits, asks and broadcasts by it."""

import logging
from asyncio import get_running_loop, wrap_future
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Unpack

from pydantic_core.core_schema import CoreSchema, is_instance_schema

from runtime.agent.decision_link import DecisionLinks
from runtime.agent.people import AskingPeople
from runtime.agent.services import AskOptions, ReadOptions, Reads, Requests, check_options
from runtime.agent.step import Steps
from runtime.agent.transaction import OpenTransaction
from runtime.agent.usage import add_usage
from runtime.agent.waiting import Waits
from runtime.agent.work_keeper import WorkKeeper
from runtime.broadcast import BroadcastSequence, SendBroadcast
from runtime.encoding.json import MAX_BYTES
from runtime.errors import InvalidValue, RuntimeFault
from runtime.keys import check_key, check_pattern
from runtime.message import Answer, Draft, Message, Priority, check_dedup_key

# The emits of an attempt are written in the one transaction that finishes it, while the worker does nothing else. One
# value of the largest size fits, with its other fields.
MAX_EMITTED_BYTES = MAX_BYTES + 2**20
MAX_EMITS = 50_000
_NO_WORKER = (
    "This context belongs to no worker, so it cannot {}: run the agent in a worker, as a test does with "
    "`async with harness.running(agent)`."
)


@dataclass(slots=True)
class Context(AskingPeople):
    """What a handler may know and do beside its message; one per attempt.

    Attributes:
        message: the message as it was stored.
        handler: the subscription's name, `agent.handler`.
        worker: the name of the process that runs it.
        emitted: the emits so far; written in the transaction that finishes the delivery, or never.
        state: what the agent's lifespan yielded in this process; None without a lifespan.
        asks: sends its requests; None outside of a worker.
        reads: reads the stream; None outside of a worker.
        asked: how often this attempt has asked each question.
        send_broadcast: sends a broadcast; None where nobody can receive it, as in a test that makes its own context.
        used: the sums of what `usage` was told in this attempt: tokens_in, tokens_out, cost, model, and by_model where
            there are several; None before.
        work: keeps what lasts beyond the attempt: its steps, waits, texts and status; None where nothing is kept, as in
            such a test.
        decision_links: makes links that decide approvals; None where the settings have no secret for them.
    """

    message: Message[Any]
    handler: str
    worker: str = ""
    emitted: list[Draft] = field(default_factory=list)
    state: Any = field(default=None, repr=False)
    asks: "Requests[Context] | None" = field(default=None, repr=False, compare=False)
    reads: Reads | None = field(default=None, repr=False, compare=False)
    asked: dict[str, int] = field(default_factory=dict, repr=False, compare=False)
    send_broadcast: SendBroadcast | None = field(default=None, repr=False)
    used: dict[str, Any] | None = field(default=None, repr=False, compare=False)
    work: WorkKeeper | None = field(default=None, repr=False, compare=False)
    decision_links: DecisionLinks | None = field(default=None, repr=False, compare=False)
    _open_texts: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _waits: Waits | None = field(default=None, init=False, repr=False, compare=False)
    _steps: Steps | None = field(default=None, init=False, repr=False, compare=False)
    _transaction: OpenTransaction | None = field(default=None, init=False, repr=False, compare=False)
    _broadcasts: BroadcastSequence | None = field(default=None, init=False, repr=False)
    _emitted_bytes: int = field(default=0, init=False, repr=False, compare=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> CoreSchema:
        """Let pydantic's `validate_call` wrap a handler: only an instance is a context."""
        return is_instance_schema(cls)

    @property
    def agent(self) -> str:
        """The agent whose handler runs; the writer's name on what it emits."""
        return self.handler.partition(".")[0]

    @property
    def attempt(self) -> int:
        """Which attempt of the delivery this is, counted from 1."""
        return self.message.attempt

    @property
    def idempotency_key(self) -> str:
        """A key for the outside world: the same in each attempt and replay of this delivery, and no other's."""
        return f"{self.handler}_{self.message.idempotency_key}"

    @property
    def labels(self) -> dict[str, Any]:
        """The fields of this attempt's log records: agent, handler, key, message_id, attempt and worker."""
        return {
            "agent": self.agent, "handler": self.handler, "key": self.message.key,
            "message_id": self.message.id, "attempt": self.attempt, "worker": self.worker,
        }  # fmt: skip

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger named after the handler; its records carry the labels with any logging configuration."""
        return logging.LoggerAdapter(logging.getLogger(f"runtime.handlers.{self.handler}"), self.labels)

    def emit(
        self,
        key: str,
        value: object,
        *,
        delay: float | None = None,
        expires_in: float | None = None,
        priority: Priority = Priority.NORMAL,
        dedup_key: str | None = None,
        correlation_id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        cause: Message[Any] | None = None,
    ) -> None:
        """Write a message when this attempt succeeds; if it fails, nothing is written.

        Args:
            key: the key to write it under.
            value: anything that has a JSON form; taken as it is now, later changes do not matter.
            delay: seconds until it is due.
            expires_in: seconds after which it is not delivered any more.
            priority: the class it waits in.
            dedup_key: stored once within the dedup retention.
            correlation_id: shared by related messages; by default that of the handled message, or its id.
            headers: JSON data beside the value.
            cause: in a batch, the message that causes this one; it is written when that message succeeds.

        Raises:
            InvalidKey: `key` is not a key.
            InvalidValue: the value or an option cannot be stored, the attempt's emits together are too large, or
                `cause` is not a message of this handler.
        """
        message = self._cause(cause)
        draft = Draft(
            key,
            value,
            agent=self.agent,
            delay=delay,
            expires_in=expires_in,
            priority=priority,
            dedup_key=check_dedup_key(dedup_key),
            correlation_id=correlation_id or message.correlation,
            parent_id=message.id,
            headers=headers,
        )
        size = self._emitted_bytes + len(draft.json)
        if size > MAX_EMITTED_BYTES or len(self.emitted) >= MAX_EMITS:
            self._check_room(draft, size)
        self._emitted_bytes = size
        self.emitted.append(draft)

    def _check_room(self, draft: Draft, size: int) -> None:
        """Refuse an emit that makes the attempt's emits too large; `size` is their total in bytes."""
        if len(self.emitted) >= MAX_EMITS:
            raise InvalidValue(
                f"{self.handler} has emitted {MAX_EMITS:,} messages in one attempt, and no more are written at once. "
                "Emit a message for each part of the work, and have a handler of it emit the rest."
            )
        raise InvalidValue(
            f"{self.handler} emits {size / 2**20:.1f} MB in one attempt; at most {MAX_BYTES // 2**20} MB are written "
            "at once, since all other handlers wait meanwhile. Put large data into a file or a bucket and emit where "
            "they are, or emit a message for each part of the work."
        )

    def _cause(self, message: Message[Any] | None) -> Message[Any]:
        """The message that causes an emit."""
        if message is not None and message.id != self.message.id:
            raise InvalidValue(f"{self.handler} handles message {self.message.id}, not message {message.id}.")
        return self.message

    async def ask(
        self, key: str, value: object = None, *, timeout: float | None = 30, **options: Unpack[AskOptions]
    ) -> Any:
        """Send a request at once, and return what the handler of its key returns.

        The request stays when this attempt fails: another attempt that asks the same finds it, with its answer if
        there is one. If the answer takes more than two seconds, the delivery is suspended, as `wait_for` does it, and
        goes on with the answer.

        Args:
            key: the key to ask under.
            value: the request's value.
            timeout: seconds to wait, from the first asking on; None for ever.
            options: as for `emit`: expires_in, priority, dedup_key, correlation_id, headers. A dedup_key of your own
                decides which requests are the same.

        Raises:
            AskTimeout: no answer came in time; a late one is kept in the stream.
            AskFailed: the handler failed for good.
            NobodyAnswers: no handler listens to the key, or this one would wait for itself.
            StoreError: the request could not be stored.
        """
        return await self._asker("ask", options).ask(self, key, value, timeout, options)

    async def ask_all(
        self,
        key: str,
        value: object = None,
        *,
        first: int | None = None,
        timeout: float | None = 30,
        **options: Unpack[AskOptions],
    ) -> list[Answer]:
        """Send a request and return the answers of several handlers, good and bad, in the order they came.

        Args:
            key: as for `ask`.
            value: as for `ask`.
            first: how many to wait for; None for all handlers that got the request.
            timeout: seconds after which the answers so far are returned.
            options: as for `ask`.
        """
        return await self._asker("ask_all", options).ask_all(self, key, value, first, timeout, options)

    def ask_blocking(
        self, key: str, value: object = None, *, timeout: float | None = 30, **options: Unpack[AskOptions]
    ) -> Any:
        """Do the same as `ask` in a handler that is a plain function: it blocks its thread."""
        self._check_thread("ask")
        return self._asker("ask_blocking", options).ask_blocking(self, key, value, timeout, options)

    async def read(self, pattern: str = ">", **options: Unpack[ReadOptions]) -> list[Message[Any]]:
        """Return messages of the stream by pattern, as it is now, in the order of their ids.

        What this attempt emits is not among them: it is written when the attempt succeeds.

        Args:
            pattern: a key, or a pattern such as task.*.
            options: as for `Stream.read`: after, before, since, until, correlation_id, limit. The messages that go
                back to the same first message: `correlation_id=context.message.correlation`.

        Raises:
            InvalidKey: `pattern` is no pattern.
            StoreError: the stream could not be read.
        """
        return await wrap_future(self._reader("read", options).read(check_pattern(pattern), options))

    async def latest(self, key: str, *, correlation_id: str | None = None) -> Message[Any] | None:
        """Return the newest message under a key, or None; with a correlation id, the newest that shares it."""
        found = await wrap_future(self._latest(key, correlation_id))
        return found[0] if found else None

    async def get(self, message: int) -> Message[Any] | None:
        """Return the message with this id, or None if there is none, or no longer."""
        return await wrap_future(self._reader().get(message))

    def read_blocking(self, pattern: str = ">", **options: Unpack[ReadOptions]) -> list[Message[Any]]:
        """Do the same as `read` in a handler that is a plain function: it blocks its thread."""
        self._check_thread("read")
        return self._reader("read_blocking", options).read(check_pattern(pattern), options).result()

    def latest_blocking(self, key: str, *, correlation_id: str | None = None) -> Message[Any] | None:
        """Do the same as `latest` in a handler that is a plain function: it blocks its thread."""
        self._check_thread("latest")
        found = self._latest(key, correlation_id).result()
        return found[0] if found else None

    def get_blocking(self, message: int) -> Message[Any] | None:
        """Do the same as `get` in a handler that is a plain function: it blocks its thread."""
        self._check_thread("get")
        return self._reader().get(message).result()

    def _latest(self, key: str, correlation_id: str | None) -> Future[list[Message[Any]]]:
        return self._reader().read(check_key(key), {"correlation_id": correlation_id, "limit": 1})

    def _reader(self, method: str = "", options: ReadOptions | None = None) -> Reads:
        check_options(method, options or {}, ReadOptions.__optional_keys__)
        if self.reads is None:
            raise RuntimeFault(_NO_WORKER.format("read the stream"))
        return self.reads

    def _check_thread(self, method: str) -> None:
        """Refuse to block an event loop, on which other handlers run."""
        try:
            get_running_loop()
        except RuntimeError:
            return
        raise RuntimeFault(
            f"{self.handler} would block its event loop: write `await context.{method}(…)` in an async handler."
        )

    def _asker(self, method: str, options: AskOptions) -> "Requests[Context]":
        check_options(method, options, {"timeout", *AskOptions.__optional_keys__})
        if self.asks is None:
            raise RuntimeFault(_NO_WORKER.format("ask"))
        return self.asks

    def broadcast(self, key: str, value: object) -> None:
        """Send a value to the listeners of this moment: at once, stored nowhere, and received at most once.

        For tokens as a model writes them, and for progress. It does not wait, and does not tell whether there are
        listeners; a broadcast is not taken back if the attempt fails. From any thread.

        Args:
            key: the key to send it under.
            value: anything that has a JSON form, up to 64,000 bytes of it; 7,000 where NOTIFY carries it.

        Raises:
            InvalidKey: `key` is not a key.
            InvalidValue: the value cannot be broadcast.
        """
        if self._broadcasts is None:
            self._broadcasts = BroadcastSequence(
                self.send_broadcast or _discard,
                agent=self.agent,
                message_id=self.message.id,
                correlation_id=self.message.correlation,
            )
        self._broadcasts.send(key, value)

    def status(self, text: str) -> None:
        """Show where a long delivery is, such as "drafting 3 of 7".

        It stands in `runtime trace`, `runtime top`, `runtime status` and on the message's page. The call returns at
        once and never fails, from any thread, as often as you like: the last text of each second is stored. The last
        one of all stays with the message, also on a dead letter. In a batch it is that of each message.

        Args:
            text: up to 200 characters; what is longer is cut.
        """
        if self.work is not None:
            self.work.tell_status(text)

    def usage(
        self, *, tokens_in: int = 0, tokens_out: int = 0, cost: float = 0.0, model: str | None = None
    ) -> None:
        """Tell what a call of a language model took; several calls in one attempt add up.

        It is stored with the attempt however that ends, since a failed call is paid for too; it counts for the
        handler's budget, the dashboard sums it by conversation, agent and day, and with `RUNTIME_TELEMETRY` it is on
        the attempt's span. A batch tells it of the whole call.

        Args:
            tokens_in: tokens of the prompt.
            tokens_out: tokens of the answer.
            cost: the price, in US dollars.
            model: the model's name.

        Raises:
            InvalidValue: a figure is negative or no number, or the model's name is no text.
        """
        self.used = add_usage(self.used, tokens_in, tokens_out, cost, model)


def _discard(key: str, text: str) -> None:
    """Drop a broadcast: no worker sends it."""
