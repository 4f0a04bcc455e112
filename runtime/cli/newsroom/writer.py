"""The writer turns a note into a draft, and mends a draft once when the reviewer sends it back."""

import os

from anyio import Path

from runtime import Agent, Context, Reject, Retry

from ._desk import ArticleDraft, Note, Rejection, inside, notes_folder
from ._markdown import drop_links, paragraphs, split_title
from ._prose import summary

agent = Agent("writer")


@agent.on(
    "note.found", emits="draft.written", retry=Retry(never_on=(UnicodeError,)), concurrency=4, timeout=90
)
async def draft(note: Note, context: Context) -> ArticleDraft:
    """Read the note and write its article: a title, a summary, a body."""
    title, body = split_title(note.text if note.text is not None else await _read(note.path))
    return ArticleDraft(
        path=note.path,
        title=title or note.path.rpartition("/")[2].removesuffix(".md").replace("-", " ").capitalize(),
        summary=await _summarise(body, context),
        body=body,
    )


@agent.on("draft.rejected")
def mend(rejection: Rejection, context: Context) -> None:
    """Drop the dead links and hand the draft in again; what cannot be mended, or was before, is abandoned."""
    rejected = rejection.draft
    dead = {fault.link for fault in rejection.faults if fault.link}
    if rejected.revision > 0 or len(dead) < len(rejection.faults):
        context.emit("draft.abandoned", rejection)
        return
    mended = {"body": drop_links(rejected.body, dead), "revision": rejected.revision + 1}
    context.emit("draft.written", rejected.model_copy(update=mended))


async def _read(path: str) -> str:
    """The note's text. A note that is not there will not come by trying again."""
    file = inside(notes_folder(), path)
    if file is None or not await Path(file).is_file():
        raise Reject(f"there is no note {path!r} in {notes_folder()}")
    return await Path(file).read_text(encoding="utf-8")


async def _summarise(body: str, context: Context) -> str:
    """Two sentences: a model's, broadcast as it writes them, if there is a key for one; else the two that say most."""
    if os.environ.get("ANTHROPIC_API_KEY") and body:
        from ._model import summarise

        return await summarise(body, lambda token: context.broadcast("draft.token", token))
    return summary(paragraphs(body))
