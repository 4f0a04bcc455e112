"""How do the results look? A few small pictures, as PNG and as SVG, for the README and the page on performance."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.contestants import OURS
from tests.bench.sample import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _PEERS = "#2f6f4f", "#b9c2bd"
_INK = "#30363a"
_STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.edgecolor": _PEERS,
    "axes.labelcolor": _INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    # Text stays text: small, and the reader's own font.
    "svg.fonttype": "none",
    # The same results give the same file.
    "svg.hashsalt": "agent-runtime",
}
_DPI = 110
_WAYS = {
    "direct": "NOTIFY + direct",
    "Realtime + direct": "Realtime + direct",
    "Realtime + REST": "Realtime + REST",
    "polling, direct": "polling, direct",
    "polling, REST": "polling, REST",
}


def draw(results: Results, folder: Path) -> None:
    """Draw every picture that the results have figures for; says so when matplotlib is missing.

    Args:
        folder: gets `throughput`, `latency`, `paths` and `growth`, each as .png and .svg.
    """
    try:
        import matplotlib
    except ImportError:
        print("no plots: pip install 'agent-runtime[bench]' brings matplotlib", file=sys.stderr, flush=True)
        return
    matplotlib.use("agg")
    with matplotlib.rc_context(_STYLE):
        for name, (needs, panels) in _PICTURES.items():
            if results.value(needs, OURS) is not None:
                _save(results, panels, folder / name)


Panel = Callable[[Results, "Axes"], None]


def _save(results: Results, panels: Sequence[Panel], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 2.6), squeeze=False, layout="constrained"
    )
    for panel, axis in zip(panels, axes[0], strict=True):
        axis.spines[["top", "right"]].set_visible(False)
        panel(results, axis)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=_DPI, metadata={"Software": None})
    plt.close(figure)


def _rates(figure: str, title: str) -> Panel:
    """A bar for each contestant, the fastest on top."""

    def panel(results: Results, axis: "Axes") -> None:
        values = {name: results.value(figure, name) or 0 for name in results.contestants(figure)}
        names = sorted(values, key=lambda name: values[name])
        bars = axis.barh(_labels(names), [values[name] for name in names], color=_colors(names), height=0.65)
        axis.bar_label(bars, fmt="{:,.0f}", padding=3)
        axis.set_title(title)
        axis.set_xlim(0, max(values.values()) * 1.2)
        axis.xaxis.set_visible(False)
        axis.spines["bottom"].set_visible(False)

    return panel


def _spans(title: str, rows: Callable[[Results], dict[str, tuple[float | None, float | None]]]) -> Panel:
    """From p50 (the dot) to p99 (the end of the line), on a scale of powers of ten."""

    def panel(results: Results, axis: "Axes") -> None:
        found = {name: (low, high) for name, (low, high) in rows(results).items() if low and high}
        names = sorted(found, key=lambda name: -found[name][0])
        for place, name in enumerate(names):
            low, high = found[name]
            color = (
                _OURS
                if name == OURS or len(results.contestants("latency/direct, idle, p50")) == 1
                else _PEERS
            )
            axis.plot([low, high], [place, place], color=color, linewidth=3, solid_capstyle="round")
            axis.plot([low], [place], "o", color=color)
            axis.annotate(
                f"{low:.2g} .. {high:.2g}", (high, place), (6, 0), textcoords="offset points", va="center"
            )
        axis.set_yticks(range(len(names)), _labels(names))
        axis.set_xscale("log")
        axis.set_xlim(
            min(low for low, _ in found.values()) / 1.6, max(high for _, high in found.values()) * 5
        )
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.set_title(f"{title}: ms, p50 to p99")
        axis.xaxis.set_visible(False)
        axis.spines["bottom"].set_visible(False)

    return panel


def _of_contestants(figure: str) -> Callable[[Results], dict[str, tuple[float | None, float | None]]]:
    return lambda results: {
        name: (results.value(f"{figure}, p50", name), results.value(f"{figure}, p99", name))
        for name in results.contestants(f"{figure}, p50")
    }


def _of_ways(load: str) -> Callable[[Results], dict[str, tuple[float | None, float | None]]]:
    return lambda results: {
        label: (
            results.value(f"latency/{way}, {load}, p50", OURS),
            results.value(f"latency/{way}, {load}, p99", OURS),
        )
        for way, label in _WAYS.items()
    }


def _shares(title: str, pairs: dict[str, tuple[str, str]]) -> Panel:
    """Figures of ours as shares of what they are without the burden."""

    def panel(results: Results, axis: "Axes") -> None:
        shares: dict[str, float] = {}
        for label, (figure, base) in reversed(pairs.items()):
            value, of = results.value(figure, OURS), results.value(base, OURS)
            if value is not None and of:
                shares[label] = value / of
        bars = axis.barh(list(shares), list(shares.values()), color=_OURS, height=0.65)
        axis.bar_label(bars, fmt="{:.2f}", padding=3)
        axis.axvline(1, color=_PEERS, linewidth=1, zorder=0)
        axis.set_xlim(0, max(1.0, *shares.values()) * 1.2)
        axis.set_title(title)

    return panel


def _labels(names: Sequence[str]) -> list[str]:
    return ["agent-runtime" if name == OURS else name for name in names]


def _colors(names: Sequence[str]) -> list[str]:
    return [_OURS if name == OURS else _PEERS for name in names]


_PICTURES: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "throughput": (
        "drain/1 worker",
        (
            _rates("drain/1 worker", "messages handled a second, 1 worker"),
            _rates("drain/2 workers", "messages handled a second, 2 workers"),
        ),
    ),
    "latency": (
        "latency/direct, idle, p50",
        (
            _spans("commit to handler, idle", _of_contestants("latency/direct, idle")),
            _spans("commit to handler, under load", _of_contestants("latency/direct, under load")),
        ),
    ),
    "paths": (
        "latency/Realtime + REST, idle, p50",
        (
            _spans("each way in, idle", _of_ways("idle")),
            _spans("each way in, under load", _of_ways("under load")),
        ),
    ),
    "growth": (
        "growth/empty",
        (
            _shares(
                "drain as a share of an empty, quiet database's",
                {
                    "behind 1 M finished": ("growth/behind 1,000,000 finished", "growth/empty"),
                    "behind 10 M finished": ("huge/behind 10,000,000 finished", "huge/empty"),
                    "first of 1 M queued": ("backlog/1,000,000", "backlog/20,000"),
                    "beside an open transaction": ("held/held open", "held/free"),
                },
            ),
            _shares(
                "fan-out, as a share of one reader's",
                {
                    "1 to 10": ("fan-out/1 to 10", "fan-out/1 to 1"),
                    "1 to 100": ("fan-out/1 to 100", "fan-out/1 to 1"),
                },
            ),
        ),
    ),
}
