"""A client of a PostgreSQL walsender, with the few messages that logical replication needs.

asyncpg does not speak the replication protocol, hence this client: start-up, passwords (clear text, MD5,
SCRAM), simple queries, and the two-way copy that carries the log.
"""

import asyncio
import hashlib
import ssl
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

import anyio

from runtime.local.gateway.scram import ScramClient, ScramRefused

_CONNECT_SECONDS: Final = 10.0
_STATUS_SECONDS: Final = 10.0
_SILENCE_SECONDS: Final = 30.0
_PG_EPOCH_SECONDS: Final = 946_684_800
_WAL: Final = struct.Struct("!qqq")
_STATUS: Final = struct.Struct("!cqqqqB")


class WalsenderError(Exception):
    """The walsender refused, or the connection to it is gone. `code` is the SQLSTATE where there was one."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Address:
    """The address of the server and the log-in; the repr never shows the password."""

    host: str
    port: int
    user: str
    password: str
    database: str
    tls: ssl.SSLContext | None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a `postgresql://` URL. A host that begins with a slash is the folder of a Unix socket."""
        parts = urlsplit(url)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        user = unquote(parts.username or query.get("user", "postgres"))
        return cls(
            host=unquote(parts.hostname or query.get("host", "127.0.0.1")),
            port=parts.port or int(query.get("port", "5432")),
            user=user,
            password=unquote(parts.password or query.get("password", "")),
            database=unquote(parts.path.lstrip("/")) or user,
            tls=_tls(query.get("sslmode", "prefer")),
        )

    def __repr__(self) -> str:
        return f"Address({self.host}:{self.port}/{self.database})"


