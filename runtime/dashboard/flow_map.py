"""The map of agents and keys: layered from cause to effect, with the health of each node."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import log10
from typing import Any, Final, Literal

from runtime.dashboard.layout import columns_of

_HEIGHT, _GAP, _ROW, _MARGIN = 46, 84, 16, 30
# A bend of an edge that passes a column takes less room than a node.
_BEND_HEIGHT: Final = 14
_CHARACTER, _LONGEST = 7.9, 26
_PASSES: Final = 12

Health = Literal["good", "busy", "bad", "calm"]


@dataclass
class MapNode:
    """An agent or a key.

    Attributes:
        note: the second line: what waits or is dead, or how much flows.
        health: the colour of its edge.
        outside: how many of the last messages under this key came from outside.
    """

    name: str
    kind: Literal["agent", "key"]
    note: str = ""
    health: Health = "calm"
    outside: int = 0
    x: float = 0
    y: float = 0
    width: float = 0

    @property
    def label(self) -> str:
        """The name, cut in the middle if it is long: the ends tell keys apart."""
        half = _LONGEST // 2 - 1
        return self.name if len(self.name) <= _LONGEST else f"{self.name[:half]}…{self.name[-half:]}"


@dataclass(frozen=True, slots=True)
class _Bend:
    """Where an edge passes a column."""

    edge: tuple[str, str]
    step: int


_Place = str | _Bend


@dataclass
class FlowMap:
    """The graph, laid out in columns from cause to effect.

    Attributes:
        nodes: by their identity, `kind:name`.
        edges: how many messages went from one node to another, by their identities.
        hidden: how many nodes were left out by `keep_what_flows`.
    """

    nodes: dict[str, MapNode] = field(default_factory=dict)
    edges: dict[tuple[str, str], int] = field(default_factory=dict)
    hidden: int = 0
    width: float = 0
    height: float = 0
    _routes: dict[tuple[str, str], list[tuple[float, float, float]]] = field(default_factory=dict)

    def node(self, kind: Literal["agent", "key"], name: str) -> str:
        """Add a node, once; return its identity."""
        identity = f"{kind}:{name}"
        self.nodes.setdefault(identity, MapNode(name, kind))
        return identity

    def edge(self, source: str, target: str, count: int = 0) -> None:
        """Add to the flow between two nodes."""
        self.edges[source, target] = self.edges.get((source, target), 0) + count

    def keep_what_flows(self) -> None:
        """Leave out what no recent message passed, but agents in trouble; a map without any flow stays whole."""
        flowing = {edge: count for edge, count in self.edges.items() if count}
        kept = {name for edge in flowing for name in edge}
        kept |= {name for name, node in self.nodes.items() if node.outside}
        if not kept:
            return
        kept |= {name for name, node in self.nodes.items() if node.health == "bad"}
        self.hidden = len(self.nodes) - len(kept)
        self.nodes = {name: node for name, node in self.nodes.items() if name in kept}
        self.edges = {edge: count for edge, count in self.edges.items() if count or kept.issuperset(edge)}

    def lay_out(self) -> None:
        """Give every node its place, and every edge its way."""
        column = {
            name: rank
            for rank, names in enumerate(columns_of(sorted(self.nodes), sorted(self.edges)))
            for name in names
        }
        links: list[tuple[_Place, _Place]] = []
        bends: list[_Place] = []
        for edge in sorted(self.edges):
            way: list[_Place] = [edge[0]]
            for step in range(column[edge[0]] + 1, column[edge[1]]):
                way.append(_Bend(edge, step))
            if column[edge[1]] > column[edge[0]]:
                way.append(edge[1])
                bends += way[1:-1]
                links += itertools.pairwise(way)
        columns = columns_of([*sorted(self.nodes), *bends], links)
        middle = _rows(columns, links)
        left, rights, lefts = float(_MARGIN), [], []
        for names in columns:
            nodes = [self.nodes[name] for name in names if isinstance(name, str)]
            wide = max((max(len(node.label), len(node.note)) * _CHARACTER + 42 for node in nodes), default=0)
            for name in names:
                if isinstance(name, str):
                    node = self.nodes[name]
                    node.x, node.y, node.width = left, middle[name] - _HEIGHT / 2, wide
            lefts.append(left)
            rights.append(left + wide)
            left += wide + _GAP
        top = min((at - _height(place) / 2 for place, at in middle.items()), default=0) - _MARGIN
        for node in self.nodes.values():
            node.y -= top
        for name in bends:
            assert isinstance(name, _Bend)
            self._routes.setdefault(name.edge, []).append(
                (lefts[name.step], rights[name.step], middle[name] - top)
            )
        floor = max((at + _height(place) / 2 for place, at in middle.items()), default=0) - top
        self.width = max(left - _GAP, 0) + _MARGIN
        self.height = floor + _MARGIN + 12 * sum(self._is_back(edge) for edge in self.edges)

    def _is_back(self, edge: tuple[str, str]) -> bool:
        return self.nodes[edge[1]].x <= self.nodes[edge[0]].x

    def curves(self) -> Iterator[dict[str, Any]]:
        """The edges as paths; those that lead back go below all nodes, each on a lane of its own."""
        floor = max((node.y for node in self.nodes.values()), default=0) + _HEIGHT + 16
        for edge, count in sorted(self.edges.items()):
            source, target = self.nodes[edge[0]], self.nodes[edge[1]]
            x, y = source.x + source.width, source.y + _HEIGHT / 2
            end_x, end_y = target.x - 2, target.y + _HEIGHT / 2
            if self._is_back(edge):
                drawn = (
                    f"M{x:.0f} {y:.0f}C{x + 40:.0f} {y:.0f} {x + 40:.0f} {floor:.0f} {x:.0f} {floor:.0f}"
                    f"H{end_x:.0f}C{end_x - 40:.0f} {floor:.0f} {end_x - 40:.0f} {end_y:.0f} {end_x:.0f} {end_y:.0f}"
                )
                floor += 12
            else:
                drawn = f"M{x:.0f} {y:.0f}"
                for left, right, at in self._routes.get(edge, []):
                    drawn += f"{_swing(x, y, left, at)}H{right:.0f}"
                    x, y = right, at
                drawn += _swing(x, y, end_x, end_y)
            yield {
                "path": drawn,
                "count": count,
                "weight": min(4, 1 + int(log10(count + 1))),
                "title": f"{source.name} → {target.name}: {count}",
            }


def _swing(x: float, y: float, to_x: float, to_y: float) -> str:
    half = (to_x - x) / 2
    return f"C{x + half:.0f} {y:.0f} {to_x - half:.0f} {to_y:.0f} {to_x:.0f} {to_y:.0f}"


def _height(place: _Place) -> float:
    return (_HEIGHT if isinstance(place, str) else _BEND_HEIGHT) + _ROW


def _rows(columns: list[list[_Place]], links: Iterable[tuple[_Place, _Place]]) -> Mapping[_Place, float]:
    """Return the middle of each place: near the mean of its neighbours, in the order of its column, and apart."""
    near: dict[_Place, list[_Place]] = {name: [] for names in columns for name in names}
    for source, target in links:
        near[source].append(target)
        near[target].append(source)
    middle: dict[_Place, float] = {}
    for names in columns:
        whole = sum(map(_height, names))
        at = -whole / 2
        for name in names:
            middle[name] = at + _height(name) / 2
            at += _height(name)
    for turn in range(_PASSES):
        for names in columns if turn % 2 == 0 else columns[::-1]:
            wanted = [
                sum(middle[other] for other in near[name]) / len(near[name]) if near[name] else middle[name]
                for name in names
            ]
            # From above nothing comes too near to the one before, from below too near to the one after: the mean of
            # both keeps the distance, and favours neither end.
            down, up = list(wanted), list(wanted)
            for row in range(1, len(names)):
                apart = (_height(names[row - 1]) + _height(names[row])) / 2
                down[row] = max(down[row], down[row - 1] + apart)
            for row in range(len(names) - 2, -1, -1):
                apart = (_height(names[row + 1]) + _height(names[row])) / 2
                up[row] = min(up[row], up[row + 1] - apart)
            for name, low, high in zip(names, down, up, strict=True):
                middle[name] = (low + high) / 2
    return middle
