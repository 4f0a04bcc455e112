"""Who is measured? One module each, which imports what it drives only when it runs in its own environment."""

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import Protocol, cast

from tests.bench.starts import Starts

OURS = "ours"
QUEUES = ("pgqueuer", "pgmq", "graphile_worker", "oban", "procrastinate")
# Their handlers consist of steps whose results are kept.
DURABLE = ("dbos", "absurd")
PEERS = (*QUEUES, *DURABLE)
STEPS = ("reserve", "charge", "ship")
"""The steps of a handler that has some."""


class Sender(Protocol):
    """An open way to send messages."""

    async def one(self, number: int) -> None:
        """Send one message; it is committed when this returns."""

    async def many(self, numbers: Iterable[int]) -> None:
        """Send several in one go."""


class Contestant(Protocol):
    """One system under measurement.

    Attributes:
        requirements: what pip installs, at pinned versions. What npm installs is in `packages`, where there is any.
        settings: how it is driven, for the report.
        pending: a query that tells whether anything waits or runs.
        history: statements that make `{count}` finished messages, in the form it leaves them.
    """

    requirements: tuple[str, ...]
    settings: str
    pending: str
    history: tuple[str, ...]

    async def install(self, url: str) -> None:
        """Make its tables in an empty database."""

    def sender(self, url: str) -> AbstractAsyncContextManager[Sender]:
        """Open a sender."""

    async def work(self, url: str, starts: Starts) -> None:
        """Handle messages by a handler that notes its start and does nothing, or only its steps, for ever."""


def contestant(name: str) -> Contestant:
    """The contestant of this name."""
    return cast(Contestant, import_module(f"{__name__}.{name}").contestant)


Senders = AsyncIterator[Sender]
