"""The places of a graph's nodes: columns from cause to effect, with few edges that cross."""

from collections.abc import Hashable, Iterable
from typing import Final, TypeVar

Node = TypeVar("Node", bound=Hashable)

_SWEEPS: Final = 4


def columns_of(nodes: Iterable[Node], edges: Iterable[tuple[Node, Node]]) -> list[list[Node]]:
    """Return the columns, each from top to bottom.

    A node is one column after its causes; an edge that closes a circle does not count. Within its column it is near the
    middle of its neighbours.

    Args:
        nodes: every node once; their order breaks ties.
        edges: from cause to effect, between these nodes.
    """
    known, links = list(nodes), list(edges)
    column = _column_of(known, links)
    columns: list[list[Node]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
    for node in known:
        columns[column[node]].append(node)
    near: dict[Node, list[Node]] = {node: [] for node in known}
    for source, target in links:
        near[source].append(target)
        near[target].append(source)
    for _ in range(_SWEEPS):
        place = {node: row - len(each) / 2 for each in columns for row, node in enumerate(each)}
        for each in columns:
            each.sort(key=lambda node: sum(place[other] for other in near[node]) / max(len(near[node]), 1))
    return columns


def _column_of(nodes: list[Node], edges: list[tuple[Node, Node]]) -> dict[Node, int]:
    """Return each node's column: the length of the longest path to it."""
    outgoing: dict[Node, list[Node]] = {node: [] for node in nodes}
    for source, target in edges:
        outgoing[source].append(target)
    caused = {target for _, target in edges}
    onward: dict[Node, list[Node]] = {node: [] for node in nodes}
    is_open: dict[Node, bool] = {}
    after: list[Node] = []
    for start in sorted(nodes, key=caused.__contains__):
        if start in is_open:
            continue
        is_open[start] = True
        path = [(start, iter(outgoing[start]))]
        while path:
            node, targets = path[-1]
            following = next(targets, None)
            if following is None:
                is_open[node] = False
                after.append(node)
                path.pop()
            # A node that is still being visited closes a circle.
            elif not is_open.get(following, False):
                onward[node].append(following)
                if following not in is_open:
                    is_open[following] = True
                    path.append((following, iter(outgoing[following])))
    column = dict.fromkeys(nodes, 0)
    for node in reversed(after):
        for target in onward[node]:
            column[target] = max(column[target], column[node] + 1)
    return column
