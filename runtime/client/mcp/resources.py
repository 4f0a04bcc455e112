"""Keys and patterns as resources, `stream://task.*`: their newest messages, and word of new ones."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import quote, unquote

import anyio
from mcp.types import Resource, ResourceTemplate, TextResourceContents

from runtime.client.mcp.tools import MAX_RESULT_CHARACTERS
from runtime.client.stream import Stream
from runtime.encoding.json import legible
from runtime.errors import InvalidKey, RuntimeFault, first_fault
from runtime.keys import check_pattern
from runtime.message import ANSWERS, Message

_log = logging.getLogger("runtime.client.mcp")
_SCHEME: Final = "stream://"
_JSON: Final = "application/json"
_NEWEST: Final = 50
_MOST_KEYS: Final = 200
# Many messages at once are one word to a client, which reads the resource then.
_GATHER_SECONDS: Final = 0.2
_OPEN_IDS: Final = 100

TEMPLATE: Final = ResourceTemplate(
    uri_template=f"{_SCHEME}{{pattern}}",
    name="messages",
    description=f"The newest {_NEWEST} messages under a key or pattern: * stands for one segment, > for one or more.",
    mime_type=_JSON,
)


def pattern_of(uri: str) -> str:
    """Return the pattern that a URI names.

    Raises:
        InvalidKey: it names none.
    """
    if not uri.startswith(_SCHEME):
        raise InvalidKey(f"Resources are named {_SCHEME}KEY, such as {_SCHEME}task.*, not {ascii(uri)[:80]}.")
    return check_pattern(unquote(uri.removeprefix(_SCHEME)).removesuffix("/"))


async def resources(stream: Stream) -> list[Resource]:
    """Return the keys that were written last, without those of answers.

    Raises:
        StoreError: the stream cannot be read.
    """
    newest = await stream.latest_of_each(">", limit=_MOST_KEYS)
    return [
        Resource(uri=f"{_SCHEME}{quote(each.key, safe=':')}", name=each.key, mime_type=_JSON)
        for each in newest
        if not each.key.startswith(ANSWERS)
    ]


async def contents(stream: Stream, uri: str) -> TextResourceContents:
    """Return the newest messages of a resource, the oldest of them first, as a JSON list.

    Raises:
        InvalidKey: the URI names no pattern.
        StoreError: the stream cannot be read.
    """
    messages = await stream.read(pattern_of(uri), limit=_NEWEST)
    shown: list[str] = []
    left = MAX_RESULT_CHARACTERS
    for message in reversed(messages):
        text = legible(_row(message))
        if (left := left - len(text)) < 0:
            text = legible({**_row(message), "value": None, "cut": f"{len(text):,} characters"})
            shown.append(text)
            break
        shown.append(text)
    return TextResourceContents(uri=uri, mime_type=_JSON, text=f"[{', '.join(reversed(shown))}]")


def _row(message: Message[Any]) -> dict[str, Any]:
    return {
        "id": message.id,
        "key": message.key,
        "value": message.value,
        "agent": message.agent,
        "created_at": message.created_at.isoformat(),
        "correlation_id": message.correlation_id,
        "parent_id": message.parent_id,
    }


async def watch_from(stream: Stream) -> int:
    """Return the id after which a watch that begins now has to look.

    It is a little below the newest one, for transactions that are still open; word of what is not new costs one read.

    Raises:
        StoreError: the stream cannot be read.
    """
    newest = await stream.read(limit=1)
    return max(0, newest[0].id - _OPEN_IDS) if newest else 0


async def watch(stream: Stream, uri: str, since: int, tell: Callable[[], Awaitable[None]]) -> None:
    """Call `tell` after new messages of a resource, until cancelled, or until it cannot be watched any more.

    Args:
        stream: to listen to.
        uri: of the resource.
        since: as `watch_from` returned it.
        tell: tells the client.
    """
    news, heard = anyio.create_memory_object_stream[None](1)

    async def listen() -> None:
        async with aclosing(stream.listen(pattern_of(uri), since=since)) as messages:
            async for _ in messages:
                if not news.statistics().current_buffer_used:
                    news.send_nowait(None)

    with news, heard:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                async for _ in heard:
                    await tell()
                    await anyio.sleep(_GATHER_SECONDS)
        except* RuntimeFault as faults:
            _log.warning("%s is not watched any more: %s", ascii(uri)[:80], first_fault(faults))
