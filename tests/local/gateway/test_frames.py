"""Frames are read leniently and written exactly."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.local.gateway.frames import BroadcastFrame, Frame, read_binary, read_text, write, write_broadcast


def test_both_versions_say_the_same() -> None:
    frame = Frame("1", "2", "realtime:x", "phx_join", {"a": 1})
    assert read_text('["1", "2", "realtime:x", "phx_join", {"a": 1}, "more"]', "2.0.0") == frame
    named = {"topic": "realtime:x", "event": "phx_join", "payload": {"a": 1}, "ref": "2", "join_ref": "1"}
    assert read_text(json.dumps(named), "1.0.0") == frame
    del named["join_ref"]
    assert read_text(json.dumps(named), "1.0.0") == Frame(None, "2", "realtime:x", "phx_join", {"a": 1})


@pytest.mark.parametrize(
    "text",
    ["hello", '{"a":1}', "[]", "[1,2,3]", "null", "[null,null,1,2,{}]", '{"topic": "phoenix", "event": "x"}'],
)
def test_garbage_is_no_frame(text: str) -> None:
    assert read_text(text, "1.0.0") is None
    assert read_text(text, "2.0.0") is None


def test_text_frames_to_the_letter() -> None:
    assert write("2.0.0", "1", None, "realtime:ü", "system", "{}") == '["1",null,"realtime:ü","system",{}]'
    # Version 1.0.0 has no room for the join_ref.
    expected = '{"ref":"2","event":"phx_close","payload":{},"topic":"realtime:x"}'
    assert write("1.0.0", "1", "2", "realtime:x", "phx_close", "{}") == expected


def test_broadcasts_from_the_database() -> None:
    broadcast = BroadcastFrame("ev", b'{"n": 1}', {"id": "m"})
    head = b'\x04\x0a\x02\x0a\x01realtime:xev{"id":"m"}'
    assert write_broadcast("2.0.0", "realtime:x", broadcast) == head + b'{"n": 1}'
    assert write_broadcast("1.0.0", "realtime:x", broadcast) == (
        '{"ref":null,"event":"broadcast","payload":{"event":"ev","meta":{"id":"m"},"payload":{"n": 1},'
        '"type":"broadcast"},"topic":"realtime:x"}'
    )


def test_what_a_version_cannot_say_is_left_out() -> None:
    assert write_broadcast("1.0.0", "realtime:x", BroadcastFrame("ev", b"\xff", {}, is_json=False)) is None
    assert write_broadcast("2.0.0", "realtime:" + "x" * 250, BroadcastFrame("ev", b"{}", {})) is None


@given(st.binary(max_size=60))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    read_binary(data)
    read_binary(b"\x03" + data)


@given(*[st.text(max_size=20)] * 2, st.binary(max_size=50), st.booleans())
def test_binary_pushes_are_read_back(topic: str, event: str, body: bytes, is_json: bool) -> None:
    if is_json:
        body = json.dumps(body.hex()).encode()
    parts = [b"1", b"2", topic.encode(), event.encode(), b'{"a":1}']
    found = read_binary(bytes([3, *map(len, parts), is_json]) + b"".join(parts) + body)
    assert found == (Frame("1", "2", topic, "broadcast", {}), BroadcastFrame(event, body, {"a": 1}, is_json))
