"""The agents and keys as a graph: writers, readers and flow."""

from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse

from runtime.dashboard.charts import NODE_HEIGHT, NODE_WIDTH, Map
from runtime.dashboard.context import DashboardContext, context_of
from runtime.keys import is_exact, matches

_KEYS = 60


async def map_page(request: Request) -> HTMLResponse:
    """Return the page."""
    context = context_of(request)
    return await context.page("map.html", active="map", events="", **await _map(context))


async def drawing(request: Request) -> HTMLResponse:
    """Return the drawing alone."""
    context = context_of(request)
    return context.part("_map.html", **await _map(context))


async def _map(context: DashboardContext) -> dict[str, Any]:
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
    graph.lay_out()
    return {
        "graph": graph,
        "curves": list(graph.curves(flow["seconds"] or 0)),
        "node_width": NODE_WIDTH,
        "node_height": NODE_HEIGHT,
        "flow": flow,
    }


def draw(subscriptions: list[dict[str, Any]], flow: dict[str, Any], emits: dict[str, str]) -> Map:
    """Return the graph of declarations and of the real flow.

    Args:
        subscriptions: from `stream_stats`.
        flow: from `stream_flow`.
        emits: the key each handler is declared to emit.
    """
    graph = Map()
    written = [each for each in flow["written"] if each["key"]][:_KEYS]
    keys = dict.fromkeys([
        *(each["key"] for each in written),
        *emits.values(),
        *(pattern for each in subscriptions for pattern in each["patterns"] if is_exact(pattern)),
    ])  # fmt: skip
    for each in written:
        writer = (
            graph.node("agent", each["agent"]) if each["agent"] else graph.node("outside", "from outside")
        )
        graph.edge(writer, graph.node("key", each["key"]), each["count"])
    for name, key in emits.items():
        graph.edge(graph.node("agent", name.partition(".")[0]), graph.node("key", key))
    handled = {(each["key"], each["subscription"]): each["count"] for each in flow["handled"]}
    for each in subscriptions:
        agent = graph.node("agent", each["agent"])
        for pattern in each["patterns"]:
            heard = [key for key in keys if matches(pattern, key)]
            # A pattern without messages so far is a node of its own.
            for key in heard or [pattern]:
                graph.edge(graph.node("key", key), agent, handled.pop((key, each["name"]), 0))
    return graph
