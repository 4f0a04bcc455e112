"""The frames of the Phoenix protocol, version 2.0.0."""

import json
from typing import Any, NamedTuple

from runtime.encoding.json import decode

VERSION = "2.0.0"
_BINARY_BROADCAST = 4
_JSON = 1


class PhoenixFrame(NamedTuple):
    """One frame; `payload` is an empty object if the server sent none."""

    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: dict[str, Any]

    def text(self) -> str:
        """Return the frame as text."""
        return json.dumps(self, separators=(",", ":"))


def read_frame(frame: str | bytes) -> PhoenixFrame | None:
    """Return a frame from the server, or None if it is malformed; no frame raises."""
    try:
        if isinstance(frame, bytes):
            return _broadcast(frame)
        join_ref, ref, topic, event, payload = decode(frame)[:5]
    except (ValueError, TypeError, RecursionError, KeyError):
        return None
    return PhoenixFrame(join_ref, ref, topic, event, payload if isinstance(payload, dict) else {})


def _broadcast(frame: bytes) -> PhoenixFrame | None:
    """A broadcast from the database: kind, four lengths, then topic, event, meta and payload."""
    if len(frame) < 5 or frame[0] != _BINARY_BROADCAST:
        return None
    topic_size, event_size, meta_size, encoding = frame[1:5]
    start = 5 + topic_size
    topic, event = frame[5:start].decode(), frame[start : start + event_size].decode()
    data = frame[start + event_size + meta_size :]
    payload = decode(data) if encoding == _JSON else None
    return PhoenixFrame(None, None, topic, "broadcast", {"event": event, "payload": payload})
