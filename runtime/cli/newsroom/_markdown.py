"""Markdown texts: their title, prose and links, and their HTML."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from urllib.parse import quote, unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

_GAPS = {"softbreak": " ", "hardbreak": " "}
_FRONT_MATTER = re.compile(r"\A---\r?\n.*?^---\s*$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[(?P<label>[^\]]*)\]\(\s*<?(?P<target>[^)>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)")


@cache
def _parser() -> MarkdownIt:
    """CommonMark with tables. Raw HTML is shown, never passed on: a note may come from anybody."""
    return MarkdownIt("commonmark", {"html": False}).enable("table")


def split_title(text: str) -> tuple[str | None, str]:
    """The first line's heading in plain words, if it is one, and the text without it or front matter."""
    body = _FRONT_MATTER.sub("", text.strip()).strip()
    head, _, rest = body.partition("\n")
    if not head.startswith("# "):
        return None, body
    return _words(_parser().parseInline(head[2:])[0]), rest.strip()


def paragraphs(text: str) -> list[str]:
    """The prose of a text as plain words: no headings, no code blocks, no tables."""
    tokens = _parser().parse(text)
    return [_words(token) for before, token in pairwise(tokens) if before.type == "paragraph_open"]


def _words(inline: Token) -> str:
    """What a reader sees of a line."""
    parts = inline.children or []
    kept = "".join(_GAPS.get(part.type, part.content) for part in parts)
    return " ".join(kept.split())


def internal_links(text: str) -> list[str]:
    """Where the text points within its own folder, each place once, without fragments."""
    files = (_file_of(_href(token)) for token in _links(_parser().parse(text)))
    return list(dict.fromkeys(file for file in files if file))


def drop_links(text: str, targets: set[str]) -> str:
    """The text with the links to these places reduced to their words."""
    return _LINK.sub(lambda link: link["label"] if _file_of(link["target"]) in targets else link[0], text)


def to_html(text: str, address: Callable[[str], str]) -> str:
    """The text as HTML; `address` turns the file an internal link means into where it is on the site."""
    tokens = _parser().parse(text)
    for token in _links(tokens):
        if file := _file_of(_href(token)):
            fragment = urlsplit(_href(token)).fragment
            token.attrSet("href", quote(address(file)) + (f"#{fragment}" if fragment else ""))
    return str(_parser().renderer.render(tokens, _parser().options, {}))


def _links(tokens: list[Token]) -> Iterator[Token]:
    """Every link among the tokens, however deep."""
    for token in tokens:
        if token.type == "link_open":
            yield token
        yield from _links(token.children or [])


def _href(token: Token) -> str:
    return str(token.attrGet("href") or "")


def _file_of(href: str) -> str | None:
    """The file a link means, or None if it leads elsewhere: to another site or within the page."""
    parts = urlsplit(href)
    return None if parts.scheme or parts.netloc else unquote(parts.path) or None
