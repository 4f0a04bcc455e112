"""Is a request that fails answered in the shape it was asked for, and its fault told to the log, without secrets?"""

from typing import Any

import anyio
import asyncpg
import httpx
import pytest

from runtime.client.stream import connect
from runtime.dashboard.app import make_app
from runtime.dashboard.context import DashboardContext
from runtime.dashboard.live_state import LiveState
from runtime.dashboard.schemas import Schemas
from runtime.dashboard.security import CSRF_HEADER, Guard
from runtime.settings import Settings

# What another version of the schema could answer.
BREAK = (
    "create or replace function public.{function} returns json language sql as "
    """$$ select '{{"secret": "s3cret"}}'::json $$"""
)


async def asked(url: str) -> dict[str, httpx.Response]:
    """The answers of a dashboard whose database answers otherwise."""
    settings = Settings.load(database_url=url, supabase_url=None, supabase_key=None)
    admin = await asyncpg.connect(url)
    try:
        await admin.execute(BREAK.format(function="stream_trace(message bigint, max integer default 200)"))
        async with connect(settings) as stream:
            guard = Guard(80, "t0ken-of-the-door")
            app: Any = make_app(DashboardContext(stream, LiveState(stream), guard, Schemas()), guard)
            opened = httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url="http://127.0.0.1",
                headers={"authorization": "token t0ken-of-the-door"},
            )
            own = {"origin": "http://127.0.0.1", CSRF_HEADER: guard.csrf}
            async with opened as client:
                page = "/message/1?secret=inquery"
                found = {
                    "page": await client.get(page),
                    "part": await client.get(page, headers={"hx-request": "true"}),
                    "json": await client.get(page, headers={"accept": "application/json"}),
                    "method": await client.put("/overview", headers=own),
                    "what": await client.post("/dead/group/forget", headers=own, data={"ids": "1"}),
                    "none": await client.get("/nothing", headers={"accept": "application/json"}),
                }
                # Now not even the strip of health of an error's page can be had.
                await admin.execute(BREAK.format(function="stream_stats()"))
                app = make_app(DashboardContext(stream, LiveState(stream), guard, Schemas()), guard)
                client._transport = httpx.ASGITransport(app)
                return found | {"bare": await client.get("/overview")}
    finally:
        await admin.close()


def test_what_no_page_expects_is_answered_and_logged_with_its_place(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = anyio.run(asked, database)
    assert {name: each.status_code for name, each in found.items()} == {
        "page": 500, "part": 500, "json": 500, "method": 405, "what": 404, "none": 404, "bare": 500,
    }  # fmt: skip
    place = "KeyError, at dashboard/pages/message.py"
    assert all(place in found[name].text for name in ("page", "part", "json"))
    assert "<nav" in found["page"].text
    assert "<" not in found["part"].text
    assert found["json"].json()["status"] == 500
    assert "This cannot be asked for" in found["method"].text
    assert found["none"].json() == {"error": "/nothing", "status": 404}
    assert "KeyError, at" in found["bare"].text
    assert "<nav" not in found["bare"].text
    assert all("content-security-policy" in each.headers for each in found.values())
    assert "the dashboard failed at GET /message/1: KeyError at dashboard/pages/message.py:" in caplog.text
    told = caplog.text + "".join(each.text for each in found.values())
    assert not any(secret in told for secret in ("s3cret", "inquery", "t0ken", "Internal Server Error"))
