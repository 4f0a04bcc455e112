"""The geometry of lines, bars and boxes; the templates draw it as SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from runtime.agent.step_names import WAIT_PREFIX, label_of
from runtime.client.queries import dollars
from runtime.message import moment

SPARK_WIDTH, SPARK_HEIGHT = 180, 28
FALL_WIDTH, FALL_ROW, FALL_LABEL = 1300, 24, 290


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle with a colour and a tooltip."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str = ""


def spark(done: Sequence[int], failed: Sequence[int]) -> list[Bar]:
    """Return the bars of an hour, a minute each; failures are stacked on successes."""
    top = max((good + bad for good, bad in zip(done, failed, strict=True)), default=0)
    if not top:
        return []
    step = SPARK_WIDTH / len(done)
    bars = []
    for place, (good, bad) in enumerate(zip(done, failed, strict=True)):
        base = float(SPARK_HEIGHT)
        for amount, kind in ((good, "good"), (bad, "bad")):
            if amount:
                height = max(1.5, amount / top * SPARK_HEIGHT)
                base -= height
                bars.append(
                    Bar(round(place * step, 1), round(base, 1), round(step - 0.6, 1), round(height, 1), kind)
                )
    return bars


def day_bars(costs: Sequence[float], days: Sequence[str]) -> list[Bar]:
    """Return the bars of costs by day, each named by its day."""
    top = max(costs, default=0.0)
    step = SPARK_WIDTH / max(1, len(costs))
    return [
        Bar(
            round(place * step + step * 0.1, 2), round(SPARK_HEIGHT * (1 - cost / top), 2), round(step * 0.8, 2),
            round(SPARK_HEIGHT * cost / top, 2), "spent", f"{day}: {dollars(cost)}",
        )
        for place, (cost, day) in enumerate(zip(costs, days, strict=True))
        if cost
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class WaterfallRow:
    """One line of the waterfall: a message, or one subscription's attempts at it."""

    y: int
    label: str
    message: int
    depth: int
    is_message: bool
    bars: list[Bar]


@dataclass(frozen=True, slots=True)
class Waterfall:
    """The messages and attempts of a tree over time."""

    lanes: list[WaterfallRow]
    height: int
    seconds: float
    ticks: list[tuple[float, float]]


def waterfall(
    messages: Sequence[Mapping[str, Any]], width: int = FALL_WIDTH, label: int = FALL_LABEL
) -> Waterfall:
    """Lay out messages and attempts along one axis of time.

    Args:
        messages: from `stream_trace` or `stream_conversation`.
        width: of the drawing, in its own units.
        label: how much of it the names take, on the left.
    """
    starts, ends, now = [], [], datetime.now(UTC)
    for each in messages:
        starts.append(moment(each["created_at"]))
        ends.append(moment(each["created_at"]))
        ends += [moment(run["ended_at"]) for one in each["handled"] for run in one["runs"]]
        # A suspended stretch goes on until now.
        ends += [now for one in each["handled"] if one["state"] == "suspended"]
    zero = min(starts)
    total = max((max(ends) - zero).total_seconds(), 0.001)

    def place(seconds: float) -> float:
        return round(label + min(max(seconds, 0.0), total) / total * (width - label - 8), 1)

    lanes: list[WaterfallRow] = []
    for each in messages:
        at = (moment(each["created_at"]) - zero).total_seconds()
        y = len(lanes) * FALL_ROW
        mark = Bar(place(at), y + 7, 5, 10, "mark", f"written after {at:.3f} s")
        depth = each.get("depth", 0)
        lanes.append(WaterfallRow(y, f"#{each['id']} {each['key']}", each["id"], depth, True, [mark]))
        for one in each["handled"]:
            y = len(lanes) * FALL_ROW
            bars = [
                _bar(
                    place((begin - zero).total_seconds()), place((end - zero).total_seconds()), y, "held",
                    f"suspended for {(end - begin).total_seconds():.0f} s",
                )
                for begin, end in _suspensions(one, now)
            ]  # fmt: skip
            previous = moment(each["created_at"])
            for run in one["runs"]:
                end = moment(run["ended_at"])
                # An attempt ends when it is reported, later than in its worker: none began after a step of its own.
                kept = [
                    moment(step["created_at"])
                    for step in one["steps"]
                    if not step["name"].startswith(WAIT_PREFIX)
                ]
                begin = min([_began(run), *(at for at in kept if previous <= at <= end)])
                previous = end
                kind = "good" if run["outcome"] == "done" else "bad" if run["error"] else "calm"
                title = f"attempt {run['attempt']}: {run['outcome']} after {run['seconds'] or 0:.3f} s"
                left, right = place((begin - zero).total_seconds()), place((end - zero).total_seconds())
                bars.append(_bar(left, right, y, kind, title))
            for step in one["steps"]:
                finished = (moment(step["created_at"]) - zero).total_seconds()
                title = f"step {label_of(step)} finished after {finished:.3f} s"
                bars.append(Bar(place(finished), y + 4, 2, 16, "kept", title))
            lanes.append(WaterfallRow(y, one["subscription"], each["id"], depth + 1, False, bars))
    ticks = [(place(total * part / 4), total * part / 4) for part in range(5)]
    return Waterfall(lanes, len(lanes) * FALL_ROW, total, ticks)


def _bar(left: float, right: float, y: int, kind: str, title: str) -> Bar:
    return Bar(left, y + 6, max(3.0, round(right - left, 1)), 12, kind, title)


def _began(run: Mapping[str, Any]) -> datetime:
    return moment(run["ended_at"]) - timedelta(seconds=run["seconds"] or 0)


def _suspensions(handled: Mapping[str, Any], now: datetime) -> list[tuple[datetime, datetime]]:
    """Return the stretches for which a delivery was suspended, from one attempt to the next, or until now."""
    runs = handled["runs"]
    found = [
        (moment(run["ended_at"]), _began(later))
        for run, later in pairwise(runs)
        if run["outcome"] == "suspended"
    ]
    if handled["state"] == "suspended":
        begun = [moment(run["ended_at"]) for run in runs[-1:]] or [
            moment(each["since"]) for each in handled["waits"]
        ]
        found += [(min(begun), now)] if begun else []
    return found
