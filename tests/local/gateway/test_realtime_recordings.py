"""The stand-in says what a real server said: recorded frames, replayed, compared to the letter.

Left out of the comparison are what cannot repeat: times, row numbers, message ids, and the numbers that name
bindings, which must only be used consistently. Frames of different channels may overtake each other.
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import anyio
import pytest
import websockets

pytestmark = pytest.mark.anyio

RECORDINGS = Path(__file__).parent / "recordings"
CLAIM = re.compile(r"<jwt ?(?P<words>[^>]*)>")


class Replay:
    """One recording played against a server."""

    def __init__(self, server: Any, version: str) -> None:
        self.server = server
        self.version = version
        self.tokens: dict[str, str] = {}
        self.received: list[str] = []
        self.arrived = anyio.Event()

    def token(self, match: re.Match[str]) -> str:
        """The token that stands behind `<jwt role=… sub=… seconds=… expired | forged | endless>`."""
        if match[0] in self.tokens:
            return self.tokens[match[0]]
        words = match["words"].split()
        claims: dict[str, Any] = dict(word.split("=", 1) for word in words if "=" in word)
        seconds = float(claims.pop("seconds", -5 if "expired" in words else 3600))
        secret = {"secret": "x" * 40} if "forged" in words else {}
        if "endless" in words:
            claims["exp"] = None
        token = self.tokens[match[0]] = self.server.tokens(seconds=seconds, **secret, **claims)
        return token

    async def listen(self, socket: websockets.ClientConnection) -> None:
        async for message in socket:
            self.received.append(message if isinstance(message, str) else message.decode())
            self.arrived.set()

    async def wait_for(self, count: int) -> None:
        with anyio.fail_after(10):
            while len(self.received) < count:
                self.arrived = anyio.Event()
                await self.arrived.wait()

    async def play(self, lines: list[dict[str, str]], socket: websockets.ClientConnection) -> None:
        """Send, run SQL, and before each wait until all is there that had come in the recording."""
        due = 0
        for line in lines:
            if line["dir"] == "recv":
                due += 1
            elif line["dir"] in {"send", "sql"}:
                if not is_stalled(lines, line):
                    await self.wait_for(due)
                if line["dir"] == "send":
                    await socket.send(CLAIM.sub(self.token, line["frame"]))
                else:
                    await self.server.sql(line["frame"])
        await self.wait_for(due)
        # Whatever should not have come would have come before the answer to this.
        fence = [None, "fence", "phoenix", "heartbeat", {}]
        if self.version == "1.0.0":
            await socket.send(
                json.dumps(
                    dict(zip(["topic", "event", "payload", "ref"], [*fence[2:], fence[1]], strict=True))
                )
            )
        else:
            await socket.send(json.dumps(fence))
        await self.wait_for(due + 1)
        assert "fence" in self.received.pop()


def is_stalled(lines: list[dict[str, str]], line: dict[str, str]) -> bool:
    """Whether this was sent while the socket stood still: then nothing may be waited for."""
    before = lines[: lines.index(line)]
    return any('realtime:bad"' in other["frame"] for other in before[-2:])


def plain(frame: str, names: dict[str, str]) -> str:
    """The frame without what cannot repeat."""
    frame = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+(\+00:00|Z)", "<time>", frame)
    frame = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>", frame)
    frame = re.sub(r'(?<="record":\{)"id": \d+', '"id": <row>', frame)
    frame = re.sub(r"expired \d+ seconds", "expired <n> seconds", frame)

    def name(match: re.Match[str]) -> str:
        return names.setdefault(match[0], f"<binding {len(names)}>")

    frame = re.sub(r'(?<=\{"id":)\d+', name, frame)
    # The order in which the ids of one frame come is the database's whim.
    return re.sub(
        r'(?<="ids":\[)[\d,]+', lambda ids: ",".join(sorted(re.sub(r"\d+", name, ids[0]).split(","))), frame
    )


def by_topic(frames: list[str]) -> dict[str, list[str]]:
    """The frames of each channel in their order."""
    names: dict[str, str] = {}
    found: dict[str, list[str]] = defaultdict(list)
    for frame in frames:
        topic = re.search(r"realtime:(?:[a-z_0-9-]+?(?=ev\{)|room:1|[a-z_0-9-]*)|phoenix|other:x", frame)
        assert topic is not None, frame
        found[topic[0]].append(plain(frame, names))
    return dict(found)


@pytest.mark.parametrize("recording", sorted(path.name for path in RECORDINGS.glob("*.jsonl")))
async def test_frames_are_those_recorded(recording: str, server: Any) -> None:
    lines = [json.loads(line) for line in (RECORDINGS / recording).read_text().splitlines()]
    version = lines[0]["frame"].partition("&vsn=")[2]
    replay = Replay(server, version)
    words = CLAIM.search(lines[0]["frame"])
    assert words is not None
    key = replay.token(words)
    url = f"ws://127.0.0.1:{server.port}/realtime/v1/websocket?apikey={key}&vsn={version}"
    async with websockets.connect(url) as socket, anyio.create_task_group() as tasks:
        tasks.start_soon(replay.listen, socket)
        await replay.play(lines, socket)
        tasks.cancel_scope.cancel()
    recorded = by_topic([line["frame"] for line in lines if line["dir"] == "recv"])
    assert by_topic(replay.received) == recorded