class Walsender:
    """One replication connection. Made by `connect`; `close` it when done."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._read_up_to = 0

    @classmethod
    async def connect(cls, address: Address) -> Self:
        """Log in to a walsender of this database.

        Raises:
            WalsenderError: not reached, or the login was refused.
        """
        try:
            with anyio.fail_after(_CONNECT_SECONDS):
                sender = cls(*await _open(address))
                try:
                    await sender._log_in(address)
                except BaseException:
                    sender.close()
                    raise
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ScramRefused) as error:
            raise WalsenderError(f"No walsender at {address.host}:{address.port}: {error!r}") from error
        return sender

    def close(self) -> None:
        """Drop the connection at once; the server drops the temporary slot with it."""
        self._writer.transport.abort()

    async def start(self, slot: str, publication: str) -> None:
        """Make a temporary slot and start streaming it: later commits will be received.

        Raises:
            WalsenderError: the server refused, or the connection is gone.
        """
        try:
            await self._query(
                f'CREATE_REPLICATION_SLOT "{slot}" TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT'
            )
            names = '"' + publication.replace('"', '""') + '"'
            await self._query(
                f'START_REPLICATION SLOT "{slot}" LOGICAL 0/0 '
                f"(proto_version '1', publication_names '{names.replace(chr(39), chr(39) * 2)}')"
            )
        except (OSError, asyncio.IncompleteReadError) as error:
            raise WalsenderError(f"The walsender is gone: {error!r}") from error

    async def messages(self) -> AsyncIterator[list[bytes]]:
        """The plugin's messages, in lists of those that arrived together, until the connection is lost.

        Raises:
            WalsenderError: the connection is lost, or the server said nothing for 30 s though asked.
        """
        buffered = bytearray()
        heard_at = reported_at = time.monotonic()
        while True:
            chunk = b""
            try:
                with anyio.move_on_after(_STATUS_SECONDS) as waiting:
                    chunk = await self._reader.read(1 << 18)
            except OSError as error:
                raise WalsenderError(f"The walsender is gone: {error!r}") from error
            now = time.monotonic()
            if chunk:
                heard_at = now
                buffered += chunk
                arrived, wants_status = self._split(buffered)
                if arrived:
                    yield arrived
                # A reader with data at hand does not give way; a huge transaction must not stop the gateway.
                await anyio.lowlevel.checkpoint()
            elif not waiting.cancelled_caught:
                raise WalsenderError("The walsender closed the connection")
            else:
                wants_status = True
            if now - heard_at > _SILENCE_SECONDS:
                raise WalsenderError(f"The walsender has said nothing for {_SILENCE_SECONDS:.0f} s")
            if wants_status or now - reported_at > _STATUS_SECONDS:
                reported_at = now
                await self._report(asks_reply=not chunk)

    def _split(self, data: bytearray) -> tuple[list[bytes], bool]:
        """Take the plugin's whole messages out of `data`; also whether the server asked where we are."""
        arrived: list[bytes] = []
        wants_status = False
        offset = 0
        while offset + 5 <= len(data):
            end = offset + 1 + int.from_bytes(data[offset + 1 : offset + 5], "big")
            if end > len(data):
                break
            kind, body = data[offset : offset + 1], bytes(data[offset + 5 : end])
            offset = end
            if kind == b"d" and body[:1] == b"w":
                arrived.append(body[25:])
                self._read_up_to = max(self._read_up_to, _WAL.unpack_from(body, 1)[0])
            elif kind == b"d" and body[:1] == b"k":
                # Everything before a keep-alive was passed on: transactions are never interleaved.
                self._read_up_to = max(self._read_up_to, int.from_bytes(body[1:9], "big"))
                wants_status = wants_status or body[17] == 1
            elif kind == b"E":
                raise _refusal(body)
            elif kind == b"c":
                raise WalsenderError("The walsender ended the stream")
        del data[:offset]
        return arrived, wants_status

    async def _report(self, *, asks_reply: bool) -> None:
        # The server keeps the log from here on, and at its shutdown waits until we have read all of it.
        at = self._read_up_to
        clock_us = int((time.time() - _PG_EPOCH_SECONDS) * 1_000_000)
        try:
            await self._send(b"d", _STATUS.pack(b"r", at, at, at, clock_us, asks_reply))
        except OSError as error:
            raise WalsenderError(f"The walsender is gone: {error!r}") from error

    async def _query(self, sql: str) -> None:
        """Run one command, and return when it ended or began to stream."""
        await self._send(b"Q", sql.encode() + b"\0")
        failure: WalsenderError | None = None
        while True:
            kind, body = await self._receive()
            if kind == b"E":
                failure = _refusal(body)
            elif kind in {b"Z", b"W"}:
                if failure is not None:
                    raise failure
                return

    async def _log_in(self, address: Address) -> None:
        settings = {
            "user": address.user, "database": address.database, "replication": "database",
            "application_name": "agent-runtime gateway", "client_encoding": "UTF8",
            # The frames carry times as ISO 8601 in UTC, independent of the database's settings.
            "options": "-c datestyle=ISO -c intervalstyle=postgres -c timezone=UTC -c extra_float_digits=1",
        }  # fmt: skip
        body = b"".join(f"{name}\0{value}\0".encode() for name, value in settings.items()) + b"\0"
        self._writer.write(struct.pack("!ii", len(body) + 8, 196_608) + body)
        scram = ScramClient(address.password)
        while True:
            kind, body = await self._receive()
            if kind == b"E":
                raise _refusal(body)
            if kind == b"R":
                await self._answer_challenge(address, scram, int.from_bytes(body[:4], "big"), body[4:])
            elif kind == b"Z":
                return

    async def _answer_challenge(self, address: Address, scram: ScramClient, method: int, body: bytes) -> None:
        match method:
            case 0:
                pass
            case 3:
                await self._send(b"p", address.password.encode() + b"\0")
            case 5:
                inner = hashlib.md5((address.password + address.user).encode()).hexdigest()
                outer = hashlib.md5(inner.encode() + body[:4]).hexdigest()
                await self._send(b"p", f"md5{outer}".encode() + b"\0")
            case 10 if scram.mechanism.encode() in body.split(b"\0"):
                first = scram.first()
                await self._send(
                    b"p", scram.mechanism.encode() + b"\0" + struct.pack("!i", len(first)) + first
                )
            case 11:
                await self._send(b"p", scram.final(body))
            case 12:
                scram.check(body)
            case _:
                raise WalsenderError(
                    f"The server asks for a way to log in that is not served here ({method})"
                )

    async def _send(self, kind: bytes, body: bytes) -> None:
        self._writer.write(kind + struct.pack("!i", len(body) + 4) + body)
        await self._writer.drain()

    async def _receive(self) -> tuple[bytes, bytes]:
        header = await self._reader.readexactly(5)
        return header[:1], await self._reader.readexactly(int.from_bytes(header[1:], "big") - 4)


async def _open(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.host.startswith("/"):
        return await asyncio.open_unix_connection(f"{address.host}/.s.PGSQL.{address.port}", limit=1 << 20)
    reader, writer = await asyncio.open_connection(address.host, address.port, limit=1 << 20)
    if address.tls is not None:
        writer.write(struct.pack("!ii", 8, 80_877_103))
        if await reader.readexactly(1) != b"S":
            writer.transport.abort()
            raise WalsenderError("The server does not speak TLS, which the URL asks for")
        await writer.start_tls(address.tls, server_hostname=address.host)
    return reader, writer


def _tls(mode: str) -> ssl.SSLContext | None:
    if mode not in {"require", "verify-ca", "verify-full"}:
        return None
    context = ssl.create_default_context()
    context.check_hostname = mode == "verify-full"
    if mode == "require":  # as libpq means it: encrypted, whoever it is
        context.verify_mode = ssl.CERT_NONE
    return context


def _refusal(body: bytes) -> WalsenderError:
    fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
    return WalsenderError(fields.get(b"M", "no reason given"), fields.get(b"C"))
