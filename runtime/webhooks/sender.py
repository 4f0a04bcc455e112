"""The sender of webhooks: a message goes to a target as a signed POST, and the response decides about the delivery."""

import base64
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import SplitResult, unquote, urlsplit

import anyio
import httpcore

from runtime.agent.approval import REQUESTED
from runtime.agent.context import Context
from runtime.agent.decision_link import DecisionLinks
from runtime.agent.handler import Handler
from runtime.agent.retry import Reject, RetryLater
from runtime.agent.target import Target
from runtime.connection.allow_list import AllowList
from runtime.connection.environment import environment, non_blank
from runtime.connection.proxies import tls_context
from runtime.encoding.json import decode, encode, encode_again
from runtime.encoding.printable import printable
from runtime.errors import InvalidPayload, PostFailed, SettingsError
from runtime.message import Message
from runtime.settings import Settings
from runtime.store import Store
from runtime.webhooks.circuit_breaker import CircuitBreakers
from runtime.webhooks.egress import Egress, Resolve, resolve
from runtime.webhooks.signatures import read_secret, sign

MAX_ANSWER_BYTES: Final = 1024 * 1024
_LONGEST_ASKED_SECONDS: Final = 3600.0
_CONNECT_SECONDS: Final = 10.0
# Nearly every server keeps idle connections open longer than this.
_IDLE_SECONDS: Final = 4.0
# No other attempt can change these: the message is too large, or of a kind the target does not take.
_HOPELESS: Final = frozenset({413, 415, 422})
# These are about the message, and say nothing of the target as a whole.
_OF_THE_MESSAGE: Final = frozenset({400, 409, 412, 424, 428, 500, 501})
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-\S{1,256})?", re.ASCII)
_TRACESTATE: Final = re.compile(r"[\x20-\x7e]{1,512}")
_HEADERS: Final = {
    "user-agent": "agent-runtime",
    "content-type": "application/json",
    "accept": "application/json",
    "accept-encoding": "identity",
}

