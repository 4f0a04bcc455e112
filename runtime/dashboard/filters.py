"""Template filters: times, durations and values as text. The template escapes it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from runtime.client.queries import two_figures
from runtime.message import moment

_PREVIEW_CHARACTERS = 180
_TREE_CHARACTERS = 60_000
# The template calls itself for each level, which takes several frames.
_TREE_DEPTH = 50
# The words of a text and what is between them; what differs around a sign, as in a time or a UUID, is one gap.
_PARTS = re.compile(r"\w+|\W")
_GAPS = re.compile(r"…(?:\W?…)+")
# The states whose names say too little.
_STATES = {"parked": "behind another", "dead": "dead letter"}


def duration(seconds: float | None) -> str:
    """Return a duration with about two figures: 12 ms, 3.4 s, 5 min, 2 h, 3 d."""
    if seconds is None:
        return "–"
    if seconds < 0.00005:
        return "< 0.1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    for size, limit, unit in ((60, 3600, "min"), (3600, 86400, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def age(text: str | None) -> str:
    """Return how long ago a time of the database was: 12 s, 5 min, 2 h, 3 d.

    In whole units, rounded down, as static/dashboard.js goes on with it.
    """
    if text is None:
        return "–"
    seconds = max(0.0, (datetime.now(UTC) - moment(text)).total_seconds())
    for size, limit, unit in ((1, 60, "s"), (60, 3600, "min"), (3600, 86400, "h")):
        if seconds < limit:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds // 86400:.0f} d"


def daytime(text: str | None) -> tuple[str, str]:
    """Return the time of day of a time of the database, in UTC, and its milliseconds.

    If it was on another day, the date stands before it and the milliseconds are left out.
    """
    if text is None:
        return "–", ""
    at = moment(text).astimezone(UTC)
    is_today = at.date() == datetime.now(UTC).date()
    return (f"{at:%H:%M:%S}", f".{at.microsecond // 1000:03}") if is_today else (f"{at:%m-%d %H:%M:%S}", "")


def clock(text: str | None) -> str:
    """Return a time of the database for people, in UTC."""
    return "–" if text is None else f"{moment(text).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def soon(text: str) -> str:
    """Return a future time in UTC, without the date if it is near."""
    slot = moment(text).astimezone(UTC)
    is_near = slot - datetime.now(UTC) < timedelta(hours=20)
    return f"{slot:%H:%M:%S}" if is_near else f"{slot:%a %d %b %H:%M}"


def count(number: float, is_about: bool = False) -> str:
    """Return a number with separated thousands, 12 345, and an estimate with two figures, ≈ 12 000."""
    text = f"≈ {two_figures(number):,}" if is_about and number > 1000 else f"{number:,.0f}"
    return text.replace(",", "\u202f")


def size(size_bytes: int) -> str:
    """A number of bytes: 12 kB, 3.4 MB."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{max(1, size_bytes / 1e3):.0f} kB"


def preview(value: Any) -> str:
    """One line of a value."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _PREVIEW_CHARACTERS else text[: _PREVIEW_CHARACTERS - 1] + "…"


def pretty(value: Any) -> str:
    """A value over several lines."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def rate(per_minute: float) -> str:
    """Return a rate in the unit that reads best."""
    if per_minute >= 600:
        return f"{per_minute / 60:,.0f}/s"
    if per_minute >= 1:
        return f"{per_minute:.0f}/min"
    return f"{per_minute * 60:.1f}/h" if per_minute else ""


def is_tree(value: Any) -> bool:
    """Whether a value is worth folding, and neither so large nor so deep that folding it would be slow, or fail."""
    return (
        isinstance(value, (dict, list))
        and bool(value)
        and len(json.dumps(value)) <= _TREE_CHARACTERS
        and _is_shallow(value)
    )


def common(texts: Sequence[str]) -> str:
    """Return what texts have in common, with an ellipsis for what differs: `no order #…`."""
    parts = [_PARTS.findall(each) for each in dict.fromkeys(texts)]
    least = min(map(len, parts))
    if all(len(each) == least for each in parts):
        kept = [each[0] if len(set(each)) == 1 else "…" for each in zip(*parts, strict=True)]
        return _GAPS.sub("…", "".join(kept))
    alike = [len(set(each)) == 1 for each in zip(*(each[:least] for each in parts), strict=True)]
    begin = alike.index(False) if False in alike else least
    ends = [
        len(set(each)) == 1 for each in zip(*(each[::-1][: least - begin] for each in parts), strict=True)
    ]
    end = ends.index(False) if False in ends else least - begin
    first = parts[0]
    return _GAPS.sub("…", "".join([*first[:begin], "…", *first[len(first) - end :]]))


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(_TREE_DEPTH):
        level = [
            part
            for each in level
            if isinstance(each, (dict, list))
            for part in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return True
    return False


def outcome_class(handled: Mapping[str, Any]) -> str:
    """Return the colour of a state: good, bad, busy, held or calm."""
    state = handled["state"]
    if state == "done":
        return "good"
    if state in ("failed", "dead", "crashed"):
        return "bad"
    if state == "suspended":
        return "held"
    return "busy" if state in ("running", "retrying", "undoing") else "calm"


def conversation_of(message: Mapping[str, Any]) -> str:
    """Return the address of the conversation that a message belongs to."""
    return "/conversation/" + quote(str(message.get("correlation_id") or message["id"]), safe="")


def is_open(handled: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a delivery of a message may change soon."""
    return any(
        each["state"] in ("waiting", "running", "scheduled", "retrying", "parked", "suspended", "undoing")
        for each in handled
    )


FILTERS = {
    "duration": duration, "age": age, "clock": clock, "daytime": daytime, "soon": soon, "count": count,
    "rate": rate, "size": size, "preview": preview, "pretty": pretty,
    "quoted": lambda text: json.dumps(text, ensure_ascii=False), "is_tree": is_tree, "outcome_class": outcome_class,
    "state": lambda state: _STATES.get(state, state), "conversation": conversation_of, "common": common,
}  # fmt: skip
