"""A Realtime stand-in over a fresh database, and a client that says exactly what a test wants said."""

import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import asyncpg
import jwt
import pytest
import uvicorn
import websockets
from pydantic import SecretStr
from starlette.applications import Starlette

from runtime.local.gateway.realtime import Realtime
from runtime.local.gateway.rest import RestApi
from runtime.local.gateway.settings import GatewaySettings
from runtime.local.gateway.tokens import Tokens
from runtime.local.keys import SUPERUSER

SECRET = "super-secret-jwt-token-with-at-least-32-characters-long"

# The seed's table as it was when the frames were recorded, whatever the migrations make of it later.
SEED_TABLE = """
drop table if exists public.consciousness_stream cascade;
create table public.consciousness_stream (
    id bigint generated always as identity primary key,
    key text, value jsonb, agent text, processed boolean default false, created_at timestamptz default now()
);
alter publication supabase_realtime add table public.consciousness_stream;
grant select on public.consciousness_stream to anon, authenticated, service_role;
"""


def make_token(*, secret: str = SECRET, seconds: float = 3600, **claims: Any) -> str:
    """A JWT that lives for so many seconds; an `exp` of None leaves the claim out."""
    claims = {"exp": int(time.time() + seconds), **claims}
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, secret, "HS256")


class QuietServer(uvicorn.Server):
    """uvicorn without its signal handlers: those of the test run stay."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.has_started = anyio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.has_started.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class Client:
    """One WebSocket speaking version 2.0.0, frames as lists; binary ones as bytes."""

    socket: websockets.ClientConnection
    refs: int = 0

    async def send(self, topic: str, event: str, payload: Any = None, join_ref: str | None = None) -> str:
        """Send a frame; returns its ref."""
        self.refs += 1
        ref = str(self.refs)
        frame = [ref if event == "phx_join" else join_ref, ref, topic, event, payload or {}]
        await self.socket.send(json.dumps(frame))
        return ref

    async def receive(self, seconds: float = 60) -> Any:
        """The next frame, within the deadline."""
        with anyio.fail_after(seconds):
            message = await self.socket.recv()
        return json.loads(message) if isinstance(message, str) else message

    async def join(
        self,
        topic: str,
        *bindings: dict[str, Any],
        private: bool = False,
        token: str | None = None,
        **broadcast: bool,
    ) -> str:
        """Join, and wait for the reply and, with bindings, for the system message; returns the join_ref."""
        config = {"broadcast": broadcast, "private": private, "postgres_changes": list(bindings)}
        payload = {"config": config} | ({"access_token": token} if token else {})
        ref = await self.send(topic, "phx_join", payload)
        reply = await self.receive()
        assert reply[4]["status"] == "ok", reply
        if bindings:
            system = await self.receive()
            assert system[4]["message"] == "Subscribed to PostgreSQL", system
        return ref


@dataclass
class Server:
    """A running stand-in."""

    port: int
    database_url: str
    realtime: Realtime
    rest: RestApi
    stop: Callable[[], None]
    tokens: Any = field(default=staticmethod(make_token))

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def client(self, key: str | None = None, *, port: int | None = None) -> AsyncIterator[Client]:
        """A socket opened with this key, as service_role without one; by way of another port if one is given."""
        key = key or make_token(role="service_role")
        url = f"ws://127.0.0.1:{port or self.port}/realtime/v1/websocket?apikey={key}&vsn=2.0.0"
        async with websockets.connect(url, max_size=None) as socket_:
            yield Client(socket_)

    async def sql(self, text: str) -> None:
        """Run statements in one transaction and commit."""
        connection = await asyncpg.connect(self.database_url)
        try:
            await connection.execute(text)
        finally:
            await connection.close()


@asynccontextmanager
async def serve(database_url: str, **changed: float) -> AsyncIterator[Server]:
    """A stand-in on a free port, with short waits."""
    quick = {
        "changes_poll_seconds": 0.05,
        "realtime_handshake_refusal_seconds": 0.01,
        "realtime_join_refusal_seconds": 0.2,
    }
    settings = GatewaySettings(database_url=SecretStr(database_url), **{**quick, **changed})
    tokens = Tokens(SECRET, {"sb_secret_x": "service_role", "sb_publishable_x": "anon"})
    realtime, rest = Realtime(settings, tokens), RestApi(settings, tokens)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            Starlette(routes=[*rest.routes(), *realtime.routes()]), log_level="warning", lifespan="off",
            ws_ping_interval=None, ws_per_message_deflate=False, ws_max_size=5_000_000,
        )  # fmt: skip
        server = QuietServer(config)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(realtime.run)
            tasks.start_soon(server.serve, [listener])
            try:
                with anyio.fail_after(60):
                    await realtime.wait_live()
                    await server.has_started.wait()
                # As a signal would stop it: uvicorn closes what is open, and then ends.
                yield Server(
                    listener.getsockname()[1],
                    database_url,
                    realtime,
                    rest,
                    partial(setattr, server, "should_exit", True),
                )
            finally:
                server.should_exit = server.force_exit = True
                tasks.cancel_scope.cancel()
                rest.close()


@pytest.fixture
def admin_url(database: str) -> str:
    """The fresh database as the superuser, whom the gateway needs to be."""
    return database.replace("://postgres:", f"://{SUPERUSER}:")


@pytest.fixture
async def server(admin_url: str) -> AsyncIterator[Server]:
    async with serve(admin_url) as running:
        await running.sql(SEED_TABLE)
        yield running


@pytest.fixture
def seed_table() -> str:
    """SQL of the seed's table, for tests that start their own stand-in."""
    return SEED_TABLE


@pytest.fixture
def serving() -> Any:
    """`serve`, for tests that need other settings or several stand-ins."""
    return serve
