"""How does a graph look as a picture? In columns from cause to effect, as one SVG that needs nothing else."""

from html import escape
from typing import Final

from runtime.graph import Edge, Graph, Node

_HEIGHT: Final = 34
_ROW: Final = 58
_GAP: Final = 120
_MARGIN: Final = 20
_CHARACTER: Final = 7.8
_SWEEPS: Final = 4

_STYLE: Final = """
    svg { color-scheme: light dark; font: 13px ui-monospace, monospace; }
    rect { fill: #fff; stroke: #57606a; } text { fill: #1f2328; text-anchor: middle; }
    path { fill: none; stroke: #57606a; } .matches { stroke-dasharray: 4 4; } marker path { fill: #57606a; }
    .agent { fill: #ddf4ff; stroke: #0969da; } .pattern { stroke-dasharray: 4 4; } .label { font-size: 11px; }
    @media (prefers-color-scheme: dark) {
      rect { fill: #161b22; stroke: #8d96a0; } text { fill: #e6edf3; } path { stroke: #8d96a0; }
      .agent { fill: #0c2d4d; stroke: #4493f8; } marker path { fill: #8d96a0; }
    }
"""


def svg(graph: Graph) -> str:
    """Return the graph as an SVG image, readable on light and on dark ground."""
    columns = _ordered(graph, _columns(graph))
    boxes, left = {}, float(_MARGIN)
    tallest = max(map(len, columns), default=0) * _ROW
    for column in columns:
        wide = max(len(node.name) for node in column) * _CHARACTER + 28
        top = _MARGIN + (tallest - len(column) * _ROW) / 2
        for row, node in enumerate(column):
            boxes[node] = (left, top + row * _ROW, wide)
        left += wide + _GAP
    width, height = max(left - _GAP, _MARGIN) + _MARGIN, tallest + 2 * _MARGIN
    back = any(boxes[edge.source][0] >= boxes[edge.target][0] for edge in graph.edges)
    parts = [*(_curve(edge, boxes, tallest) for edge in graph.edges), *(_box(node, boxes) for node in boxes)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="Agents and keys" '
        f'viewBox="0 0 {width:.0f} {height + (40 if back else 0):.0f}" width="{width:.0f}">\n'
        f"  <style>{_STYLE}  </style>\n"
        '  <marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z"/></marker>\n' + "".join(f"  {part}\n" for part in parts) + "</svg>\n"
    )


def _columns(graph: Graph) -> dict[Node, int]:
    """Each node's column: one more than whatever leads to it; an edge that closes a circle does not count."""
    onward: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
    state: dict[Node, bool] = {}
    after: list[Node] = []
    outgoing: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
    for edge in graph.edges:
        outgoing[edge.source].append(edge.target)
    starts = sorted(graph.nodes, key=lambda node: any(edge.target == node for edge in graph.edges))
    for start in starts:
        if start in state:
            continue
        state[start] = True
        path = [(start, iter(outgoing[start]))]
        while path:
            node, targets = path[-1]
            target = next(targets, None)
            if target is None:
                state[node] = False
                after.append(node)
                path.pop()
            # What is still open closes a circle.
            elif not state.get(target, False):
                onward[node].append(target)
                if target not in state:
                    state[target] = True
                    path.append((target, iter(outgoing[target])))
    column = dict.fromkeys(graph.nodes, 0)
    for node in reversed(after):
        for target in onward[node]:
            column[target] = max(column[target], column[node] + 1)
    return column


def _ordered(graph: Graph, column: dict[Node, int]) -> list[list[Node]]:
    """The columns, each in an order that lets few edges cross: every node near the middle of its neighbours."""
    columns: list[list[Node]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
    for node, number in column.items():
        columns[number].append(node)
    near: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
    for edge in graph.edges:
        near[edge.source].append(edge.target)
        near[edge.target].append(edge.source)
    for _ in range(_SWEEPS):
        place = {node: row - len(each) / 2 for each in columns for row, node in enumerate(each)}
        for each in columns:
            each.sort(key=lambda node: sum(place[other] for other in near[node]) / max(len(near[node]), 1))
    return columns


def _box(node: Node, boxes: dict[Node, tuple[float, float, float]]) -> str:
    left, top, wide = boxes[node]
    radius = 6 if node.kind == "agent" else _HEIGHT / 2
    return (
        f'<rect class="{node.kind}" x="{left:.0f}" y="{top:.0f}" width="{wide:.0f}" height="{_HEIGHT}" '
        f'rx="{radius:.0f}"/><text x="{left + wide / 2:.0f}" y="{top + _HEIGHT / 2 + 4:.0f}">'
        f"{escape(node.name)}</text>"
    )


def _curve(edge: Edge, boxes: dict[Node, tuple[float, float, float]], tallest: float) -> str:
    """An edge from the right side of one box to the left side of the next; one that leads back goes below all."""
    left, top, wide = boxes[edge.source]
    end, target_top, _ = boxes[edge.target]
    x, y, target_y = left + wide, top + _HEIGHT / 2, target_top + _HEIGHT / 2
    bend = abs(end - x) / 2 if end > x else _GAP / 2
    floor = tallest + _MARGIN + 30
    drawn = (
        f"M{x:.0f} {y:.0f}C{x + bend:.0f} {y:.0f} {end - bend:.0f} {target_y:.0f} {end:.0f} {target_y:.0f}"
        if end > x
        else f"M{x:.0f} {y:.0f}C{x + bend:.0f} {y:.0f} {x + bend:.0f} {floor:.0f} {x:.0f} {floor:.0f}"
        f"L{end:.0f} {floor:.0f}C{end - bend:.0f} {floor:.0f} {end - bend:.0f} {target_y:.0f} {end:.0f} {target_y:.0f}"
    )
    kind = "" if edge.handler else ' class="matches"'
    line = f'<path{kind} d="{drawn}" marker-end="url(#end)"/>'
    if edge.handler is None or end <= x:
        return line
    label = escape(edge.handler.partition(".")[2])
    return (
        f'{line}<text class="label" x="{(x + end) / 2:.0f}" y="{(y + target_y) / 2 - 5:.0f}">{label}</text>'
    )
