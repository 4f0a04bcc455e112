"""A Phoenix server over real WebSockets that misbehaves as told. Its frames are worded as the real server's."""

import json
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import anyio
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

IS_RECENT = tuple(int(part) for part in version("realtime").split(".")[:2]) >= (2, 34)
"""Whether the published client is one over which wake-ups are tried: older ones mistake their bindings."""
_FIELDS = ("join_ref", "ref", "topic", "event", "payload")


def _is_old(connection: ServerConnection) -> bool:
    """Whether a client speaks version 1.0.0 of the protocol, as the published one does."""
    return connection.request is not None and "vsn=1.0.0" in connection.request.path


async def _send(connection: ServerConnection, frame: list[Any]) -> None:
    """Send one frame in the connection's version."""
    old = dict(zip(_FIELDS, frame, strict=True))
    await connection.send(json.dumps(old if _is_old(connection) else frame))


@dataclass
class PhoenixServer:
    """Polite unless told otherwise; every switch may be turned while it runs.

    Attributes:
        connects: how many upgrades were asked for.
        joins: the payloads of every phx_join.
    """

    answers_heartbeats: bool = True
    answers_joins: bool = True
    subscribes: bool = True
    refuses_join_with: str | None = None
    refuses_upgrade_with: tuple[int, bytes] | None = None
    redirects_to: str | None = None
    hangs_up_at_once: bool = False
    port: int = 0
    connects: int = 0
    joins: list[dict[str, Any]] = field(default_factory=list)
    joined_at: list[float] = field(default_factory=list)
    heartbeats: int = 0
    tokens: list[str] = field(default_factory=list)
    connections: list[ServerConnection] = field(default_factory=list)
    topic: str = ""
    is_subscribed: bool = False
    _server: Server | None = None

    @property
    def url(self) -> str:
        """What SUPABASE_URL would be."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; on the same port as before, if there was one."""
        self._server = await serve(
            self._converse,
            "127.0.0.1",
            self.port,
            process_request=self._upgrade,
            compression=None,
            ping_interval=None,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """Close every socket and stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        self.connections.clear()

    async def say(self, event: str, payload: dict[str, Any], *, join_ref: str | None = None) -> None:
        """Send a frame on the channel, to every socket."""
        await self._send_all([join_ref, None, self.topic, event, payload])

    async def insert(self, number: int, **changes: Any) -> None:
        """A row was written."""
        data = {
            "schema": "public",
            "table": "consciousness_stream",
            "type": "INSERT",
            "commit_timestamp": "2026-11-22T18:02:51.032Z",
            "errors": None,
            "columns": [{"name": "id", "type": "int8"}, {"name": "key", "type": "text"}],
            "record": {"id": number, "key": "task.output"},
            **changes,
        }
        await self.say("postgres_changes", {"ids": [45974400], "data": data})

    async def system(self, message: str, status: str = "ok", extension: str = "postgres_changes") -> None:
        """A system message."""
        self.is_subscribed = self.is_subscribed or message == "Subscribed to PostgreSQL"
        payload = {"message": message, "status": status, "extension": extension, "channel": "c"}
        await self.say("system", payload, join_ref="1")

    async def broadcast(self, event: str, payload: dict[str, Any]) -> None:
        """A broadcast from the database: a binary frame of kind 4."""
        topic, name, meta, body = self.topic.encode(), event.encode(), b"{}", json.dumps(payload).encode()
        head = struct.pack("BBBBB", 4, len(topic), len(name), len(meta), 1)
        frame = [
            None,
            None,
            self.topic,
            "broadcast",
            {"event": event, "payload": payload, "type": "broadcast"},
        ]
        await self._send_all(frame, head + topic + name + meta + body)

    async def beat(self, nonce: str) -> None:
        """A nonce came through the database: by broadcast, and as a row."""
        await self.broadcast("nonce", {"nonce": nonce})
        if self.is_subscribed:
            await self.insert(0, schema="runtime", table="beats", record={"nonce": nonce, "worker": "w"})

    def abort(self) -> None:
        """Cut every socket without a word."""
        for connection in self.connections:
            connection.transport.abort()

    async def _send_all(self, frame: list[Any], binary: bytes | None = None) -> None:
        """Send a frame to every socket: one that is just closing misses it, as with a real server."""
        for connection in list(self.connections):
            with suppress(ConnectionClosed):
                if binary is None or _is_old(connection):
                    await _send(connection, frame)
                else:
                    await connection.send(binary)

    async def _upgrade(self, connection: ServerConnection, request: Request) -> Response | None:
        self.connects += 1
        if self.refuses_upgrade_with is None:
            return None
        status, body = self.refuses_upgrade_with
        response = connection.respond(status, "")  # type: ignore[arg-type]
        response.body = body
        del response.headers["Content-Length"]
        response.headers["Content-Length"] = str(len(body))
        if self.redirects_to is not None:
            response.headers["Location"] = self.redirects_to
        return response

    async def _converse(self, connection: ServerConnection) -> None:
        if self.hangs_up_at_once:
            return
        self.connections.append(connection)
        try:
            async for frame in connection:
                given = json.loads(frame)
                await self._answer(
                    connection, [given.get(name) for name in _FIELDS] if isinstance(given, dict) else given
                )
        except ConnectionClosed:
            pass
        finally:
            if connection in self.connections:
                self.connections.remove(connection)

    async def _answer(self, connection: ServerConnection, frame: list[Any]) -> None:
        join_ref, ref, topic, event, payload = frame

        async def reply(status: str, response: dict[str, Any]) -> None:
            await _send(
                connection, [join_ref, ref, topic, "phx_reply", {"status": status, "response": response}]
            )

        if event == "heartbeat":
            self.heartbeats += 1
            if self.answers_heartbeats:
                await reply("ok", {})
        elif event == "phx_leave":
            await reply("ok", {})
            await _send(connection, [join_ref, ref, topic, "phx_close", {}])
        elif event == "access_token":
            self.tokens.append(payload["access_token"])
        elif event == "phx_join":
            self.is_subscribed = False
            self.topic = topic
            self.joins.append(payload)
            self.joined_at.append(time.monotonic())
            if self.refuses_join_with is not None:
                await reply("error", {"reason": self.refuses_join_with})
            elif self.answers_joins:
                asked = payload["config"]["postgres_changes"]
                await reply(
                    "ok",
                    {"postgres_changes": [{"id": 45974400 + n, **each} for n, each in enumerate(asked)]},
                )
                if self.subscribes:
                    await self.system("Subscribed to PostgreSQL")


@dataclass
class Recorder:
    """A listener that notes what it is told, and has its nonces brought back by the server."""

    server: PhoenixServer
    echoes: bool = True
    told: list[tuple[str, ...]] = field(default_factory=list)
    fails_on: set[str] = field(default_factory=set)
    nonces: list[str] = field(default_factory=list)

    def wake(self, why: str, message: int | None = None) -> None:
        """Note it."""
        self._note("wake", why, *([str(message)] if message is not None else []))

    def live(self, path: str) -> None:
        """Note it."""
        self._note("live", path)

    def gap(self, path: str, why: str) -> None:
        """Note it."""
        self._note("gap", path)

    def lost(self, path: str, why: str) -> None:
        """Note it."""
        self._note("lost", path)

    def prove(self, nonce: str) -> None:
        """Keep it for `echo`."""
        self.nonces.append(nonce)

    def _note(self, *what: str) -> None:
        self.told.append(what)
        if what[0] in self.fails_on:
            raise RuntimeError("a listener that raises")

    async def echo(self) -> None:
        """Bring nonces back for ever, as the database does."""
        while True:
            while self.nonces and self.echoes:
                await self.server.beat(self.nonces.pop())
            await anyio.sleep(0.002)

    def count(self, *what: str) -> int:
        """How often this was told."""
        return sum(1 for told in self.told if told[: len(what)] == what)

    async def until(self, condition: Callable[["Recorder"], bool], seconds: float = 60) -> None:
        """Wait for something to have been told."""
        with anyio.fail_after(seconds):
            while not condition(self):
                await anyio.sleep(0.002)


@asynccontextmanager
async def listening(run: Callable[[Recorder], Awaitable[None]], recorder: Recorder) -> AsyncIterator[None]:
    """The wake-ups run, and nonces come back, until the block ends."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, recorder)
        tasks.start_soon(recorder.echo)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()
