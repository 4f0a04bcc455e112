"""The messages, newest first, with their outcomes, live."""

import json
import shlex
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse

from runtime.client.queries import Queries
from runtime.dashboard.context import DashboardContext, context_of, moment_of, number_of
from runtime.dashboard.filters import is_open
from runtime.dashboard.listeners import is_own, silence
from runtime.dashboard.samples import sample_of
from runtime.errors import InvalidKey
from runtime.keys import check_pattern, is_exact

STATES = ("open", "failed", "dead", "done", "unhandled")
_FIELDS = ("pattern", "agent", "state", "text", "since", "until")
_PAGE = 50
_LOOK, _LOOK_ON = 5_000, 20_000
# How far a search for rare messages goes on by itself.
_LOOK_ALONE = 200_000


@dataclass(frozen=True, slots=True)
class Filter:
    """The filter of messages, which the page's address holds, so that the address can be shared."""

    given: dict[str, str]
    pattern: str
    fault: str | None

    @classmethod
    def of(cls, request: Request) -> Self:
        """Return the filter of a request's parameters; a wrong pattern or time is reported, and matches all."""
        given = {name: request.query_params.get(name, "").strip() for name in _FIELDS}
        fault, pattern = None, given["pattern"] or ">"
        try:
            check_pattern(pattern)
        except InvalidKey as error:
            fault, pattern = str(error), ">"
        for name in ("since", "until"):
            if given[name] and moment_of(given[name]) is None:
                fault = f"{given[name]!r} is no time. Write 14:30, 2026-12-24 14:30 (both UTC), or 15m, 2h, 3d for ago."
        if given["state"] not in STATES:
            given["state"] = ""
        return cls(given, pattern, fault)

    @property
    def query(self) -> str:
        """The parameters that are set."""
        return urlencode({name: text for name, text in self.given.items() if text})

    async def page(
        self,
        views: Queries,
        *,
        before: int | None = None,
        after: int | None = None,
        limit: int = _PAGE,
        look: int = _LOOK,
    ) -> dict[str, Any]:
        """Return the messages that match."""
        given: dict[str, Any] = self.given
        return await views.page(
            self.pattern,
            before=before,
            after=after,
            limit=limit,
            agent=given["agent"] or None,
            state=given["state"] or None,
            text=given["text"] or None,
            since=moment_of(given["since"]),
            until=moment_of(given["until"]),
            look=look,
        )


async def stream_page(request: Request) -> HTMLResponse:
    """Return the page."""
    context, chosen = context_of(request), Filter.of(request)
    before = number_of(request.query_params.get("before"))
    page = await chosen.page(context.stream.views, before=before)
    agents = sorted({each["agent"] for each in (await context.live_state.stats.get())["subscriptions"]})
    waiting = [str(each["id"]) for each in page["messages"] if is_open(each["handled"])]
    # A page of the past shows no new messages.
    follows = before is None and not chosen.given["until"]
    live = urlencode({**chosen.given, "after": page["newest"] or 0, "watch": ",".join(waiting)})
    is_first = page["newest"] is None and not chosen.query
    return await context.page(
        "stream.html", active="stream", chosen=chosen, agents=agents, states=STATES, follows=follows,
        events=f"?{live}" if follows else "", is_new=False, query=chosen.query, is_first=is_first,
        **(await _first(context) if is_first else {}), **_found(page), **await told(context, page),
    )  # fmt: skip


async def rows(request: Request) -> HTMLResponse:
    """Return the next older rows."""
    context, chosen = context_of(request), Filter.of(request)
    looked = number_of(request.query_params.get("looked")) or 0
    page = await chosen.page(
        context.stream.views,
        before=number_of(request.query_params.get("before")),
        look=_LOOK_ON if looked else _LOOK,
    )
    return context.part(
        "_rows.html",
        is_new=False,
        is_first=False,
        query=chosen.query,
        **_found(page, looked),
        **await told(context, page),
    )


async def first(request: Request) -> HTMLResponse:
    """Return what to do while nothing has been written yet."""
    context = context_of(request)
    return context.part("_first.html", **await _first(context))


async def told(context: DashboardContext, page: dict[str, Any]) -> dict[str, Any]:
    """Return a page whose messages tell, as `silence`, why no handler got them."""
    subscriptions = (await context.live_state.stats.get())["subscriptions"]
    for each in page["messages"]:
        each["silence"] = silence(each, subscriptions, context.schemas.declared)
    return page


async def _first(context: DashboardContext) -> dict[str, Any]:
    """Return the handlers that listen, and a first message for one of them."""
    subscriptions = (await context.live_state.stats.get())["subscriptions"]
    key, value = "task.created", '{"text": "hello"}'
    exact = ((each, pattern) for each in subscriptions for pattern in each["patterns"] if is_exact(pattern))
    for handler, listened in exact:
        if not is_own(listened):
            key = listened
            value = json.dumps(sample_of(context.schemas.declared.get(handler["name"])), ensure_ascii=False)
            break
    return {
        "listening": subscriptions,
        "key": key,
        "value": value,
        "command": f"runtime send {key} {shlex.quote(value)}",
    }


def _found(page: dict[str, Any], looked: int = 0) -> dict[str, Any]:
    """Return how many rows were searched in vain, and whether the search goes on by itself."""
    in_vain = 0 if page["messages"] else looked + page["looked"]
    return {"in_vain": in_vain, "goes_on": in_vain < _LOOK_ALONE}