Headers = Mapping[str, str]
Trace = Callable[[], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class TargetResponse:
    """What a target answered: a status, headers by names in small letters, and the body."""

    status: int
    headers: Headers
    body: bytes


class Sender:
    """The handlers of a worker, where those that have a target post to it.

    Args:
        handlers: all handlers of the worker.
        settings: which private addresses are allowed.
        trace: the headers of the current trace, where one is made.
        resolve: tells the addresses of a host.

    Attributes:
        handlers: the same, each function of a target's handler replaced by one that posts.

    Raises:
        SettingsError: the environment lacks a secret, or a target may not be reached by plain http.
    """

    def __init__(
        self,
        handlers: Iterable[Handler],
        settings: Settings,
        *,
        trace: Trace = dict,
        resolve: Resolve = resolve,
    ) -> None:
        self._allowed = AllowList.parse(settings.webhooks_allow)
        self._trace = trace
        self._links = DecisionLinks.of(settings)
        self._keys: dict[str, list[bytes]] = {}
        self.handlers = [self._equipped(handler) for handler in handlers]
        self._rests = CircuitBreakers(
            [
                {"name": each.name, "url": each.target.shown, "emits": each.emits, "concurrency": each.concurrency}
                for each in self.handlers
                if each.target is not None
            ],
            settings.sweep_seconds,
        )  # fmt: skip
        self._resolve = resolve
        self._pool: httpcore.AsyncConnectionPool

    async def __aenter__(self) -> Self:
        schemes = {urlsplit(each.target.url).scheme for each in self.handlers if each.target is not None}
        self._pool = httpcore.AsyncConnectionPool(
            # Reading the authorities blocks the loop for tens of milliseconds, and plain http needs none.
            ssl_context=tls_context() if "https" in schemes else None,
            max_connections=None,
            max_keepalive_connections=20,
            keepalive_expiry=_IDLE_SECONDS,
            network_backend=Egress(self._allowed, self._resolve),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.aclose()

    async def keep(self, store: Store) -> None:
        """Keep the states of the targets in the database, for ever. On the runtime's own loop."""
        await self._rests.keep(store)

    def _equipped(self, handler: Handler) -> Handler:
        if handler.target is None:
            return handler
        target, parts = handler.target, urlsplit(handler.target.url)
        if parts.scheme == "http" and not self._allowed.names(parts.hostname or ""):
            raise SettingsError(
                f"{handler.name} posts to {target.shown}, which anyone on the network path can read: write https://, "
                f"or name the host in RUNTIME_WEBHOOKS_ALLOW."
            )
        keys = self._keys[handler.name] = _keys(handler.name, target)

        async def post(message: Message[Any], context: Context) -> Any:
            return await self._post(handler, target, keys, message, context)

        return replace(handler, function=post)

    async def _post(
        self, handler: Handler, target: Target, keys: Sequence[bytes], message: Message[Any], context: Context
    ) -> Any:
        """Post one message, and return what is to be emitted."""
        # To decide is not for targets that get all messages by a wildcard, such as a log.
        is_asked = message.key == REQUESTED and REQUESTED in handler.patterns
        link = self._links.url(message) if self._links is not None and is_asked else None
        headers, body = request_of(message, context, keys, link)
        headers |= trace_headers({**message.headers, **self._trace()})
        async with self._rests.admitted(handler.name):
            try:
                result = judged(await self.request(target, headers, body), target.shown, handler.emits)
            except PostFailed as error:
                if await self._rests.failed(handler.name, message.id, error) and error.kind != "message":
                    raise RetryLater(1, str(error)) from None
                raise
            self._rests.succeeded(handler.name)
        return result

    async def try_out(self, name: str) -> TargetResponse:
        """Post a message of the type webhook.test, which is stored nowhere.

        Raises:
            PostFailed: there was no answer.
        """
        [target] = [each.target for each in self.handlers if each.name == name]
        assert target is not None
        message: Message[Any] = Message(id=0, key="webhook.test", value={"webhook": name})
        headers, body = request_of(message, Context(message, name), self._keys[name])
        return await self.request(target, headers, body)

    async def request(self, target: Target, headers: Headers, body: bytes) -> TargetResponse:
        """Make one request.

        Raises:
            PostFailed: there was no answer, or one that cannot be read.
        """
        parts = urlsplit(target.url)
        try:
            with anyio.fail_after(target.seconds):
                async with self._pool.stream(
                    "POST",
                    httpcore.URL(
                        scheme=parts.scheme, host=parts.hostname or "", port=parts.port,
                        target=f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}",
                    ),
                    headers=[*_HEADERS.items(), *_authorization(parts).items(), *headers.items()],
                    content=body,
                    extensions={"timeout": {"connect": min(_CONNECT_SECONDS, target.seconds)}},
                ) as response:  # fmt: skip
                    names = {
                        name.decode("latin-1").lower(): value.decode("latin-1")
                        for name, value in response.headers
                    }
                    return TargetResponse(response.status, names, await _read(response, target.shown))
        except (TimeoutError, httpcore.TimeoutException):
            raise PostFailed(f"{target.shown} did not answer within {target.seconds:g} s.") from None
        except httpcore.ConnectError as error:
            raise PostFailed(
                f"{target.shown} cannot be reached: {_said(error) or 'no connection'}."
            ) from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise PostFailed(
                f"{target.shown} broke the connection off before it had answered: {_said(error)}."
            ) from None
        except PostFailed as error:
            raise PostFailed(f"{target.shown}: {error}", kind=error.kind, status=error.status) from None


def request_of(
    message: Message[Any], context: Context, keys: Sequence[bytes], decision_link: str | None = None
) -> tuple[dict[str, str], bytes]:
    """The headers and the body that tell a target of a message, signed now."""
    body = body_of(message, context, decision_link)
    return sign(keys, webhook_id(context.handler, message), int(time.time()), body), body


def webhook_id(subscription: str, message: Message[Any]) -> str:
    """The id of a message for one target: the same for each attempt and each replay, and of no other message.

    It holds no dot.
    """
    return f"msg_{message.idempotency_key}_{subscription.replace('.', '/')}"


def body_of(message: Message[Any], context: Context, decision_link: str | None = None) -> bytes:
    """The body of the request: type, timestamp and data, as Standard Webhooks has them, and where they come from."""
    link = {} if decision_link is None else {"decision_link": decision_link}
    fields = {
        "type": message.key, "timestamp": message.created_at.isoformat(), "id": message.id, "agent": message.agent,
        "subscription": context.handler, "attempt": message.attempt, "correlation_id": message.correlation_id,
        "parent_id": message.parent_id, **link,
    }  # fmt: skip
    return f'{encode(fields)[:-1]},"data":{encode_again(message.value)}}}'.encode()


def trace_headers(given: Mapping[str, Any]) -> dict[str, str]:
    """The W3C trace context among the headers of a message, where it is valid: any writer can put anything there."""
    parent, state = given.get("traceparent"), given.get("tracestate")
    if not isinstance(parent, str) or not _TRACEPARENT.fullmatch(parent):
        return {}
    is_state = isinstance(state, str) and _TRACESTATE.fullmatch(state)
    return {"traceparent": parent, **({"tracestate": state} if isinstance(state, str) and is_state else {})}


def judged(answer: TargetResponse, shown: str, emits: str | None) -> Any:
    """Return what is to be emitted of an answer, or raise what becomes of the delivery.

    Args:
        answer: the response of the target.
        shown: the target, for people.
        emits: the key under which its answer is written, or None.

    Raises:
        PostFailed: the message is not taken, this time.
        Reject: it never will be.
    """
    status = answer.status
    if 200 <= status < 300:
        return None if emits is None else _result(answer, shown, emits)
    if status in _HOPELESS:
        raise Reject(f"{shown} answered {status}: it never takes this message.")
    if 300 <= status < 400:
        raise PostFailed(
            f"{shown} answered {status}, a redirect, and none is followed: use the URL it leads to.",
            status=status,
        )
    if status == 410:
        raise PostFailed(
            f"{shown} answered 410, it is gone: nothing more is sent there until the webhook is resumed.",
            kind="gone",
            status=status,
        )
    if status in (429, 503) and (seconds := _asked(answer.headers.get("retry-after"))) is not None:
        raise PostFailed(
            f"{shown} answered {status} and asked to be left alone for {seconds:g} s.",
            kind="asked",
            status=status,
            seconds=seconds,
        )
    raise PostFailed(
        f"{shown} answered {status}.", kind="message" if status in _OF_THE_MESSAGE else "target", status=status
    )  # fmt: skip


def _result(answer: TargetResponse, shown: str, emits: str) -> Any:
    if not answer.body:
        return None
    kind = printable(answer.headers.get("content-type", "").partition(";")[0].strip().lower(), 80)
    if not (kind == "application/json" or kind.endswith("+json")):
        raise PostFailed(
            f"{shown} answered {answer.status} with {kind or 'no content-type'}, and its answer is written under "
            f"{emits}: it must be application/json, or empty.",
            kind="message",
            status=answer.status,
        )
    try:
        return decode(answer.body)
    except InvalidPayload:
        raise PostFailed(
            f"{shown} answered {answer.status} with a body that is no JSON.", kind="message", status=answer.status
        ) from None  # fmt: skip


def _said(error: Exception) -> str:
    """The error's text, made printable: it may repeat what the target sent, as a broken status line."""
    return printable(str(error), 200).rstrip(".")


def _asked(text: str | None) -> float | None:
    """The seconds of a Retry-After, at most an hour; None where there are none."""
    if text is None:
        return None
    try:
        seconds = (
            float(text) if text.strip().isdigit() else parsedate_to_datetime(text).timestamp() - time.time()
        )
    except ValueError:
        return None
    return min(max(seconds, 0.0), _LONGEST_ASKED_SECONDS)


async def _read(response: httpcore.Response, shown: str) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_stream():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise PostFailed(
                f"answered with more than {MAX_ANSWER_BYTES // 2**20} MB.", kind="message", status=response.status
            )  # fmt: skip
    return bytes(body)


def _authorization(parts: SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _keys(name: str, target: Target) -> list[bytes]:
    """The keys a target's requests are signed with, the newest first."""
    if target.secret_name is None:
        return [read_secret(secret) for secret in target.secrets]
    text = environment().get(target.secret_name, "")
    try:
        keys = [read_secret(secret) for secret in text.split() if non_blank(secret)]
    except SettingsError as error:
        raise SettingsError(f"{target.secret_name}, which {name} signs with: {error}") from None
    if not keys:
        raise SettingsError(
            f"{name} signs with {target.secret_name}, and the environment does not hold it. Make a secret, give it to "
            "the target and set the variable: "
            'python -c "from runtime.webhooks.signatures import new_secret; print(new_secret())"'
        )
    return keys
