"""What keeps the work of a delivery beyond one attempt, as its context sees it."""

from typing import Protocol

from runtime.agent.step import Steps
from runtime.agent.text import TextKeeper
from runtime.agent.waiting import Waits


class WorkKeeper(Protocol):
    """Keeps what a delivery has beyond its attempt."""

    def open_steps(self, handler: str, idempotency_key: str) -> Steps:
        """Return its steps; see `Steps` for the arguments."""

    def open_waits(self, steps: Steps) -> Waits:
        """Return its waits."""

    def open_texts(self) -> TextKeeper | None:
        """Return what keeps its texts; None where they are kept nowhere."""

    def tell_status(self, text: str) -> None:
        """Show where it is."""
