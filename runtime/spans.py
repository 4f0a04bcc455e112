"""How do people write a span of time? `90`, `90s`, `15m`, `12h`, `7d` or `2w`."""

import re

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")


def is_span(text: str) -> bool:
    """Whether this is a span of time."""
    return _SPAN.fullmatch(text.strip().lower()) is not None


def seconds_of(text: str) -> float:
    """Return the seconds that a span of time has.

    Raises:
        ValueError: the text is none.
    """
    found = _SPAN.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} is no span of time; write 90s, 15m, 12h, 7d or 2w")
    return float(found[1]) * _SECONDS[found[2] or "s"]
