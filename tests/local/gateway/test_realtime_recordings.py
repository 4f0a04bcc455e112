"""The stand-in says what a real server said: recorded frames, replayed, compared to the letter.

Left out of the comparison are what cannot repeat: times, row numbers, message ids, and the numbers that name
bindings, which must only be used consistently. Frames of different channels may overtake each other. Lines that
are marked `differs` name a row of the table in docs/local-stack.md.
"""

import json
import re
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
import websockets

from runtime.local.faults import FaultyGateway
from runtime.local.gateway.settings import GatewaySettings
from tests.local.gateway.replay import RECORDINGS, Replay, by_topic, read_recording

pytestmark = pytest.mark.anyio

DOCUMENT = Path(__file__).parents[3] / "docs" / "local-stack.md"
NAMES = sorted(path.name for path in RECORDINGS.glob("*.jsonl"))
PAUSES = GatewaySettings.model_fields


@pytest.mark.parametrize("recording", [name for name in NAMES if not name.startswith("handshakes")])
async def test_frames_are_those_recorded(
    recording: str, admin_url: str, serving: Any, seed_table: str
) -> None:
    lines = [line for line in read_recording(recording) if "differs" not in line]
    closed = lines[-1]["frame"] if lines[-1]["dir"] == "closed" else None
    idle_seconds = {"realtime_idle_seconds": 0.5} if closed == "1000" else {}
    async with serving(admin_url, **idle_seconds) as server, FaultyGateway(server.http_url) as faults:
        await server.sql(seed_table)
        version = lines[0]["frame"].partition("&vsn=")[2]
        replay = Replay(server, faults, version)
        key = replay.fill_in(re.findall("<jwt[^>]*>", lines[0]["frame"])[0])
        url = f"ws://127.0.0.1:{faults.port}/realtime/v1/websocket?apikey={key}&vsn={version}"
        async with websockets.connect(url, compression=None) as socket, anyio.create_task_group() as tasks:
            tasks.start_soon(replay.listen, socket)
            await replay.play(lines, socket)
            tasks.cancel_scope.cancel()
    assert by_topic(replay.received) == by_topic([line["frame"] for line in lines if line["dir"] == "recv"])
    assert closed in (None, str(replay.close_code))


@pytest.mark.parametrize("recording", [name for name in NAMES if name.startswith("handshakes")])
async def test_handshakes_are_those_recorded(recording: str, server: Any) -> None:
    lines = read_recording(recording)
    for note, outcome in zip(lines[::2], lines[1::2], strict=True):
        replay = Replay(server, FaultyGateway(server.http_url), "")
        query = replay.fill_in(note["frame"]).partition("?")[2]
        headers = {note["header"]: server.tokens(role="anon")} if "header" in note else {}
        url = f"ws://127.0.0.1:{server.port}/realtime/v1/websocket?{query}"
        if outcome["dir"] == "opened":
            async with websockets.connect(url, additional_headers=headers):
                continue
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with websockets.connect(url):
                pass
        response = refused.value.response
        assert (response.status_code, response.body.decode()) == (outcome["status"], outcome["frame"]), note
        assert outcome["seconds"] in (0, PAUSES["realtime_handshake_refusal_seconds"].default)


async def test_refusals_take_the_time_they_are_set_to(admin_url: str, serving: Any) -> None:
    async with serving(
        admin_url, realtime_handshake_refusal_seconds=0.3, realtime_join_refusal_seconds=0.4
    ) as server:
        began = time.monotonic()
        with pytest.raises(websockets.InvalidStatus):
            async with server.client("abc"):
                pass
        assert time.monotonic() - began >= 0.3
        async with server.client() as client:
            began = time.monotonic()
            await client.send("realtime:x", "phx_join", {"access_token": "abc"})
            assert (await client.receive())[4]["status"] == "error"
            assert time.monotonic() - began >= 0.4
    assert PAUSES["realtime_join_refusal_seconds"].default == 5


def differences() -> dict[str, str]:
    """The table of the document: what differs, and the recordings that show it."""
    rows = re.findall(r"^\| (?!what|-)([^|]+) \| [^|]+ \| [^|]+ \| ([^|]+) \|$", DOCUMENT.read_text(), re.M)
    return {name.strip(): where.strip() for name, where in rows}


def test_the_table_names_every_line_that_differs_and_no_other() -> None:
    marked: dict[str, set[str]] = {}
    for recording in NAMES:
        for line in read_recording(recording):
            if "differs" in line:
                marked.setdefault(line["differs"], set()).add(recording.partition(".")[0])
    listed = {
        name: {where} for name, where in differences().items() if (RECORDINGS / f"{where}.v1.jsonl").exists()
    }
    assert marked == listed


@pytest.mark.parametrize("what", ["presence"])
async def test_what_differs_is_refused_and_not_half_served(server: Any, what: str) -> None:
    for version in ("v1", "v2"):
        lines = read_recording(f"broadcast.{version}.jsonl")
        joins = [line for line in lines if line.get("differs") == what and "phx_join" in line["frame"]]
        replay = Replay(server, FaultyGateway(server.http_url), "")
        key, vsn = server.tokens(role="service_role"), {"v1": "1.0.0", "v2": "2.0.0"}[version]
        url = f"ws://127.0.0.1:{server.port}/realtime/v1/websocket?apikey={key}&vsn={vsn}"
        async with websockets.connect(url) as socket:
            for join in joins:
                await socket.send(replay.fill_in(join["frame"]))
                reply = json.loads(await socket.recv())
                payload = reply[4] if isinstance(reply, list) else reply["payload"]
                assert payload["status"] == "error"
                assert "`supabase start`" in payload["response"]["reason"]
        assert joins
