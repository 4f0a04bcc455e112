"""The frames of the Realtime protocol, versions 1.0.0 and 2.0.0, in text and in binary.

Payloads that carry rows are built as JSON text and never parsed again: a bigint must keep its digits.
"""

import json
from dataclasses import dataclass
from typing import Any, Final, Literal

Version = Literal["1.0.0", "2.0.0"]

_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode
MAX_BROADCAST_BYTES: Final = 3_000_500
"""Larger payloads of broadcasts are refused."""

_MAX_DEPTH: Final = 400
_PUSH: Final = 3
_BROADCAST: Final = 4
_JSON_ENCODING: Final = 1


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame from a client."""

    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BroadcastFrame:
    """The content of a broadcast: `body` is JSON text, or any bytes if not `is_json`; `meta` may be empty."""

    event: str
    body: bytes
    meta: dict[str, Any]
    is_json: bool = True


def compact(value: Any) -> str:
    """JSON as the server writes it: no spaces, keys in order, nothing escaped without need."""
    return _encode(value)


def read_json(text: str | bytes) -> Any:
    """Return a value of JSON that can be written again, so that it cannot end the sockets of other clients.

    Raises:
        ValueError: it is no JSON, nests too deeply, or holds half a character (a lone surrogate).
    """
    try:
        value = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    if _depth_exceeds(value, _MAX_DEPTH):
        raise ValueError("it nests too deeply")
    if "\\ud" in (text if isinstance(text, str) else text.decode("latin-1")).lower():
        compact(value).encode()
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _depth_exceeds(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            member
            for each in level
            if isinstance(each, (dict, list))
            for member in (each.values() if isinstance(each, dict) else each)
            if isinstance(member, (dict, list))
        ]
        if not level:
            return False
    return True


def read_text(text: str, version: Version) -> Frame | None:
    """The frame in this text, or None when it is none: the server drops garbage without a word."""
    try:
        data = read_json(text)
    except ValueError:
        return None
    if version == "2.0.0":
        if not isinstance(data, list) or len(data) < 5:
            return None
        join_ref, ref, topic, event, payload = data[:5]
    else:
        if not isinstance(data, dict) or not {"topic", "event", "payload", "ref"} <= data.keys():
            return None
        join_ref, ref, topic, event = data.get("join_ref"), data["ref"], data["topic"], data["event"]
        payload = data["payload"]
    if not isinstance(topic, str) or not isinstance(event, str):
        return None
    # A payload that is no object is treated as an empty one.
    return Frame(_ref(join_ref), _ref(ref), topic, event, payload if isinstance(payload, dict) else {})


def _ref(value: Any) -> str | None:
    return None if value is None else str(value)


def read_binary(data: bytes) -> tuple[Frame, BroadcastFrame] | None:
    """A client's binary broadcast: the frame it stands for and its contents, or None when it is none."""
    if len(data) < 7 or data[0] != _PUSH:
        return None
    parts: list[bytes] = []
    offset = 7
    for length in data[1:6]:
        parts.append(data[offset : offset + length])
        offset += length
    if offset > len(data):
        return None
    try:
        join_ref, ref, topic, event, meta = (part.decode() for part in parts)
        about = read_json(meta) if meta else {}
        if data[6] == _JSON_ENCODING:
            read_json(data[offset:])
    except ValueError:
        return None
    frame = Frame(join_ref or None, ref or None, topic, "broadcast", {})
    return frame, BroadcastFrame(
        event, data[offset:], about if isinstance(about, dict) else {}, data[6] == _JSON_ENCODING
    )


def write(
    version: Version, join_ref: str | None, ref: str | None, topic: str, event: str, payload: str
) -> str:
    """A text frame; `payload` is JSON text. Version 1.0.0 leaves the join_ref out."""
    if version == "2.0.0":
        return f"[{compact(join_ref)},{compact(ref)},{compact(topic)},{compact(event)},{payload}]"
    return f'{{"ref":{compact(ref)},"event":{compact(event)},"payload":{payload},"topic":{compact(topic)}}}'


def write_broadcast(version: Version, topic: str, broadcast: BroadcastFrame) -> str | bytes | None:
    """A broadcast from the database or from a binary push: binary in version 2.0.0, text in 1.0.0.

    Returns None when it cannot be said: names above 255 bytes in binary, bytes that are no JSON in text.
    """
    if version == "1.0.0":
        if not broadcast.is_json:
            return None
        meta = f'"meta":{compact(broadcast.meta)},' if broadcast.meta else ""
        event, body = compact(broadcast.event), broadcast.body.decode()
        payload = f'{{"event":{event},{meta}"payload":{body},"type":"broadcast"}}'
        return write(version, None, None, topic, "broadcast", payload)
    meta_text = compact(broadcast.meta) if broadcast.meta else ""
    names = [topic.encode(), broadcast.event.encode(), meta_text.encode()]
    if any(len(name) > 255 for name in names):
        return None
    head = bytes([_BROADCAST, *map(len, names), _JSON_ENCODING if broadcast.is_json else 0])
    return head + b"".join(names) + broadcast.body
