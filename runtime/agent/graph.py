"""The agents' declarations as a graph of writers, keys and readers; no database is asked."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from runtime.agent.agent import Agent
from runtime.agent.schedule import readable
from runtime.agent.source import Source
from runtime.keys import is_exact, matches, overlap

Kind = Literal["agent", "key", "pattern", "timer"]


@dataclass(frozen=True, slots=True)
class Node:
    """An agent, a key, a pattern with wildcards, or a timer by its schedule."""

    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class Edge:
    """An arrow from one node to another.

    Attributes:
        handler: the handler that emits or listens, `agent.handler`; None where a pattern matches a key.
    """

    source: Node
    target: Node
    handler: str | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes and edges in the order of declaration, each once. Edges point from cause to effect."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the graph as plain JSON data."""
        return asdict(self)


@dataclass
class _GraphBuilder:
    nodes: dict[Node, None] = field(default_factory=dict)
    edges: dict[Edge, None] = field(default_factory=dict)

    def edge(self, source: Node, target: Node, handler: str | None = None) -> None:
        self.nodes.update({source: None, target: None})
        self.edges[Edge(source, target, handler)] = None


def graph_of(agents: Iterable[Agent], sources: Iterable[Source] = ()) -> Graph:
    """Return the graph of these agents and sources of webhooks.

    A pattern with wildcards is a node of its own, and every declared key that it matches leads to it. A timer leads to
    the key of its ticks; a source, a writer like an agent, to every key and pattern that its messages can have. Keys of
    `context.emit` are not declared and not in the graph.
    """
    drawn = _GraphBuilder()
    handlers = [handler for agent in agents for handler in agent.handlers]
    for handler in handlers:
        agent = Node("agent", handler.agent)
        if handler.timer is not None:
            timer = Node("timer", readable(handler.timer.schedule.spec))
            drawn.edge(timer, Node("key", handler.timer.key), handler.name)
        for pattern in handler.patterns:
            drawn.edge(Node("key" if is_exact(pattern) else "pattern", pattern), agent, handler.name)
        if handler.emits is not None:
            drawn.edge(agent, Node("key", handler.emits), handler.name)
    keys = [node for node in drawn.nodes if node.kind == "key"]
    for wild in [node for node in drawn.nodes if node.kind == "pattern"]:
        for key in keys:
            if matches(wild.name, key.name):
                drawn.edge(key, wild)
    for source in sources:
        writer = Node("agent", source.name)
        keys = [node for node in drawn.nodes if node.kind in ("key", "pattern")]
        unread = Node("key" if is_exact(source.pattern) else "pattern", source.pattern)
        for target in [node for node in keys if overlap(source.pattern, node.name)] or [unread]:
            drawn.edge(writer, target, f"{source.name}.webhook")
    return Graph(tuple(drawn.nodes), tuple(drawn.edges))


_SHAPES: dict[Kind, tuple[str, str]] = {
    "agent": ("[", "]"), "key": ("([", "])"), "pattern": ("{{", "}}"), "timer": ("[/", "/]"),
}  # fmt: skip


def mermaid(graph: Graph) -> str:
    """Return the graph in Mermaid's language, as Markdown pages and GitHub draw it."""
    names = {node: f"n{number}" for number, node in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for node, name in names.items():
        opening, closing = _SHAPES[node.kind]
        # Mermaid reads entities in quoted text; a bare > or * may mean something to it.
        text = node.name.replace(">", "&gt;").replace("*", "&ast;")
        lines.append(f'    {name}{opening}"{text}"{closing}')
    for edge in graph.edges:
        label = f'|"{edge.handler.partition(".")[2]}"|' if edge.handler else ""
        lines.append(f"    {names[edge.source]} {'-->' if label else '-.->'}{label} {names[edge.target]}")
    return "\n".join(lines) + "\n"
