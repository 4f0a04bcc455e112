"""The values of the newsroom's messages, and its two folders.

The agents share these, and none of them imports another.
"""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel


class Note(BaseModel):
    """`note.found`: raw Markdown, in the notes folder under `path` or given as `text`."""

    path: str
    text: str | None = None


class ArticleDraft(BaseModel):
    """`draft.written`: a note as an article; `revision` counts how often it was mended."""

    path: str
    title: str
    summary: str
    body: str
    revision: int = 0


class Fault(BaseModel):
    """One reason to reject a draft; `link` is set where dropping that link would mend it."""

    kind: Literal["dead link", "too short", "hard to read"]
    detail: str
    link: str | None = None


class Rejection(BaseModel):
    """`draft.rejected` and `draft.abandoned`: a draft and everything that is wrong with it."""

    draft: ArticleDraft
    faults: list[Fault]


class Approval(BaseModel):
    """`draft.approved`: a draft and what was measured."""

    draft: ArticleDraft
    words: int
    reading_ease: float


class Page(BaseModel):
    """`site.published`: a page of the site, its address relative to the site's folder."""

    path: str
    url: str
    title: str


def notes_folder() -> Path:
    """Where notes are read: NEWSROOM_NOTES, or the notes that ship with these agents."""
    return Path(os.environ.get("NEWSROOM_NOTES") or Path(__file__).with_name("notes"))


def output_folder() -> Path:
    """Where the site is written: NEWSROOM_OUTPUT, or `site` in the working directory."""
    return Path(os.environ.get("NEWSROOM_OUTPUT") or "site")


def inside(folder: Path, path: str) -> Path | None:
    """The file a path means, or None if it leads out of the folder: anybody who may write may name a path."""
    root = folder.resolve()
    file = (root / path).resolve()
    return file if file.is_relative_to(root) and file != root else None
