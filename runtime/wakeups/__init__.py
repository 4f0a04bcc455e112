"""Why look again? A wake-up is a hint: it can be lost, doubled, late or forged, and no work is lost or done twice."""

from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

Path = Literal["broadcast", "postgres_changes", "notify"]
"""One way a wake-up can travel; each is live or lost on its own."""

ANSWER: Final = "answer"
"""Why to look, where it is an answer that came: nothing is due for that."""

CANCEL: Final = "cancel"
"""Why to look, where something that runs here is to end: there may be no room for more."""


class Listener(Protocol):
    """Whom the wake-ups tell. Every method returns at once and never raises."""

    def wake(self, why: str, message: int | None = None) -> None:
        """Look again. `why` names the path, or says `ANSWER` or `CANCEL`; `message` is what was written, if known."""

    def live(self, path: Path) -> None:
        """This path is proved: it has delivered. Called again after every reconnect."""

    def gap(self, path: Path, why: str) -> None:
        """The path stayed up but may have missed something: sweep once."""

    def lost(self, path: Path, why: str) -> None:
        """This path delivers nothing until `live` is called for it again."""

    def prove(self, nonce: str) -> None:
        """Please have the database send `nonce` back to this worker with the next exchange."""


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
    """Live or polling? Merges what several sources say into the two states of the way in.

    `expected` are the paths that were asked for; with none of them live the runtime polls.
    """

    expected: frozenset[Path]
    lively: set[Path] = field(default_factory=set)

    @property
    def is_live(self) -> bool:
        """At least one push path is proved to deliver."""
        return bool(self.lively)

    def live(self, path: Path) -> bool:
        """Note that a path delivers; returns whether this ended a time of polling."""
        was_live = self.is_live
        self.lively.add(path)
        return not was_live

    def lost(self, path: Path) -> bool:
        """Note that a path went; returns whether polling must begin now."""
        was_live = self.is_live
        self.lively.discard(path)
        return was_live and not self.is_live
