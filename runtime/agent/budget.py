"""Budgets: what the handlers of a subscription may cost in a period, over all workers."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal, get_args

from runtime.agent.retry import short_repr
from runtime.errors import DeclarationError

Period = Literal["hour", "day", "month"]
_BUDGET: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?) ?USD ?/ ?(hour|day|month)")


@dataclass(frozen=True, slots=True)
class Budget:
    """A cost in US dollars in an hour, a day or a month of UTC, held by the database over all workers."""

    cost: Decimal
    period: Period

    def __str__(self) -> str:
        return f"{self.cost} USD/{self.period}"


def check_budget(budget: object) -> Budget | None:
    """Return the budget that a text such as "5 USD/day" means, or None for None.

    Raises:
        DeclarationError: it is no such text, or its cost is 0.
    """
    if budget is None:
        return None
    found = _BUDGET.fullmatch(budget) if isinstance(budget, str) else None
    if found is None or not Decimal(found[1]):
        raise DeclarationError(
            '@agent.on(budget=…) must be a text such as "5 USD/day", "0.50 USD/hour" or "100 USD/month", a cost above '
            f"0 in US dollars, not {short_repr(budget)}."
        )
    (period,) = (known for known in get_args(Period) if known == found[2])
    return Budget(Decimal(found[1]), period)
