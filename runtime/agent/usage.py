"""The sums of what handlers tell of the language models they use."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from runtime.errors import InvalidValue

_MODEL_CHARACTERS: Final = 200
_MOST_MODELS: Final = 20
_MOST_NAMES: Final = 5
_MOST_TOKENS: Final = 10**12
_MOST_COST: Final = 1e12
_FIGURES: Final = ("tokens_in", "tokens_out", "cost")


def add_usage(
    before: dict[str, Any] | None, tokens_in: int, tokens_out: int, cost: float, model: str | None
) -> dict[str, Any]:
    """Return the sums after one more call of a model.

    The sum of all calls, with the models' names in the order of their first calls; where there are several, that of
    each is under `by_model`.

    Args:
        before: the sums so far; None before the first call.
        tokens_in, tokens_out: tokens of the prompt and of the answer.
        cost: the price, in US dollars.
        model: the model's name, if that is to be kept.

    Raises:
        InvalidValue: a figure is negative, too large or no number, or the model's name is no text.
    """
    figures = (_tokens("tokens_in", tokens_in), _tokens("tokens_out", tokens_out), _cost(cost))
    name = _name(model)
    parts = list(usage_by_model(before)) if before else []
    known = [each.get("model") for each in parts]
    if name not in known and len(parts) >= _MOST_MODELS:
        # Beyond so many models the rest counts as of none.
        name = None
    place = known.index(name) if name in known else len(parts)
    parts[place : place + 1] = [
        _sums([*parts[place : place + 1], dict(zip(_FIGURES, figures, strict=True))], name)
    ]
    names = [each["model"] for each in parts if "model" in each][:_MOST_NAMES]
    told = _sums(parts, ", ".join(names))
    return {**told, "by_model": parts} if len(parts) > 1 else told


def usage_by_model(used: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the sums of each model: tokens_in, tokens_out, cost and model, without those that are 0."""
    parts: Sequence[Mapping[str, Any]] = used.get("by_model") or [used]
    return parts


def _sums(parts: Sequence[Mapping[str, Any]], model: str | None) -> dict[str, Any]:
    """The sums of some parts under a model's name, without what is 0."""
    sums = {figure: sum(each.get(figure, 0) for each in parts) for figure in _FIGURES}
    return {name: told for name, told in (*sums.items(), ("model", model)) if told}


def _name(model: object) -> str | None:
    if model is None:
        return None
    if not isinstance(model, str):
        raise InvalidValue(f"context.usage(model=…) needs the model's name as text, not {model!r}.")
    # PostgreSQL stores no NUL and no half of a surrogate pair.
    return model[:_MODEL_CHARACTERS].replace("\0", "").encode("utf-8", "replace").decode() or None


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
