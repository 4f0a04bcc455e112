"""What a context asks of its worker: requests and reads, with their options."""

from collections.abc import Mapping, Set
from concurrent.futures import Future
from datetime import datetime
from typing import Any, Protocol, TypedDict, TypeVar

from runtime.errors import WrongCall, did_you_mean
from runtime.message import Answer, Message, Priority

ContextT_contra = TypeVar("ContextT_contra", contravariant=True)


class AskOptions(TypedDict, total=False):
    """The options of a request; each as `emit` takes it."""

    expires_in: float | None
    priority: Priority
    dedup_key: str | None
    correlation_id: str | None
    headers: Mapping[str, Any] | None


class ReadOptions(TypedDict, total=False):
    """Which messages to read; see `Stream.read`."""

    after: int | None
    before: int | None
    since: datetime | None
    until: datetime | None
    correlation_id: str | None
    limit: int


class Reads(Protocol):
    """Reads the stream for handlers. From any thread; returns at once."""

    def read(self, pattern: str, options: ReadOptions) -> Future[list[Message[Any]]]:
        """Messages by pattern."""

    def get(self, message: int) -> Future[Message[Any] | None]:
        """The message with this id."""


class Requests(Protocol[ContextT_contra]):
    """Sends the requests of handlers and waits for their answers."""

    async def ask(
        self, context: ContextT_contra, key: str, value: object, seconds: float | None, options: AskOptions
    ) -> Any:
        """The first good answer's value."""

    async def ask_all(
        self, context: ContextT_contra, key: str, value: object, count: int | None, seconds: float | None,
        options: AskOptions,
    ) -> list[Answer]:  # fmt: skip
        """The answers of several handlers."""

    def ask_blocking(
        self, context: ContextT_contra, key: str, value: object, seconds: float | None, options: AskOptions
    ) -> Any:
        """As `ask`, for a plain function in its thread."""

    async def send_now(self, context: ContextT_contra, key: str, value: object, once: str) -> int:
        """Send a message at once, whatever becomes of the attempt; `once` tells it from others. Returns its id."""

    def send_now_blocking(self, context: ContextT_contra, key: str, value: object, once: str) -> int:
        """As `send_now`, for a plain function in its thread."""


def check_options(method: str, given: Mapping[str, object], known: Set[str]) -> None:
    """Refuse an option that a method does not have, with the nearest one that it has."""
    if unknown := sorted(given.keys() - known):
        meant = did_you_mean(unknown[0], known)
        raise WrongCall(f"context.{method}(…) takes no {unknown[0]}=…{meant or '.'}")
