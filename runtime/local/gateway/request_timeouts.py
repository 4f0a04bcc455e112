"""Timeouts for requests that do not come whole: idle connections cost a file descriptor each."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.auto import AutoHTTPProtocol

REQUEST_SECONDS: Final = 20.0
"""The limit for the head of a request as a whole, and between two pieces of its body."""


class RequestTimeoutProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol with timeouts: uvicorn itself waits for ever for the rest of a request."""

    request_seconds = REQUEST_SECONDS
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Start or stop waiting for the rest of a request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        cycle = self.cycle
        is_in_body = cycle is not None and cycle.more_body and not cycle.response_complete
        if not self._is_served_elsewhere() and (is_in_body or cycle is None or cycle.response_complete):
            # The head has one deadline, however slowly it comes; a body may be large, so each piece has its own.
            if self._deadline is None or is_in_body:
                self._forget()
                self._deadline = self.loop.call_later(self.request_seconds, self._give_up)
        else:
            self._forget()

    def _is_served_elsewhere(self) -> bool:
        """Whether the connection became a WebSocket, or is closing."""
        return self.transport.is_closing() or self.transport.get_protocol() is not self

    def _give_up(self) -> None:
        self._deadline = None
        if not self._is_served_elsewhere():
            self.transport.close()

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
