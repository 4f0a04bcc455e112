"""How does a Supabase Database Webhook reach a worker? By a small HTTP server that takes each POST as one more hint.

It is no path that can be live: only the database posts, and nothing here can make it post a nonce. So it wakes, and
polling or another path goes on beside it.
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
    """Takes what `supabase_functions.http_request` posts for an INSERT, from whoever knows the secret.

    Args:
        secret: what comes as `authorization: Bearer …` or as `x-webhook-secret`; without one everybody is let in.
        patterns: a message under any other key wakes nobody.
    """

    def __init__(self, secret: str | None, patterns: Sequence[str]) -> None:
        secret = non_blank(secret)
        self._secret = None if secret is None else secret.encode()
        self._patterns = tuple(patterns)

    def knows_secret(self, request: Request) -> bool:
        """Whether a request brings the secret."""
        if self._secret is None:
            return True
        brought = request.headers.get("x-webhook-secret", "")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and not brought:
            brought = token.strip()
        return hmac.compare_digest(brought.encode("latin-1"), self._secret)

    async def receive(self, request: Request, wake: Callable[[int | None], object]) -> Response:
        """Answer a post; `wake` is told the message's id, or None where too much came to look for one."""
        if not self.knows_secret(request):
            return UNKNOWN_SECRET
        try:
            record = _record(json.loads(await read_body(request, _MAX_BODY_BYTES)))
        except BodyRefused as error:
            if error.status == 413:
                # Whoever knows the secret has something to tell, though it is more than is read here.
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
    """Wake-ups by HTTP: the INSERT that `supabase_functions.http_request` posts, from whoever knows the secret.

    Args:
        address: where to listen, as HOST:PORT.
        secret: what the webhook must send as `authorization: Bearer …` or as `x-webhook-secret`; None only on
            an address that nobody else can reach.
        patterns: what the worker's handlers listen to; a message under any other key wakes nobody.

    Raises:
        SettingsError: `address` is none, or it can be reached from outside and the secret is missing or short.
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
        """Nothing here can be proved, so nothing is doubted."""

    async def run(self, listener: Listener) -> None:
        """Listen until cancelled; while another process has the port, ask for it again and again."""
        await serve("the webhook", self.host, self.port, self.app(listener), log=_log)

    def app(self, listener: Listener) -> Starlette:
        """The HTTP application: any path, POST alone."""

        async def receive(request: Request) -> Response:
            return await self._webhook.receive(request, lambda message: listener.wake("webhook", message))

        return Starlette(routes=[Route("/{path:path}", receive, methods=["POST"])])


class _NotOurs(ValueError):
    """JSON, but not what a webhook on the stream posts."""


def _record(payload: Any) -> dict[str, Any]:
    """The message's id and key out of what was posted."""
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
