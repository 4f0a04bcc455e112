"""What does every contestant carry? The same JSON of about 200 bytes."""

import json

_TEXT = "An agent writes a row under a key, and every agent that registered a handler for it is woken when it commits. "


def payload(number: int) -> dict[str, object]:
    """The value of one message."""
    return {"number": number, "kind": "measure", "lane": f"lane-{number % 64}", "text": (_TEXT * 2)[:130]}


def payload_json(number: int) -> str:
    """The same as text."""
    return json.dumps(payload(number))
