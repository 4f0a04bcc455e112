"""A graph as one self-contained SVG, in columns from cause to effect."""

from html import escape
from typing import Final

from runtime.agent.graph import Edge, Graph, Node
from runtime.dashboard.layout import columns_of

_HEIGHT: Final = 34
_ROW: Final = 58
_GAP: Final = 120
_MARGIN: Final = 20
_CHARACTER: Final = 7.8

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
    columns = columns_of(graph.nodes, [(edge.source, edge.target) for edge in graph.edges])
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


def _box(node: Node, boxes: dict[Node, tuple[float, float, float]]) -> str:
    left, top, wide = boxes[node]
    radius = {"agent": 6.0, "timer": 0.0}.get(node.kind, _HEIGHT / 2)
    return (
        f'<rect class="{node.kind}" x="{left:.0f}" y="{top:.0f}" width="{wide:.0f}" height="{_HEIGHT}" '
        f'rx="{radius:.0f}"/><text x="{left + wide / 2:.0f}" y="{top + _HEIGHT / 2 + 4:.0f}">'
        f"{escape(node.name)}</text>"
    )


def _curve(edge: Edge, boxes: dict[Node, tuple[float, float, float]], tallest: float) -> str:
    """Return the curve of an edge from one box to the left side of the next; a backward edge goes below all boxes."""
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
