"""The routes at /realtime/v1: a small, faithful stand-in for Supabase Realtime.

Served: WebSockets of protocol 1.0.0 and 2.0.0 with `postgres_changes`, broadcast between clients, from the
database and over HTTP, tokens and their expiry. What is left out is listed in `docs/local-stack.md`.
"""

from collections.abc import Sequence
from typing import Final

import anyio
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from runtime.local.gateway.authorization import TopicPolicies
from runtime.local.gateway.changes import ChangeFeed
from runtime.local.gateway.channels import Services
from runtime.local.gateway.database import Database
from runtime.local.gateway.frames import Version, write_broadcast
from runtime.local.gateway.http_broadcast import HttpBroadcast
from runtime.local.gateway.hub import Hub
from runtime.local.gateway.messages import MessageFeed, StoredBroadcast
from runtime.local.gateway.settings import GatewaySettings
from runtime.local.gateway.sockets import Socket
from runtime.local.gateway.token_refusals import handshake_refusal
from runtime.local.gateway.tokens import TokenError, Tokens
from runtime.local.gateway.walsender import Address

_VERSIONS: Final[dict[str, Version]] = {"1.0.0": "1.0.0", "2.0.0": "2.0.0"}


class Realtime:
    """The Realtime side of the gateway: put `routes()` into the application and keep `run()` going beside it.

    Args:
        settings: where the database is, and how slow to be.
        tokens: who may come in.
    """

    def __init__(self, settings: GatewaySettings, tokens: Tokens) -> None:
        self._settings = settings
        self._tokens = tokens
        url = (settings.realtime_database_url or settings.database_url).get_secret_value()
        address = Address.parse(url)
        self._database = Database(url)
        self._hub = Hub()
        self._messages = MessageFeed(address, self._database, self._deliver)
        self._changes = ChangeFeed(address, self._database, settings.changes_poll_seconds)
        policies = TopicPolicies(self._database)
        self._http = HttpBroadcast(tokens, policies, self._hub)
        self._services = Services(tokens, self._database, policies, self._changes, self._messages, self._hub)

    async def run(self) -> None:
        """Read the database's log until cancelled; wait for a database that is down."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._messages.run)
                tasks.start_soon(self._changes.run)
        finally:
            self._database.close()

    async def wait_live(self) -> None:
        """Return when broadcasts from the database are heard."""
        await self._messages.stream.wait_live()

    async def make_partitions(self) -> None:
        """Have the coming partitions of `realtime.messages` made, and drop the old; done hourly by `run` too."""
        await self._messages.make_partitions()

    def routes(self) -> Sequence[BaseRoute]:
        """The WebSocket and the HTTP broadcast."""
        return [
            WebSocketRoute("/realtime/v1/websocket", self._accept),
            Route("/realtime/v1/api/broadcast", self._http.answer, methods=["POST"]),
            Route(
                "/realtime/v1/api/broadcast/{topic}/events/{event}",
                self._http.answer_single,
                methods=["POST"],
            ),
        ]

    def _deliver(self, sent: StoredBroadcast) -> None:
        topic = f"realtime:{sent.topic}"
        self._hub.publish(
            topic,
            sent.private,
            lambda version: write_broadcast(version, topic, sent.broadcast),
            message=sent.broadcast.meta.get("id"),
        )

    async def _accept(self, websocket: WebSocket) -> None:
        version = _VERSIONS.get(websocket.query_params.get("vsn", "1.0.0"))
        if version is None:
            await websocket.send_denial_response(Response(status_code=403))
            return
        key = websocket.headers.get("x-api-key") or websocket.query_params.get("apikey")
        refusal = self._refusal(key)
        if key is None or refusal is not None:
            # The real server takes its time to say no, and so slows down a client that tries in a loop.
            await anyio.sleep(self._settings.realtime_handshake_refusal_seconds)
            await websocket.send_denial_response(JSONResponse({"error": refusal}, status_code=401))
            return
        await websocket.accept()
        socket = Socket(
            self._services, websocket, version, key,
            idle_seconds=self._settings.realtime_idle_seconds,
            refusal_seconds=self._settings.realtime_join_refusal_seconds,
        )  # fmt: skip
        await socket.run()

    def _refusal(self, key: str | None) -> str | None:
        if key is None:
            return "API key is missing"
        try:
            self._tokens.verify(key)
        except TokenError as error:
            return handshake_refusal(error)
        return None
