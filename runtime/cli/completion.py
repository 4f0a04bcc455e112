"""Shell completion with names from the stream.

An error would be of no use in the middle of what is typed: without an answer nothing is completed.
"""

import os
from collections.abc import Awaitable, Callable
from contextlib import redirect_stderr
from typing import Any, Final

# For a project far away; a person who does not want to wait presses Ctrl-C.
_PATIENCE_SECONDS: Final = 15.0
_SHOWN: Final = 200

# A name with a hint, for the shells that show hints.
Names = dict[str, str]


def keys(incomplete: str) -> list[tuple[str, str]]:
    """Return the keys of recent messages and of handlers."""
    return _matching(incomplete, _named(_keys))


def patterns(incomplete: str) -> list[tuple[str, str]]:
    """Return the patterns of handlers, and keys."""
    return _matching(incomplete, _named(_patterns))


def handlers(incomplete: str) -> list[tuple[str, str]]:
    """Return the subscriptions, which are named agent.handler."""
    return _matching(incomplete, _named(_handlers))


def agents(incomplete: str) -> list[tuple[str, str]]:
    """Return the agents of subscriptions and of recent messages."""
    return _matching(incomplete, _named(_agents))


def _matching(incomplete: str, names: Names) -> list[tuple[str, str]]:
    return [(name, about) for name, about in sorted(names.items()) if name.startswith(incomplete)][:_SHOWN]


async def _handlers(stream: Any) -> Names:
    return {each["name"]: " ".join(each["patterns"]) for each in (await stream.stats())["subscriptions"]}


async def _patterns(stream: Any) -> Names:
    return {**await _written(stream, "key"), **_listeners(await stream.stats(), lambda _: True)}


async def _keys(stream: Any) -> Names:
    from runtime.keys import is_exact

    return {**await _written(stream, "key"), **_listeners(await stream.stats(), is_exact)}


async def _agents(stream: Any) -> Names:
    subscribed = {each["agent"]: "" for each in (await stream.stats())["subscriptions"]}
    return {**await _written(stream, "agent"), **subscribed}


async def _written(stream: Any, what: str) -> Names:
    """Return the keys or agents of the last messages."""
    flow = await stream.views.flow()
    return {each[what]: "" for each in flow["written"] if each[what]}


def _listeners(stats: dict[str, Any], is_meant: Callable[[str], bool]) -> Names:
    """Return the handlers by pattern."""
    found: dict[str, list[str]] = {}
    for each in stats["subscriptions"]:
        for pattern in filter(is_meant, each["patterns"]):
            found.setdefault(pattern, []).append(each["name"])
    return {pattern: ", ".join(names) for pattern, names in found.items()}


def _named(ask: Callable[[Any], Awaitable[Names]]) -> Names:
    """Return the stream's answer; nothing if there is no stream, or if it takes too long."""
    import anyio

    async def asked() -> Names:
        from runtime.cli.find_stream import find_settings
        from runtime.client.stream import connect

        with anyio.move_on_after(_PATIENCE_SECONDS):
            settings = find_settings().model_copy(update={"request_seconds": _PATIENCE_SECONDS})
            async with connect(settings) as stream:
                return await ask(stream)
        return {}

    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
            return anyio.run(asked)
    except (Exception, SystemExit, KeyboardInterrupt):  # noqa: BLE001 - any text of ours would stand in the middle of what is typed
        return {}
