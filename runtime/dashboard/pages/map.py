"""The agents and keys as a graph: writers, readers, flow and health."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse

from runtime.dashboard.context import DashboardContext, context_of
from runtime.dashboard.filters import count, rate
from runtime.dashboard.flow_map import FlowMap, Health
from runtime.dashboard.thread import is_answer
from runtime.keys import is_exact, matches

_KEYS: Final = 60


async def map_page(request: Request) -> HTMLResponse:
    """Return the page."""
    context = context_of(request)
    return await context.page("map.html", active="map", events="", **await _map(context, _shows_all(request)))


async def drawing(request: Request) -> HTMLResponse:
    """Return the drawing alone."""
    context = context_of(request)
    return context.part("_map.html", **await _map(context, _shows_all(request)))


def _shows_all(request: Request) -> bool:
    return request.query_params.get("all") == "1"


async def _map(context: DashboardContext, shows_all: bool = True) -> dict[str, Any]:
    stats, flow = await context.live_state.stats.get(), await context.live_state.flow.get()
    declared = context.schemas.declared
    # Handlers with deliver="each" have no subscription: only their declaration is known.
    listeners = [
        {"name": name, "agent": name.partition(".")[0], "patterns": each.patterns}
        for name, each in declared.items() if each.deliver == "each"
    ]  # fmt: skip
    graph = draw([*stats["subscriptions"], *listeners], flow, {
        name: each.emits for name, each in declared.items() if each.emits is not None
    })  # fmt: skip
    if not shows_all:
        graph.keep_what_flows()
    graph.lay_out()
    return {
        "graph": graph,
        "curves": list(graph.curves()),
        "rows": _rows(graph),
        "flow": flow,
        "shows_all": shows_all,
    }


def draw(subscriptions: list[dict[str, Any]], flow: dict[str, Any], emits: dict[str, str]) -> FlowMap:
    """Return the graph of declarations and of the real flow.

    Args:
        subscriptions: from `stream_stats`.
        flow: from `stream_flow`.
        emits: the key each handler is declared to emit.
    """
    graph = FlowMap()
    # Answers go straight back to whoever asked: no subscription reads them.
    written = [each for each in flow["written"] if each["key"] and not is_answer(each["key"])][:_KEYS]
    keys = dict.fromkeys([
        *(each["key"] for each in written),
        *emits.values(),
        *(pattern for each in subscriptions for pattern in each["patterns"] if is_exact(pattern)),
    ])  # fmt: skip
    amounts: dict[str, int] = defaultdict(int)
    for each in written:
        key = graph.node("key", each["key"])
        amounts[key] += each["count"]
        if each["agent"]:
            graph.edge(graph.node("agent", each["agent"]), key, each["count"])
        else:
            graph.nodes[key].outside += each["count"]
    for name, emitted in emits.items():
        graph.edge(graph.node("agent", name.partition(".")[0]), graph.node("key", emitted))
    handled = {(each["key"], each["subscription"]): each["count"] for each in flow["handled"]}
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in subscriptions:
        agent = graph.node("agent", each["agent"])
        groups[agent].append(each)
        for pattern in each["patterns"]:
            heard = [key for key in keys if matches(pattern, key)]
            # A pattern without messages so far is a node of its own.
            for found in heard or [pattern]:
                graph.edge(graph.node("key", found), agent, handled.pop((found, each["name"]), 0))
    for agent, mine in groups.items():
        node = graph.nodes[agent]
        node.health, node.note = health_of(mine)
    for node in graph.nodes.values():
        if node.kind == "agent" and not node.note:
            node.note = "writes only"
    for key, amount in amounts.items():
        graph.nodes[key].note = rate(amount / flow["seconds"] * 60) if flow["seconds"] else ""
    return graph


def health_of(subscriptions: Sequence[dict[str, Any]]) -> tuple[Health, str]:
    """Return how an agent is and what there is to say of it, by its handlers' figures."""
    counted = [each for each in subscriptions if "waiting" in each]
    if not counted:
        return "calm", "in every process"
    waiting, running, dead = (sum(each[name] for each in counted) for name in ("waiting", "running", "dead"))
    words = [
        f"{count(amount)} {name}"
        for amount, name in ((dead, "dead"), (waiting, "waiting"), (running, "running"))
        if amount
    ]
    paused = any(each["paused"] for each in counted)
    is_served = any(each["workers"] for each in counted)
    if paused:
        words.insert(0, "paused")
    if not is_served:
        words.insert(0, "no worker")
    note = " · ".join(words[:3]) or "idle"
    if dead or (waiting and not is_served):
        return "bad", note
    if waiting or paused:
        return "busy", note
    return ("good" if is_served else "calm"), note


def _rows(graph: FlowMap) -> list[dict[str, Any]]:
    """Return the agents with what they read and write, for readers of text."""
    rows = []
    for identity, node in sorted(graph.nodes.items()):
        if node.kind == "agent":
            reads = [
                (graph.nodes[a].name, amount)
                for (a, b), amount in sorted(graph.edges.items())
                if b == identity
            ]
            writes = [
                (graph.nodes[b].name, amount)
                for (a, b), amount in sorted(graph.edges.items())
                if a == identity
            ]
            rows.append({"node": node, "reads": reads, "writes": writes})
    return rows
