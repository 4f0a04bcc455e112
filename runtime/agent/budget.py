"""Budgets: what the handlers of a subscription may cost in a period, over all workers."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal, get_args

from runtime.agent.retry import short_repr
from runtime.errors import DeclarationError

Period = Literal["hour", "day", "month"]
_MOST_SEGMENTS: Final = 32
_BUDGET: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?) ?USD ?/ ?(hour|day|month)")


@dataclass(frozen=True, slots=True)
class Budget:
    """A cost in US dollars in an hour, a day or a month of UTC, held by the database over all workers.

    Attributes:
        per: each prefix of so many segments of the key has it for itself; None if it is for all messages together.
    """

    cost: Decimal
    period: Period
    per: int | None = None

    def __str__(self) -> str:
        return f"{self.cost} USD/{self.period}"


def check_budget(budget: object, per: object = None, *, ordered: bool = False) -> Budget | None:
    """Return the budget that a text such as "5 USD/day" means, or None for None.

    Args:
        budget: the text.
        per: for how many first segments of the key each prefix has the budget for itself.
        ordered: whether the handler is ordered.

    Raises:
        DeclarationError: it is no such text, or its cost is 0, or `per` makes no sense.
    """
    if budget is None:
        if per is not None:
            raise DeclarationError('@agent.on(budget_per=…) needs a budget: budget="5 USD/day".')
        return None
    found = _BUDGET.fullmatch(budget) if isinstance(budget, str) else None
    if found is None or not Decimal(found[1]):
        raise DeclarationError(
            '@agent.on(budget=…) must be a text such as "5 USD/day", "0.50 USD/hour" or "100 USD/month", a cost above '
            f"0 in US dollars, not {short_repr(budget)}."
        )
    (period,) = (known for known in get_args(Period) if known == found[2])
    return Budget(Decimal(found[1]), period, None if per is None else _check_per(per, ordered))


def _check_per(per: object, ordered: bool) -> int:
    if not isinstance(per, int) or isinstance(per, bool) or not 1 <= per <= _MOST_SEGMENTS:
        raise DeclarationError(
            f"@agent.on(budget_per=…) must be a number of segments of the key, from 1 to {_MOST_SEGMENTS}, not "
            f"{short_repr(per)}."
        )
    if ordered:
        raise DeclarationError(
            "@agent.on(ordered=True, budget_per=…): messages of a spent prefix are put off, which would break the "
            "order. Leave one of them out."
        )
    return per
