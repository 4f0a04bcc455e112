"""Wake-ups by a Supabase Database Webhook: a small HTTP server takes each POST as a hint.

A webhook is no path that can be live: only the database posts, and a worker cannot make it post a nonce. Polling or
another path goes on beside it.
"""

import hmac
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from runtime.agent.secrets import check_exposed
from runtime.connection.environment import non_blank
from runtime.errors import SettingsError
from runtime.http_server import BodyRefused, is_loopback, read_body, serve
from runtime.keys import matches
from runtime.wakeups import Listener, Path

_log = logging.getLogger("runtime.wakeups")
_MAX_BODY_BYTES = 2**20
_TABLE = ("public", "consciousness_stream")


class DatabaseWebhook:
    """The endpoint for posts of `supabase_functions.http_request` on an INSERT.

    Args:
        secret: expected as `authorization: Bearer …` or as `x-webhook-secret`; without one every post is taken.
        patterns: messages under other keys are ignored.
    """

    def __init__(self, secret: str | None, patterns: Sequence[str]) -> None:
        secret = non_blank(secret)
        self._secret = None if secret is None else secret.encode()
        self._patterns = tuple(patterns)

    def knows_secret(self, request: Request) -> bool:
        """Return whether a request has the secret."""
        if self._secret is None:
            return True
        brought = request.headers.get("x-webhook-secret", "")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and not brought:
            brought = token.strip()
        return hmac.compare_digest(brought.encode("latin-1"), self._secret)

    async def receive(self, request: Request, wake: Callable[[int | None], object]) -> Response:
        """Answer a post; `wake` is called with the message's id, or with None if the body is too large to read."""
        if not self.knows_secret(request):
            return UNKNOWN_SECRET
        try:
            record = _record(json.loads(await read_body(request, _MAX_BODY_BYTES)))
        except BodyRefused as error:
            if error.status == 413:
                # The sender knows the secret: the post is a hint, even if it is too large to read.
                wake(None)
                return PlainTextResponse(
                    f"More than {_MAX_BODY_BYTES} bytes: taken as a hint, not read.\n", 413
                )
            return PlainTextResponse(f"{error}\n", error.status)
        except (ValueError, RecursionError) as error:
            text = str(error) if isinstance(error, _NotOurs) else "This is not JSON."
            return PlainTextResponse(f"{text}\n", 400)
        if any(matches(pattern, record["key"]) for pattern in self._patterns):
            wake(record["id"])
        return Response(status_code=202)


UNKNOWN_SECRET = PlainTextResponse("The secret is missing or wrong.\n", 401)


class WebhookWakeups:
    """Wake-ups by the posts of `supabase_functions.http_request` on an INSERT.

    Args:
        address: where to listen, as HOST:PORT.
        secret: what the webhook must send as `authorization: Bearer …` or as `x-webhook-secret`; None only on a
            loopback address.
        patterns: the patterns of the worker's handlers; messages under other keys are ignored.

    Raises:
        SettingsError: `address` is no address, or it can be reached from outside and the secret is missing or short.
    """

    paths: tuple[Path, ...] = ()

    def __init__(self, address: str, secret: str | None, *, patterns: Sequence[str]) -> None:
        self.host, self.port = _parse(address)
        secret = non_blank(secret)
        if secret is not None and not is_loopback(self.host):
            check_exposed(secret, "RUNTIME_WEBHOOK_SECRET")
        if secret is None and not is_loopback(self.host):
            raise SettingsError(
                f"The webhook would listen on {address}, which others can reach, and has no secret. Set "
                "RUNTIME_WEBHOOK_SECRET, and send it from the webhook as the header `authorization: Bearer …`."
            )
        self._webhook = DatabaseWebhook(secret, patterns)

    def doubt(self) -> None:
        """Do nothing: a webhook cannot be proved."""

    async def run(self, listener: Listener) -> None:
        """Listen until cancelled; while another process has the port, ask for it again and again."""
        await serve("the webhook", self.host, self.port, self.app(listener), log=_log)

    def app(self, listener: Listener) -> Starlette:
        """Return the HTTP application; it answers POST on any path."""

        async def receive(request: Request) -> Response:
            return await self._webhook.receive(request, lambda message: listener.wake("webhook", message))

        return Starlette(routes=[Route("/{path:path}", receive, methods=["POST"])])


class _NotOurs(ValueError):
    """JSON, but not the post of a webhook on the stream."""


def _record(payload: Any) -> dict[str, Any]:
    """The message's record, with its id and key, in a post."""
    if not isinstance(payload, dict) or payload.get("type") != "INSERT":
        raise _NotOurs("Expected a Database Webhook for INSERT: tick Insert alone in the webhook's events.")
    if (payload.get("schema"), payload.get("table")) != _TABLE:
        raise _NotOurs("Expected a Database Webhook on public.consciousness_stream.")
    record = payload.get("record")
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("key"), str)
        or type(record.get("id")) is not int
    ):
        raise _NotOurs("The record has no id and key.")
    return record


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise SettingsError(
            f"{address!r} is no address for the webhook. Write HOST:PORT, as in 127.0.0.1:8787."
        )
    return host, int(port)
