"""Reading the stream for handlers: asked for on the loop of user code or in a thread of it, done on the runtime's."""

from concurrent.futures import Future
from functools import partial
from typing import Any

from runtime.agent.services import ReadOptions
from runtime.client.requester import Requester
from runtime.message import Message
from runtime.store import Store


class HandlerReads:
    """Carries what handlers read to the loop of the store.

    Args:
        store: where messages live.
        requester: runs work on the store's loop.
    """

    def __init__(self, store: Store, requester: Requester) -> None:
        self._store = store
        self._requester = requester

    def read(self, pattern: str, options: ReadOptions) -> Future[list[Message[Any]]]:
        """Read messages by pattern; see `Context.read`."""
        return self._requester.submit(partial(self._store.read, pattern, **options))

    def get(self, message: int) -> Future[Message[Any] | None]:
        """Read one message; see `Context.get`."""
        return self._requester.submit(partial(self._store.get, message))
