"""Agents for the dashboard's tests: they write, publish and fail where they are told to, ask people, and undo."""

import asyncio

from pydantic import BaseModel, Field

from runtime import Agent, Context, Reject, Retry

writer = Agent("writer")
publisher = Agent("publisher")
cashier = Agent("cashier")
printer = Agent("printer")


class Note(BaseModel):
    """What a writer takes."""

    title: str
    words: int = 0


@writer.on("note.added", emits="draft.written")
async def write(note: Note, context: Context) -> dict[str, object]:
    """Make a draft of a note."""
    context.usage(tokens_in=1200, tokens_out=34, cost=0.25, model="model-4")
    context.status(f"drafting {note.title}")
    title = await context.step("title", note.title.strip)
    return {"title": title, "words": note.words}


@writer.every("12h", missed="none")
async def tidy() -> None:
    """Twice a day."""


@publisher.on("draft.written", retry=Retry(attempts=1))
async def publish(draft: dict[str, object], context: Context) -> None:
    """Publish a draft, unless its title says to fail."""
    context.broadcast("publishing", f"Setting {draft['title']} ")
    if "broken" in str(draft["title"]):
        raise ValueError(f"no template for {draft['title']!r}")
    context.emit("site.published", {"url": f"/{draft['title']}"})


class Refund(BaseModel):
    """What a person says with an approval."""

    cents: int = Field(ge=1)


@cashier.on("refund.wanted")
async def refund(wanted: dict[str, object], context: Context) -> None:
    """Ask people before money goes back."""
    decision = await context.approve(
        f"Refund {wanted['name']}?", details=wanted, answer=Refund if wanted.get("sum") else None
    )
    context.emit(
        "refund.decided", {"approved": decision.approved, "cents": decision.answer and decision.answer.cents}
    )


async def collect(title: str) -> None:
    """Bring back what was printed, which takes until somebody stops it."""
    await asyncio.sleep(3600)


@printer.step(undo=collect)
async def deliver(title: str) -> None:
    """Bring it to the shops."""


@printer.on("print.ordered")
async def print_off(title: str, context: Context) -> None:
    """Find out too late that nobody wants it."""
    await context.step("deliver", deliver, title)
    raise Reject("nobody wants it")
