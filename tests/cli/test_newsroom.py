"""The newsroom, its handlers called as the functions they are and run together, on real notes and a real folder."""

import inspect
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from runtime import Context, Message, Reject, RetryLater, connect
from runtime.agent.dependencies import Dependencies
from runtime.agent.discovery import discover
from runtime.agent.handler import Handler
from runtime.cli import newsroom
from runtime.message import Draft
from runtime.testing import Harness

pytestmark = pytest.mark.anyio
FOLDER = Path(newsroom.__file__).parent
AGENTS = {agent.name: agent for agent in discover([FOLDER])}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEWSROOM_OUTPUT", str(tmp_path / "site"))
    for name in ("NEWSROOM_NOTES", "ANTHROPIC_API_KEY", "NEWSROOM_MODEL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "site"


def handlers() -> list[Handler]:
    return [handler for agent in AGENTS.values() for handler in agent.handlers]


def files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


async def handle(
    name: str, value: object, *, number: int = 1, key: str = "test", broadcasts: list[Any] | None = None
) -> list[tuple[str, Any]]:
    """Run one handler on one message, as a worker would; what it emitted, as it would be stored.

    Its broadcasts are put into `broadcasts`.
    """
    (handler,) = (handler for handler in handlers() if handler.name == name)
    message = Message(number, key, value)
    context = Context(message, name)
    if broadcasts is not None:
        context.send_broadcast = lambda key, text: broadcasts.append((key, json.loads(text)["value"]))
    dependencies = handler.dependencies or Dependencies((), is_async=handler.is_async)
    arguments = handler.bind(message, context)
    if handler.batch is not None:
        arguments = {parameter: [argument] for parameter, argument in arguments.items()}
    result = await dependencies.call(run, handler.function, arguments, context)
    handler.emit_result(result, context)
    return [(draft.key, draft.as_dict()["value"]) for draft in context.emitted]


async def run(call: Callable[[], object]) -> object:
    """Run an async function, or a plain one where we are."""
    result = call()
    return await result if inspect.isawaitable(result) else result


class Html(HTMLParser):
    """Reads a page and complains about tags that do not close."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in ("meta", "br", "hr", "img"):
            self.open.append(tag)
        self.links += [value for name, value in attrs if name == "href" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def approval(path: str, body: str, title: str = "A title") -> dict[str, Any]:
    draft = {"path": path, "title": title, "summary": "Short.", "body": body}
    return {"draft": draft, "words": 250, "reading_ease": 61.5}


def draft(body: str, *, path: str = "leases.md", revision: int = 0) -> dict[str, Any]:
    return {"path": path, "title": "T", "summary": "S", "body": body, "revision": revision}


PLAIN = "The cat sat on the mat and looked at the door for a long time. " * 6


def test_four_agents_are_found_and_none_is_named_agents() -> None:
    assert list(AGENTS) == ["archivist", "publisher", "reviewer", "writer"]
    assert {pattern for handler in handlers() for pattern in handler.patterns} == {
        ">", "draft.approved", "draft.written", "note.found", "draft.rejected",
    }  # fmt: skip


async def test_the_writer_drafts_a_note_out_of_its_own_sentences() -> None:
    ((key, written),) = await handle("writer.draft", {"path": "leases.md"})
    note = (FOLDER / "notes" / "leases.md").read_text(encoding="utf-8")
    assert key == "draft.written"
    assert written["title"] == "A lease is a right that ends by itself"
    assert written["body"].startswith("A worker takes a job")
    assert written["summary"].startswith("A worker takes a job and then the machine loses power. ")
    assert all(sentence in note for sentence in written["summary"].split(". "))


async def test_the_writer_takes_a_text_that_comes_with_the_message() -> None:
    text = "---\ntags: [x]\n---\n# On `keys` and *more*\r\n\r\nOne thing. Another thing."
    ((_, written),) = await handle("writer.draft", {"path": "new/on-keys.md", "text": text})
    assert (written["title"], written["body"]) == ("On keys and more", "One thing. Another thing.")
    ((_, untitled),) = await handle("writer.draft", {"path": "new/on-keys.md", "text": "Just this."})
    assert (untitled["title"], untitled["summary"]) == ("On keys", "Just this.")
    ((_, empty),) = await handle("writer.draft", {"path": "empty.md", "text": ""})
    assert (empty["title"], empty["summary"], empty["body"]) == ("Empty", "", "")


@pytest.mark.parametrize("path", ["nowhere.md", "../writer.py", "/etc/passwd", "", "."])
async def test_the_writer_rejects_a_note_that_is_not_in_the_folder(path: str) -> None:
    with pytest.raises(Reject, match="there is no note"):
        await handle("writer.draft", {"path": path})


async def test_the_reviewer_names_all_that_is_wrong_at_once() -> None:
    body = "Two [dead](gone.md) [links](../writer.py), [a live one](fencing.md#end), [a site](https://a.org)."
    ((key, rejection),) = await handle("reviewer.review", draft(body))
    assert key == "draft.rejected"
    faults = [(fault["kind"], fault["link"]) for fault in rejection["faults"]]
    assert faults == [("dead link", "gone.md"), ("dead link", "../writer.py"), ("too short", None)]


async def test_the_reviewer_rejects_what_can_hardly_be_read() -> None:
    treatise = "Notwithstanding institutional considerations, internationalisation necessitates " * 13
    ((key, rejection),) = await handle("reviewer.review", draft(treatise))
    assert (key, rejection["faults"][0]["kind"]) == ("draft.rejected", "hard to read")
    ((key, approved),) = await handle("reviewer.review", draft(PLAIN))
    assert key == "draft.approved"
    assert approved["words"] == 90
    assert approved["reading_ease"] > 80


async def test_a_dead_link_is_mended_once_and_what_cannot_be_mended_is_abandoned() -> None:
    dead = {"kind": "dead link", "detail": "gone.md does not exist", "link": "gone.md"}
    short = {"kind": "too short", "detail": "3 words"}
    body = 'See [the end](gone.md#end "End"), [it](<gone.md>), ![pic](gone.md) and [leases](leases.md).'
    ((key, mended),) = await handle("writer.mend", {"draft": draft(body), "faults": [dead]})
    assert (key, mended["revision"]) == ("draft.written", 1)
    assert mended["body"] == "See the end, it, ![pic](gone.md) and [leases](leases.md)."
    for rejection in (
        {"draft": draft(body), "faults": [dead, short]},
        {"draft": draft(body, revision=1), "faults": [dead]},
    ):
        ((key, _),) = await handle("writer.mend", rejection)
        assert key == "draft.abandoned"


async def test_a_page_escapes_what_the_note_says_and_leads_to_its_neighbours(site: Path) -> None:
    body = (
        "<script>alert(1)</script> [x](javascript:alert(1)) [next](../b%20c.md#end) [own](#top) "
        "[site](https://example.org/a.md)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    ((key, page),) = await handle("publisher.publish", approval("deep/a.md", body, title="<b>Bold</b>"))
    assert (key, page["url"]) == ("site.published", "deep/a.html")
    html = Html(site / "deep" / "a.html")
    assert "script" not in html.tags
    assert html.tags["table"] == 1
    assert "<b>Bold</b>" in html.text
    assert html.links == ["../index.html", "../b%20c.html#end", "#top", "https://example.org/a.md"]
    assert Html(site / "index.html").links == ["deep/a.html"]


async def test_publishing_twice_leaves_the_same_files_and_nothing_besides(site: Path) -> None:
    (handler,) = AGENTS["publisher"].handlers
    message = Message(1, "draft.approved", approval("a.md", PLAIN))
    states = []
    for _ in range(2):
        await handler.function(**handler.bind(message, Context(message, handler.name)))
        states.append({str(file.relative_to(site)): file.read_bytes() for file in files_in(site)})
    assert set(states[0]) == {"a.html", "index.html", ".articles/a.md.json"}
    assert states[0] == states[1]


async def test_a_note_called_index_does_not_take_the_front_page(site: Path) -> None:
    ((_, page),) = await handle("publisher.publish", approval("index.md", PLAIN))
    assert page["url"] == "index-note.html"
    assert Html(site / "index.html").links == ["index-note.html"]


@pytest.mark.parametrize("path", ["../out.md", "/tmp/out.md", "a/../../out.md"])
async def test_a_page_stays_inside_the_site(path: str, site: Path) -> None:
    with pytest.raises(Reject, match="leads out of the site"):
        await handle("publisher.publish", approval(path, PLAIN))
    assert files_in(site.parent) == []


async def test_the_archive_has_each_message_once(site: Path) -> None:
    for _ in range(2):
        await handle("archivist.record", {"draft": {"title": "Leases"}}, number=5, key="draft.approved")
    await handle("archivist.record", [1, 2], number=6, key="other")
    with sqlite3.connect(site / "archive.sqlite") as archive:
        rows = archive.execute("select id, key, title from messages order by id").fetchall()
    archive.close()
    assert rows == [(5, "draft.approved", "Leases"), (6, "other", None)]


async def test_the_shipped_notes_become_a_site_whose_links_all_lead_somewhere(
    site: Path, harness: Harness
) -> None:
    notes = files_in(FOLDER / "notes")
    async with harness.running(*AGENTS.values()), connect(harness.settings) as stream:
        await stream.send_all([Draft("note.found", {"path": note.name}) for note in notes])
        # The one that was mended is asked about.
        asked = await harness.decide(seconds=60)
        assert asked["details"] == {"path": "polling-is-not-shame.md", "words": asked["details"]["words"]}
        await harness.drain(seconds=60)
    await harness.assert_no_dead_letters()
    messages = [(message.key, message.value) for message in await harness.messages()]
    count = Counter(key for key, _ in messages)
    published = len(notes) - 1
    assert count == {
        "note.found": len(notes), "draft.written": len(notes) + 1, "draft.rejected": 2, "draft.abandoned": 1,
        "draft.approved": published, "site.published": published, "approval.requested": 1, "approval.decided": 1,
    }  # fmt: skip
    kinds = {fault["kind"] for key, value in messages if key == "draft.rejected" for fault in value["faults"]}
    assert kinds == {"dead link", "too short"}

    pages = [file for file in files_in(site) if file.suffix == ".html"]
    assert len(pages) == published + 1
    for file in pages:
        html = Html(file)
        assert html.tags["h1"] == 1
        assert all((file.parent / unquote(link.partition("#")[0])).is_file() for link in html.links)
    assert len(Html(site / "index.html").links) == published
    with sqlite3.connect(site / "archive.sqlite") as archive:
        assert archive.execute("select count(*) from messages").fetchone() == (len(messages),)
    archive.close()


@contextmanager
def model_service(
    status: int, answer: dict[str, Any] | list[dict[str, Any]]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A local server with the model service's address and manners; what it was asked is gathered.

    A list is answered as a stream of events.
    """
    asked: list[dict[str, Any]] = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            is_stream = isinstance(answer, list)
            body = (
                "".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in answer)
                if isinstance(answer, list)
                else json.dumps(answer)
            ).encode()
            self.send_response(status)
            self.send_header("content-type", "text/event-stream" if is_stream else "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_with_a_key_a_model_writes_the_summary_and_is_heard_writing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("anthropic")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    pieces = ["Leases end.", "\nNobody cleans", " up.\n"]
    message = {
        "id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": None,
        "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}, "content": [],
    }  # fmt: skip
    answer: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
            for piece in pieces
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 9},
        },
        {"type": "message_stop"},
    ]
    broadcasts: list[Any] = []
    with model_service(200, answer) as (url, asked):
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        ((_, written),) = await handle("writer.draft", {"path": "leases.md"}, broadcasts=broadcasts)
    assert broadcasts == [("draft.token", piece) for piece in pieces]
    assert written["summary"] == "Leases end. Nobody cleans up."
    assert asked[0]["model"] == "claude-haiku-4-5"
    assert "A worker takes a job" in asked[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("status", "outcome"), [(429, RetryLater), (529, RetryLater), (401, Reject), (404, Reject)]
)
async def test_a_busy_model_is_asked_again_later_and_a_refusal_is_final(
    status: int, outcome: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("anthropic")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    error = {"type": "error", "error": {"type": "some_error", "message": "not now"}}
    with model_service(status, error) as (url, _):
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        with pytest.raises(outcome) as caught:
            await handle("writer.draft", {"path": "leases.md"})
    assert "sk-secret" not in str(caught.value)
