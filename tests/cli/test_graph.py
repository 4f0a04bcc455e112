"""The graph of agents and keys, out of declarations alone."""

import itertools
from xml.etree import ElementTree

from runtime.agent.agent import Agent
from runtime.agent.graph import Edge, Graph, Node, graph_of, mermaid
from runtime.agent.source import Source
from runtime.cli.graph_svg import svg
from tests.cli.shell import Shell, error_line


def newsroom() -> list[Agent]:
    writer, archivist = Agent("writer"), Agent("archivist")

    @writer.on("note.found", "note.mended", emits="draft.written")
    def draft(value: str) -> str:
        return value

    @writer.on("draft.rejected", emits="draft.written")
    def mend(value: str) -> str:
        return value

    @archivist.on("draft.*")
    def record(value: str) -> None: ...

    return [writer, archivist]


def test_keys_lead_to_agents_and_to_the_patterns_that_match_them() -> None:
    graph = graph_of(newsroom())
    writer, archivist = Node("agent", "writer"), Node("agent", "archivist")
    pattern, written = Node("pattern", "draft.*"), Node("key", "draft.written")
    assert set(graph.edges) == {
        Edge(Node("key", "note.found"), writer, "writer.draft"),
        Edge(Node("key", "note.mended"), writer, "writer.draft"),
        Edge(Node("key", "draft.rejected"), writer, "writer.mend"),
        Edge(writer, written, "writer.draft"),
        Edge(writer, written, "writer.mend"),
        Edge(pattern, archivist, "archivist.record"),
        Edge(written, pattern),
        Edge(Node("key", "draft.rejected"), pattern),
    }
    assert len(graph.nodes) == len(set(graph.nodes)) == 7


def test_a_timer_leads_to_the_key_of_its_ticks() -> None:
    clock = Agent("clock")

    @clock.every("5m")
    def strike() -> None: ...

    @clock.cron("0 7 * * mon-fri", timezone="Europe/Paris", key="morning.came")
    def wake() -> None: ...

    graph = graph_of([clock])
    assert {(edge.source, edge.target) for edge in graph.edges if edge.source.kind == "timer"} == {
        (Node("timer", "every 5m"), Node("key", "timer.clock.strike")),
        (Node("timer", "0 7 * * mon-fri Europe/Paris"), Node("key", "morning.came")),
    }
    assert '[/"0 7 &ast; &ast; mon-fri Europe/Paris"/]' in mermaid(graph)
    assert "every 5m" in svg(graph)


def test_mermaid_draws_each_node_once_and_no_wildcard_as_markup() -> None:
    lines = mermaid(graph_of(newsroom())).splitlines()
    assert lines[0] == "flowchart LR"
    assert sum('"writer"' in line for line in lines) == 1
    assert any('{{"draft.&ast;"}}' in line for line in lines)
    assert sum("-.->" in line for line in lines) == 2
    assert sum('-->|"mend"|' in line for line in lines) == 2


def _boxes(picture: str) -> dict[str, tuple[float, float, float]]:
    root = ElementTree.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    rects = root.findall(f"{space}rect")
    texts = [text.text or "" for text in root.findall(f"{space}text") if text.get("class") != "label"]
    return {
        text: (float(rect.get("x", 0)), float(rect.get("y", 0)), float(rect.get("width", 0)))
        for text, rect in zip(texts, rects, strict=True)
    }


def test_svg_puts_what_follows_to_the_right_and_no_box_over_another() -> None:
    boxes = _boxes(svg(graph_of(newsroom())))
    chain = ["note.found", "writer", "draft.written", "draft.*", "archivist"]
    lefts = [boxes[name][0] for name in chain]
    assert lefts == sorted(set(lefts))
    columns: dict[float, list[float]] = {}
    for left, top, _ in boxes.values():
        columns.setdefault(left, []).append(top)
    for tops in columns.values():
        tops.sort()
        assert all(lower - upper >= 34 for upper, lower in itertools.pairwise(tops))


def test_svg_of_a_circle_of_nothing_and_of_a_long_chain_ends() -> None:
    loop = Agent("loop")

    @loop.on("again", emits="again")
    def turn(value: str) -> str:
        return value

    assert set(_boxes(svg(graph_of([loop])))) == {"loop", "again"}
    ElementTree.fromstring(svg(Graph((), ())))
    nodes = tuple(Node("key", f"k{number}") for number in range(3_000))
    edges = tuple(Edge(one, two) for one, two in itertools.pairwise(nodes))
    assert len(_boxes(svg(Graph(nodes, edges)))) == 3_000


def test_the_command_needs_no_stream(nowhere: Shell) -> None:
    (nowhere.folder / "shop.py").write_text(
        "from runtime import Agent\nagent = Agent('shop')\n"
        "@agent.on('order.placed', emits='order.packed')\ndef pack(value): return value\n"
    )
    ended = nowhere.run("graph", "shop.py")
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout.startswith("flowchart LR\n")
    assert set(_boxes(nowhere.run("graph", "shop.py", "--format", "svg").stdout)) == {
        "order.placed", "shop", "order.packed",
    }  # fmt: skip
    assert '"order.packed"' in nowhere.run("graph", "shop.py", "--json").stdout
    assert "missing.py" in error_line(nowhere.run("graph", "missing.py"))
    assert nowhere.run("graph", "shop.py", "--format", "png").code == 2


def test_a_source_of_webhooks_leads_to_whoever_its_messages_may_reach() -> None:
    desk = Agent("desk")

    @desk.on("github.push", "github.issues.*", "other.>")
    def note(value: str) -> None: ...

    drawn = graph_of([desk], [Source("github", "github.{event}"), Source("alone", "alone.{event}")])
    led = {
        (edge.source.name, edge.target.name)
        for edge in drawn.edges
        if edge.handler and "webhook" in edge.handler
    }
    assert led == {("github", "github.push"), ("github", "github.issues.*"), ("alone", "alone.>")}
    assert "|webhook|" in mermaid(drawn).replace('"', "")
