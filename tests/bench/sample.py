"""What comes of one measurement, and what of several?"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

FOREIGN_CORES = 0.25
"""A run beside which others took more than this is left out where there are quieter ones."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value.

    Attributes:
        figure: what was measured, such as `drain/1 worker`.
        contestant: of whom.
        value: in `unit`.
        foreign: cores that others took meanwhile.
        more: whatever else is worth keeping.
    """

    figure: str
    contestant: str
    value: float
    unit: str
    foreign: float = 0.0
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def is_quiet(self) -> bool:
        """Whether the machine was ours meanwhile."""
        return self.foreign < FOREIGN_CORES

    def as_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Summary:
    """The median of the runs of one figure and contestant.

    Attributes:
        value: the median of the quiet runs; of the quieter half when none was quiet.
        low, high: the least and the greatest of those.
        runs: how many they are.
        noisy: how many were noisy, whether left out or counted for want of quiet ones.
        is_quiet: whether it rests on quiet runs alone.
    """

    figure: str
    contestant: str
    value: float
    unit: str
    low: float
    high: float
    runs: int
    noisy: int
    is_quiet: bool


class Results:
    """All samples of a run, by figure and contestant, in the order they came."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self.samples = list(samples)

    @property
    def figures(self) -> list[str]:
        """Every figure there is."""
        return list(dict.fromkeys(sample.figure for sample in self.samples))

    def contestants(self, figure: str) -> list[str]:
        """Who was measured."""
        return list(dict.fromkeys(each.contestant for each in self.samples if each.figure == figure))

    def summary(self, figure: str, contestant: str) -> Summary | None:
        """The median, or None when there is no run."""
        runs = [each for each in self.samples if (each.figure, each.contestant) == (figure, contestant)]
        if not runs:
            return None
        quiet = [each for each in runs if each.is_quiet]
        quieter = sorted(runs, key=lambda each: each.foreign)[: (len(runs) + 1) // 2]
        values = [each.value for each in quiet or quieter]
        noisy = len(runs) - len(quiet)
        return Summary(
            figure,
            contestant,
            median(values),
            runs[0].unit,
            min(values),
            max(values),
            len(values),
            noisy,
            bool(quiet),
        )

    def value(self, figure: str, contestant: str) -> float | None:
        """The median, or None when there is no run."""
        summary = self.summary(figure, contestant)
        return None if summary is None else summary.value

    def joined_by(self, more: "Results") -> "Results":
        """These and more runs of the same."""
        return Results([*self.samples, *more.samples])

    def replaced_by(self, newer: "Results") -> "Results":
        """These, with each figure that `newer` has taken from there: ratios are of one run, never of two."""
        kept = [each for each in self.samples if each.figure not in newer.figures]
        return Results([*kept, *newer.samples])


def percentile(values: Iterable[float], share: float) -> float:
    """The value that this share of the values does not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
