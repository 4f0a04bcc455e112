"""Limits that hold for all workers together."""

import re
from dataclasses import dataclass

from runtime.agent.retry import short_repr
from runtime.errors import DeclarationError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MOST = 1_000_000_000
_RATE = re.compile(r"(\d{1,7})/([smhd])")


@dataclass(frozen=True, slots=True)
class Rate:
    """An amount of messages in so many seconds, enforced across all workers by the database's clock."""

    amount: int
    seconds: float

    def __str__(self) -> str:
        unit = next(name for name, seconds in _UNITS.items() if seconds == self.seconds)
        return f"{self.amount}/{unit}"


def check_rate(rate: object) -> Rate | None:
    """Return the rate that a text such as "10/s" means, or None for None."""
    if rate is None:
        return None
    found = _RATE.fullmatch(rate) if isinstance(rate, str) else None
    if found is None or int(found[1]) == 0:
        raise DeclarationError(
            f'@agent.on(rate=…) must be a text such as "10/s", "600/m", "1000/h" or "5000/d", not {short_repr(rate)}.'
        )
    return Rate(int(found[1]), _UNITS[found[2]])


def check_concurrency_total(limit: object, batch: int) -> int | None:
    """Return the limit, if it is at least the size of a batch."""
    if limit is None:
        return None
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= _MOST:
        raise DeclarationError(
            f"@agent.on(concurrency_total=…) must be a whole number of 1 or more, at most {_MOST:,}, "
            f"not {short_repr(limit)}."
        )
    if limit < batch:
        raise DeclarationError(
            f"@agent.on(batch={batch}, concurrency_total={limit}) could never fill a batch: concurrency_total counts "
            f"messages, so say {batch} or more."
        )
    return limit
