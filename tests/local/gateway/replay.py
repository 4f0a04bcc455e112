"""How is a recording played against a server and compared? Line by line; recordings/README.md says what they mean."""

import json
import re
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import websockets

from runtime.local.faults import FaultyGateway

RECORDINGS = Path(__file__).parent / "recordings"
Line = dict[str, Any]

_CLAIM = re.compile(r"<jwt ?(?P<words>[^>]*)>")
_PLAYED = frozenset({"send", "sql", "post", "fault", "swallowed", "stop"})


def read_recording(name: str) -> list[Line]:
    """The lines of a recording."""
    return [json.loads(line) for line in (RECORDINGS / name).read_text().splitlines()]


def is_stalled(lines: list[Line], line: Line) -> bool:
    """Whether this was sent while the socket stood still: then nothing may be waited for."""
    before = lines[: lines.index(line)]
    return any('realtime:bad"' in other["frame"] for other in before[-2:])


class Replay:
    """One recording played against a server, by way of a proxy that can break it on order."""

    def __init__(self, server: Any, faults: FaultyGateway, version: str) -> None:
        self.server = server
        self.faults = faults
        self.version = version
        self.received: list[str] = []
        self.close_code: int | None = None
        self._tokens: dict[str, str] = {}
        self._arrived = anyio.Event()

    def fill_in(self, text: str) -> str:
        """The text with tokens behind `<jwt role=… sub=… seconds=… expired | forged | endless>`, and all of a value."""
        return _CLAIM.sub(self._token, text).replace("<y repeated>", "y" * 3_200_000)

    def _token(self, match: re.Match[str]) -> str:
        if match[0] in self._tokens:
            return self._tokens[match[0]]
        words = match["words"].split()
        claims: dict[str, Any] = dict(word.split("=", 1) for word in words if "=" in word)
        seconds = float(claims.pop("seconds", -5 if "expired" in words else 3600))
        secret = {"secret": "x" * 40} if "forged" in words else {}
        if "endless" in words:
            claims["exp"] = None
        token = self._tokens[match[0]] = self.server.tokens(seconds=seconds, **secret, **claims)
        return token

    async def listen(self, socket: websockets.ClientConnection) -> None:
        """Gather what comes until the socket is closed."""
        with suppress(websockets.ConnectionClosed):
            async for message in socket:
                self.received.append(message if isinstance(message, str) else message.decode())
                self._arrived.set()
        self.close_code = socket.close_code
        self._arrived.set()

    async def wait_for(self, count: int) -> None:
        """Return when so many frames have come."""
        with anyio.fail_after(60):
            while len(self.received) < count:
                self._arrived = anyio.Event()
                await self._arrived.wait()

    async def play(self, lines: list[Line], socket: websockets.ClientConnection) -> None:
        """Do what the recording did, and before each step wait until all is there that had come in it."""
        due = 0
        for line in lines:
            if line["dir"] == "recv":
                due += 1
            elif line["dir"] in _PLAYED:
                if not is_stalled(lines, line):
                    await self.wait_for(due)
                await getattr(self, f"_{line['dir']}")(line, socket)
        await self.wait_for(due)
        if lines[-1]["dir"] == "closed":
            with anyio.fail_after(60):
                while self.close_code is None:
                    self._arrived = anyio.Event()
                    await self._arrived.wait()
        else:
            await self._fence(socket, due)

    async def _send(self, line: Line, socket: websockets.ClientConnection) -> None:
        await socket.send(self.fill_in(line["frame"]))

    async def _sql(self, line: Line, _: websockets.ClientConnection) -> None:
        await self.server.sql(line["frame"])

    async def _post(self, line: Line, _: websockets.ClientConnection) -> None:
        headers = {"apikey": self.server.tokens(role="service_role")}
        async with httpx.AsyncClient(base_url=self.server.http_url, headers=headers) as http:
            answer = await http.post("/realtime/v1/api/broadcast", json=json.loads(line["frame"]))
        assert (answer.status_code, answer.text) == (line["status"], line["body"])

    async def _fault(self, line: Line, _: websockets.ClientConnection) -> None:
        getattr(self.faults, line["frame"])()

    async def _swallowed(self, line: Line, _: websockets.ClientConnection) -> None:
        with anyio.fail_after(60):
            while self.faults.struck["swallow"] < int(line["frame"]):
                await anyio.sleep(0.005)

    async def _stop(self, _line: Line, _: websockets.ClientConnection) -> None:
        self.server.stop()

    async def _fence(self, socket: websockets.ClientConnection, due: int) -> None:
        # Whatever should not have come would have come before the answer to this.
        fence = [None, "fence", "phoenix", "heartbeat", {}]
        named = dict(zip(["topic", "event", "payload", "ref"], [*fence[2:], fence[1]], strict=True))
        await socket.send(json.dumps(named if self.version == "1.0.0" else fence))
        await self.wait_for(due + 1)
        assert "fence" in self.received.pop()


def by_topic(frames: list[str]) -> dict[str, list[str]]:
    """The frames of each channel in their order, without what cannot repeat."""
    names: dict[str, str] = {}
    found: dict[str, list[str]] = defaultdict(list)
    for frame in frames:
        topic = re.search(r"realtime:(?:[a-z_0-9-]+?(?=ev\{)|room:1|[a-z_0-9-]*)|phoenix|other:x", frame)
        assert topic is not None, frame
        found[topic[0]].append(_plain(frame, names))
    return dict(found)


def _plain(frame: str, names: dict[str, str]) -> str:
    frame = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+(\+00:00|Z)", "<time>", frame)
    frame = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>", frame)
    frame = re.sub(r'("record": ?\{"id": )\d+', r"\1<row>", frame)
    frame = re.sub(r"expired \d+ seconds", "expired <n> seconds", frame)

    def name(match: re.Match[str]) -> str:
        return names.setdefault(match[0], f"<binding {len(names)}>")

    frame = re.sub(r'(?<=\{"id":)\d+', name, frame)
    # The order in which the ids of one frame come is the database's whim.
    return re.sub(
        r'(?<="ids":\[)[\d,]+', lambda ids: ",".join(sorted(re.sub(r"\d+", name, ids[0]).split(","))), frame
    )
