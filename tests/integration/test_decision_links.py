"""Links that decide approvals: a whole server with its agents, over real HTTP."""

import html
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from runtime import Message, connect
from runtime.agent.decision_link import DecisionLinks
from runtime.client.stream import Stream
from tests.integration.conftest import connected, settings_of, settled, until
from tests.integration.test_webhooks_in import Server, started

pytestmark = pytest.mark.anyio

NEW, OLD, FOREIGN = (f"{word}-secret-that-signs-links-of-approvals" for word in ("new", "old", "foreign"))
PUBLIC = "https://agents.example/in"
MARKUP = "<script>alert(1)</script>"
AGENTS = """
from pydantic import BaseModel, Field
from runtime import Agent, Context, Message

desk = Agent("desk")

class Terms(BaseModel):
    cents: int = Field(ge=1)

@desk.on("refund.wanted", emits="refund.ended")
async def refund(wanted: dict, context: Context) -> dict:
    answer = Terms if "cents" in wanted else None
    decision = await context.approve(wanted["title"], details=wanted, answer=answer,
                                     timeout=wanted.get("timeout", "2d"), on_timeout="reject")
    return {"title": wanted["title"], "approved": decision.approved, "by": decision.by, "why": decision.why,
            "cents": decision.answer and decision.answer.cents}

@desk.on("approval.requested", emits="link.made")
async def tell(request: dict, message: Message, context: Context) -> dict:
    return {"title": request.get("title"), "ada": context.decision_link(message, by="ada@example.com"),
            "any": context.decision_link(message)}
"""


class People:
    """The server, its stream, and a browser that goes where a link leads."""

    def __init__(self, server: Server, stream: Stream, client: httpx.AsyncClient) -> None:
        self.server, self.stream, self.client = server, stream, client
        self.tokens: set[str] = set()

    async def asked(self, title: str, **wanted: Any) -> dict[str, str]:
        """Have the agent ask; returns the links it made."""
        await self.stream.send("refund.wanted", {"title": title, **wanted})
        made: dict[str, str] = await self.told("link.made", title)
        self.tokens |= {token_of(made[name]) for name in ("ada", "any")}
        return made

    async def told(self, key: str, title: str) -> Any:
        """The value of the message under a key about this title, once it is there."""
        found: list[Any] = []

        async def is_there() -> bool:
            found[:] = [each.value for each in await self.stream.read(key) if each.value["title"] == title]
            return bool(found)

        await until(is_there)
        assert len(found) == 1
        return found[0]

    async def open(self, link: str) -> httpx.Response:
        """Open a link."""
        assert link.startswith(f"{PUBLIC}/approval?token=")
        return await self.client.get(link.removeprefix(PUBLIC))

    async def press(self, token: str, approved: str, **fields: str) -> httpx.Response:
        """Press a button of the page."""
        return await self.client.post("/approval", data={"token": token, "approved": approved, **fields})


def token_of(link: str) -> str:
    """The signed part of a link."""
    return parse_qs(urlsplit(link).query)["token"][0]


@asynccontextmanager
async def deciding(stack: Any, folder: Path) -> AsyncIterator[People]:
    """A server under uvicorn, which logs each request, and runs the agents."""
    (folder / "desk.py").write_text(AGENTS)
    more = {
        "RUNTIME_AGENTS": "desk.py", "RUNTIME_PUBLIC_URL": f"{PUBLIC}/", "RUNTIME_APPROVAL_SECRET": f"{NEW} {OLD}",
    }  # fmt: skip
    command = [sys.executable, "-m", "uvicorn", "runtime.asgi:app"]
    async with (
        started(command, stack, folder, "Uvicorn running", **more) as server,
        connected(stack.db_url) as connection,
        connect(settings_of(stack)) as stream,
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
    ):
        await until(lambda: settled(connection, "desk.refund", "desk.tell"))
        yield People(server, stream, client)


