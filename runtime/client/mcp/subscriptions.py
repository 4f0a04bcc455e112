"""Clients' subscriptions to resources, in both forms the protocol has had.

Since 2026-07-28 a subscription is a request that stays open; before, it is a note about a connection.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp.server.session import ServerSession
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourceUpdated
from mcp.types import INVALID_PARAMS, SubscriptionsListenRequestParams, SubscriptionsListenResult

from runtime.client.mcp.resources import pattern_of, watch, watch_from
from runtime.client.stream import Stream

# Each is a listener of its own at the database.
_MOST: Final = 100


class ResourceWatches:
    """The watches of all clients.

    Args:
        stream: to watch.
        tasks: where those of older clients run.
    """

    def __init__(self, stream: Stream, tasks: TaskGroup) -> None:
        self._stream = stream
        self._tasks = tasks
        self._open = 0
        self._noted: dict[tuple[int, str], anyio.CancelScope] = {}

    async def listen(
        self, ctx: ServerRequestContext[Any], params: SubscriptionsListenRequestParams
    ) -> SubscriptionsListenResult:
        """Serve a subscription that is an open request.

        Raises:
            InvalidKey: a URI names no pattern.
            MCPError: there are too many watches.
            StoreError: the stream cannot be read.
        """
        uris = list(dict.fromkeys(params.notifications.resource_subscriptions or ()))
        for uri in uris:
            pattern_of(uri)
        since = await watch_from(self._stream)
        # A bus of its own: a word on it is for this subscription alone.
        bus = InMemorySubscriptionBus()
        with self._counted(len(uris)):
            async with anyio.create_task_group() as tasks:
                for uri in uris:
                    tell = partial(bus.publish, ResourceUpdated(uri))
                    tasks.start_soon(watch, self._stream, uri, since, tell)
                result = await ListenHandler(bus)(ctx, params)
                tasks.cancel_scope.cancel()
        return result

    async def subscribe(self, session: ServerSession, uri: str) -> None:
        """Note a subscription of a connection, which ends with it.

        Raises:
            InvalidKey: the URI names no pattern.
            MCPError: there are too many watches.
            StoreError: the stream cannot be read.
        """
        # The SDK has no public name for the connection of a request.
        connection = session._connection
        place = id(connection), uri
        pattern_of(uri)
        if place in self._noted:
            return
        since = await watch_from(self._stream)
        self._check_room(1)
        scope = self._noted[place] = anyio.CancelScope()
        connection.exit_stack.callback(self.unsubscribe, session, uri)
        tell = partial(connection.send_resource_updated, uri)
        self._tasks.start_soon(self._watch_noted, place, scope, since, tell)

    def unsubscribe(self, session: ServerSession, uri: str) -> None:
        """End a subscription of a connection, where there is one."""
        if (scope := self._noted.pop((id(session._connection), uri), None)) is not None:
            scope.cancel()

    async def _watch_noted(
        self,
        place: tuple[int, str],
        scope: anyio.CancelScope,
        since: int,
        tell: Callable[[], Awaitable[None]],
    ) -> None:
        with scope:
            await watch(self._stream, place[1], since, tell)
        if self._noted.get(place) is scope:
            # It could not be watched any more; the client may subscribe again.
            del self._noted[place]

    @contextmanager
    def _counted(self, count: int) -> Iterator[None]:
        self._check_room(count)
        self._open += count
        try:
            yield
        finally:
            self._open -= count

    def _check_room(self, count: int) -> None:
        if self._open + len(self._noted) + count > _MOST:
            raise MCPError(INVALID_PARAMS, f"No more than {_MOST} resources can be watched at once.")
