"""The publisher renders what was approved into a static site: a page each, and a front page of them all.

It asks people before it publishes a draft that was mended: the note's author has not seen that.
"""

import os
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import anyio
from jinja2 import Environment, FileSystemLoader
from pydantic import BaseModel

from runtime import Agent, Context, Message, Reject, Retry

from ._desk import Approval, Page, inside, output_folder
from ._markdown import to_html

agent = Agent("publisher")


class Article(BaseModel):
    """What the front page knows of a page; kept in the site's folder, so that any worker can draw it."""

    page: Page
    approval: Approval
    minutes: int
    written: datetime


# Ordered: two workers that drew the front page at once could each leave out the other's article.
@agent.on("draft.approved", emits="site.published", ordered=True, retry=Retry(on=(OSError,)))
async def publish(approval: Approval, message: Message[Approval], context: Context) -> Page:
    """Write the article's page, then the front page. Doing it twice leaves the same files."""
    draft = approval.draft
    if draft.revision:
        # Who runs the newsroom alone need not answer: after a minute it goes on.
        decision = await context.approve(
            f"Publish {draft.title!r}, from which links were dropped?",
            details={"path": draft.path, "words": approval.words},
            timeout="1m",
            on_timeout="approve",
        )
        if not decision:
            raise Reject(f"{decision.by} would not have it published: {decision.why}")
    return await anyio.to_thread.run_sync(_render, approval, message.created_at.astimezone(UTC))


def _render(approval: Approval, written: datetime) -> Page:
    draft, site = approval.draft, output_folder()
    url = _address(draft.path)
    target, record = inside(site, url), inside(site / ".articles", f"{draft.path}.json")
    if target is None or record is None:
        raise Reject(f"{draft.path!r} leads out of the site")
    page = Page(path=draft.path, url=url, title=draft.title)
    minutes = max(1, round(approval.words / 220))
    article = Article(page=page, approval=approval, minutes=minutes, written=written)
    html = to_html(draft.body, lambda file: _address(file) if file.endswith(".md") else file)
    _write(target, _template("article.html", article=article, html=html, root="../" * url.count("/")))
    _write(record, article.model_dump_json())

    records = sorted((site / ".articles").rglob("*.json"))
    articles = [Article.model_validate_json(record.read_text(encoding="utf-8")) for record in records]
    _write(site / "index.html", _template("index.html", articles=articles, root=""))
    return page


def _address(path: str) -> str:
    """Where a note's page is, relative to where the note is. A note called index leaves that name free."""
    folder, slash, name = path.removesuffix(".md").rpartition("/")
    return f"{folder}{slash}{'index-note' if name == 'index' else name}.html"


@cache
def _templates() -> Environment:
    return Environment(loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True)


def _template(name: str, **values: object) -> str:
    return _templates().get_template(name).render(values)


def _write(file: Path, text: str) -> None:
    """Replace the file in one step: a reader sees the old one or the new one, never half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
