"""Wake-ups: hints that there may be work.

A hint can be lost, doubled, late or forged; no work is lost or done twice for that.
"""

from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

Path = Literal["broadcast", "postgres_changes", "notify"]
"""One way a wake-up can travel; each is live or lost on its own."""

ANSWER: Final = "answer"
"""The reason of a wake-up that announces an answer: no delivery is due for it."""

CANCEL: Final = "cancel"
"""The reason of a wake-up that announces a cancellation: there may be no room for more deliveries."""

DUE: Final = "due"
"""The reason of a wake-up that announces a delivery which goes on: a look at what is fresh alone would not find it."""


class Listener(Protocol):
    """The receiver of wake-ups. Every method returns at once and never raises."""

    def wake(self, why: str, message: int | None = None) -> None:
        """Look again. `why` is the path, `ANSWER`, `CANCEL` or `DUE`; `message` is the id of a new one, if known."""

    def live(self, path: Path) -> None:
        """This path is proved: it has delivered. Called again after every reconnect."""

    def gap(self, path: Path, why: str) -> None:
        """The path stayed up but may have missed something: sweep once."""

    def lost(self, path: Path, why: str) -> None:
        """This path delivers nothing until `live` is called for it again."""

    def prove(self, nonce: str) -> None:
        """Have the database send `nonce` back to this worker with the next exchange."""


class Wakeups(Protocol):
    """One source of wake-ups."""

    paths: tuple[Path, ...]
    """The paths this source can make live."""

    def doubt(self) -> None:
        """Work was found that no wake-up announced: ask for a nonce at once."""

    async def run(self, listener: Listener) -> None:
        """Listen for ever, reconnecting as often as needed, until cancelled.

        Raises:
            Nothing that a reconnect could mend; only cancellation ends it.
        """


@dataclass
class Reachability:
    """Whether wake-ups come or the runtime has to poll, merged from what several sources report.

    `expected` are the paths that were asked for; while none of them is live, the runtime polls.
    """

    expected: frozenset[Path]
    lively: set[Path] = field(default_factory=set)

    @property
    def is_live(self) -> bool:
        """Whether at least one push path is proved to deliver."""
        return bool(self.lively)

    def live(self, path: Path) -> bool:
        """Note that a path delivers; returns whether this ended a time of polling."""
        was_live = self.is_live
        self.lively.add(path)
        return not was_live

    def lost(self, path: Path) -> bool:
        """Note that a path is lost; returns whether polling must begin now."""
        was_live = self.is_live
        self.lively.discard(path)
        return was_live and not self.is_live