async def test_who_has_a_signed_link_decides_once_and_nobody_else_does(stack: Any, tmp_path: Path) -> None:
    async with deciding(stack, tmp_path) as people:
        await _decides_once(people)
        await _asks_for_a_name_where_the_link_has_none(people)
        await _tells_nothing_without_a_signature_that_counts(people)
        log = people.server.log.read_text()
        assert '"GET /approval HTTP' in log
        assert not [text for text in ("token=", NEW, OLD, *people.tokens) if text in log]


async def _decides_once(people: People) -> None:
    made = await people.asked(f"Ada {MARKUP}", cents=120)
    for _ in range(3):
        # As the scanner of a mail server and the preview of a chat do.
        page = await people.open(made["ada"])
    assert page.status_code == 200
    assert [page.headers[name] for name in ("referrer-policy", "cache-control")] == [
        "no-referrer",
        "no-store",
    ]
    assert f"Ada {html.escape(MARKUP)}" in page.text
    assert MARKUP not in page.text
    assert await people.stream.read("*.decided") == []
    style = await people.client.get("/approval/static/dashboard.css")
    assert (style.status_code, style.headers["content-type"]) == (200, "text/css; charset=utf-8")

    token = token_of(made["ada"])
    wrong = await people.press(token, "yes", answer='{"cents": 0}', why="kind")
    assert (wrong.status_code, 'value="kind"' in wrong.text) == (422, True)
    assert "0 is less than the minimum of 1" in wrong.text
    # A name in the form counts only where the link has none.
    good = await people.press(token, "yes", answer='{"cents": 50}', why="kind", by="mallory")
    assert (good.status_code, "You have approved this." in good.text) == (200, True)
    assert await people.told("refund.ended", f"Ada {MARKUP}") == {
        "title": f"Ada {MARKUP}", "approved": True, "by": "ada@example.com", "why": "kind", "cents": 50,
    }  # fmt: skip
    late = await people.press(token_of(made["any"]), "no", by="Bob")
    again = await people.open(made["any"])
    for page, status in ((late, 409), (again, 200)):
        assert (page.status_code, "<form" in page.text) == (status, False)
        assert "It was approved by ada@example.com" in page.text
        assert "kind" in page.text


async def _asks_for_a_name_where_the_link_has_none(people: People) -> None:
    token = token_of((await people.asked("Bob?"))["any"])
    nameless = await people.press(token, "no")
    assert (nameless.status_code, "Write your name" in nameless.text) == (422, True)
    assert (await people.press(token, "perhaps", by="Eve")).status_code == 422
    assert (await people.press(token, "yes", by="E\0ve")).status_code == 422
    assert (await people.press(token, "no", by="Eve")).status_code == 200
    ended = await people.told("refund.ended", "Bob?")
    assert (ended["approved"], ended["by"], ended["why"]) == (False, "Eve", None)


async def _tells_nothing_without_a_signature_that_counts(people: People) -> None:
    over = await people.asked("Cid?", timeout=1)
    assert (await people.told("refund.ended", "Cid?"))["by"] is None
    await people.asked("Dan?")
    asked = (await people.stream.read("approval.requested"))[-1]
    ours, theirs = (DecisionLinks([secret], f"{PUBLIC}/approval") for secret in (OLD, FOREIGN))
    # The same number in another database.
    other = Message(asked.id, asked.key, {}, created_at=asked.created_at + timedelta(seconds=1))
    for link, status in (
        (over["any"], 410),
        (ours.url(asked, now=datetime.now(UTC) - timedelta(days=9)), 410),
        (ours.url(other), 404),
        (theirs.url(asked), 403),
        (f"{PUBLIC}/approval?token={asked.id}", 403),
    ):
        for answer in (await people.open(link), await people.press(token_of(link), "yes", by="Eve")):
            assert answer.status_code == status
            assert not [name for name in ("Cid", "Dan", "<form") if name in answer.text]
    assert len(await people.stream.read("approval.decided")) == 2
    # The old secret still counts.
    assert "Dan?" in (await people.open(ours.url(asked))).text
    # Any program may write under the key of requests.
    bare = await people.stream.get((await people.stream.send("approval.requested", {})).id)
    assert bare is not None
    assert "A request without a title" in (await people.open(ours.url(bare))).text
