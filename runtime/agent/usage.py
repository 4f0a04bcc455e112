"""The sums of what handlers tell of the language models they use."""

import math
from typing import Any, Final

from runtime.errors import InvalidValue

_MODEL_CHARACTERS: Final = 200
_MOST_TOKENS: Final = 10**12
_MOST_COST: Final = 1e12


def add_usage(
    before: dict[str, Any] | None, tokens_in: int, tokens_out: int, cost: float, model: str | None
) -> dict[str, Any]:
    """Return the sums after one more call of a model; the models are named once each, in order of their first call.

    Args:
        before: the sums so far; None before the first call.
        tokens_in, tokens_out: tokens of the prompt and of the answer.
        cost: the price, in any currency.
        model: the model's name, if that is to be kept.

    Raises:
        InvalidValue: a figure is negative or no number, or the model's name is no text.
    """
    told = before or {}
    sums = {
        "tokens_in": told.get("tokens_in", 0) + _tokens("tokens_in", tokens_in),
        "tokens_out": told.get("tokens_out", 0) + _tokens("tokens_out", tokens_out),
        "cost": told.get("cost", 0.0) + _cost(cost),
        "model": told.get("model"),
    }
    if model is not None:
        if not isinstance(model, str):
            raise InvalidValue(f"context.usage(model=…) needs the model's name as text, not {model!r}.")
        # PostgreSQL stores no NUL and no half of a surrogate pair.
        name = model[:_MODEL_CHARACTERS].replace("\0", "").encode("utf-8", "replace").decode()
        names = sums["model"].split(", ") if sums["model"] else []
        if name not in names and len(names) < 5:
            sums["model"] = ", ".join([*names, name])
    return {name: figure for name, figure in sums.items() if figure}


def _tokens(name: str, figure: int) -> int:
    if isinstance(figure, bool) or not isinstance(figure, int) or not 0 <= figure <= _MOST_TOKENS:
        raise InvalidValue(f"context.usage({name}=…) needs a number of tokens, 0 or more, not {figure!r}.")
    return figure


def _cost(figure: float) -> float:
    try:
        cost = float(figure)
    except (TypeError, ValueError, OverflowError):
        cost = math.nan
    if not 0 <= cost <= _MOST_COST:
        raise InvalidValue(f"context.usage(cost=…) needs a price, 0 or more, not {figure!r}.")
    return cost
