"""What all pages share: the stream, its live state, the handlers' schemas, and the templates."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from runtime.client.stream import Stream
from runtime.dashboard.filters import FILTERS
from runtime.dashboard.live_state import LiveState
from runtime.dashboard.schemas import Schemas
from runtime.dashboard.security import Guard
from runtime.dashboard.thread import THREAD_FILTERS
from runtime.errors import StoreError, StoreUnavailable

FOLDER: Final = Path(__file__).parent
_GONE_SECONDS: Final = 60
_AGO: Final = re.compile(r"(\d{1,4}) ?([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
PAGES: Final = (
    ("stream", "/", "Stream", "s"),
    ("overview", "/overview", "Overview", "o"),
    ("agents", "/agents", "Agents", "a"),
    ("map", "/map", "Map", "m"),
    ("approvals", "/approvals", "Approvals", "p"),
    ("dead", "/dead", "Dead letters", "d"),
    ("write", "/write", "Write", "w"),
)


class DashboardContext:
    """Everything a page needs, one per dashboard."""

    def __init__(self, stream: Stream, live_state: LiveState, guard: Guard, schemas: Schemas) -> None:
        self.stream = stream
        self.live_state = live_state
        self.schemas = schemas
        self._templates = make_templates()
        self._templates.globals.update(pages=PAGES, csrf=guard.csrf, place=stream.place)

    def text(self, template: str, **context: Any) -> str:
        """Return a rendered template."""
        return self._templates.get_template(template).render(**context)

    async def page(self, template: str, *, active: str, status: int = 200, **context: Any) -> HTMLResponse:
        """Return a whole page, with its strip of health."""
        health = await self.health()
        return HTMLResponse(self.text(template, active=active, health=health, **context), status)

    def part(self, template: str, **context: Any) -> HTMLResponse:
        """Return a part of a page as a response."""
        return HTMLResponse(self.text(template, **context))

    async def health(self) -> dict[str, Any]:
        """Return the values of the strip of health; while the store is away, its error."""
        try:
            stats = await self.live_state.stats.get()
        except StoreError as error:
            return health_without(error)
        return {
            "fault": None,
            "is_away": False,
            "stats": stats,
            "took": self.live_state.stats.took_seconds,
            **_ways(stats),
        }


def health_without(error: StoreError) -> dict[str, Any]:
    """Return the values of the strip of health while the stream cannot be read."""
    return {"fault": str(error), "is_away": isinstance(error, StoreUnavailable), "stats": None}


def make_templates() -> Environment:
    """Return the templates, with their filters."""
    templates = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(FILTERS | THREAD_FILTERS)
    return templates


def context_of(request: Request) -> DashboardContext:
    """Return the context of the dashboard a request came to."""
    context: DashboardContext = request.app.state.context
    return context


def moment_of(text: str | None) -> datetime | None:
    """Return the time in a field of a form; None if it is empty or no time.

    Args:
        text: a date with or without a time, in UTC unless it says otherwise; a time of today, 14:30; or how long ago,
            15m, 2h or 3d.
    """
    text = (text or "").strip()
    now = datetime.now(UTC)
    if ago := _AGO.fullmatch(text):
        return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        return datetime.combine(now.date(), time.fromisoformat(text), UTC)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def number_of(text: str | None) -> int | None:
    """Return the whole number in a parameter; None if it is empty or no number."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


def _ways(stats: dict[str, Any]) -> dict[str, Any]:
    """Return how the workers are woken, in one word, and since when, with the totals."""
    here = [each for each in stats["workers"] if each["seen_seconds"] <= _GONE_SECONDS]
    working = [each for each in here if not each["details"].get("is_quarantine")]
    told = [each["details"] for each in working if "way_in" in each["details"]]
    words = {each["way_in"] for each in told}
    way = "deaf" if "deaf" in words else "polling" if "polling" in words else "live" if words else "none"
    since: Sequence[float] = [
        worker["details"].get("way_in_seconds", 0.0) + worker["seen_seconds"]
        for worker in working
        if worker["details"].get("way_in") == way
    ]
    return {
        "way": way,
        "since": min(since, default=None),
        "workers": len(working),
        "idle": sum(not each["running"] for each in working),
        "gone": len(stats["workers"]) - len(here),
        "waiting": sum(each["waiting"] for each in stats["subscriptions"]),
        "scheduled": sum(each["scheduled"] for each in stats["subscriptions"]),
        "suspended": sum(each["suspended"] for each in stats["subscriptions"]),
        "undoing": sum(each["undoing"] for each in stats["subscriptions"]),
        "about": any(each.get("about") for each in stats["subscriptions"]),
        "running": sum(each["running"] for each in stats["subscriptions"]),
        "paused": sum(each["paused"] for each in stats["subscriptions"]),
    }
