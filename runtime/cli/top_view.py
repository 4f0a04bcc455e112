"""What `runtime top` shows of the figures, and in which order: decided by the keys that were pressed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from runtime.cli.times import counted

# By what the subscriptions can be sorted; where that is equal, by their names.
_ORDERS: Final[dict[str, Callable[[dict[str, Any]], float]]] = {
    "busiest": lambda each: each["done_last_minute"] + each["failed_last_minute"],
    "waiting": lambda each: each["waiting"] + each["scheduled"],
    "lag": lambda each: each["lag_seconds"] or 0,
    "failed": lambda each: each["failed_last_minute"],
    "dead": lambda each: each["dead"],
    "name": lambda each: 0,
}
# The lines of a screen that are not subscriptions: head, legend, heads of both tables, blank lines, what is left out.
_OTHER_LINES: Final = 8
_FEWEST: Final = 3


@dataclass
class TopView:
    """The order, the filter and the pause of one screen.

    Attributes:
        height: lines of the screen; None shows everything.
        order: by what the subscriptions are sorted.
        filter: a part of the names and patterns that are shown.
        is_typing: whether keys go into the filter.
        is_paused: whether the figures stand still.
        is_whole: whether subscriptions without workers and work are shown.
        is_over: whether the person has quit.
    """

    height: int | None = None
    order: str = "busiest"
    filter: str = ""
    is_typing: bool = False
    is_paused: bool = False
    is_whole: bool = False
    is_over: bool = False

    def press(self, key: str) -> None:
        """Do what a key says; an unknown key does nothing."""
        if self.is_typing:
            self._type(key)
        elif key == "s":
            orders = list(_ORDERS)
            self.order = orders[(orders.index(self.order) + 1) % len(orders)]
        elif key == "/":
            self.is_typing = True
        elif key in ("p", " "):
            self.is_paused = not self.is_paused
        elif key == "a":
            self.is_whole = not self.is_whole
        elif key == "\x1b":
            self.filter = ""
        elif key == "q":
            self.is_over = True

    def _type(self, key: str) -> None:
        if key in ("\r", "\n"):
            self.is_typing = False
        elif key == "\x1b":
            self.is_typing, self.filter = False, ""
        elif key in ("\x7f", "\b"):
            self.filter = self.filter[:-1]
        elif len(key) == 1 and key.isprintable():
            self.filter += key

    def legend(self) -> str:
        """Return the line about the keys."""
        if self.is_typing:
            return f"/{self.filter}_  Enter keeps the filter, Esc clears it"
        filtered = f": {self.filter}, Esc clears it" if self.filter else ""
        return (
            f"s sort: {self.order}  / filter{filtered}  {'p go on (paused)' if self.is_paused else 'p pause'}  "
            f"a {'fewer' if self.is_whole else 'all'}  q quit"
        )

    def choose(self, subscriptions: list[dict[str, Any]], below: int) -> tuple[list[dict[str, Any]], str]:
        """Return the subscriptions to show, in order, and a line about those that are left out.

        Args:
            subscriptions: all of them.
            below: how many lines the other tables take: the workers, and what else changes.
        """
        found = [each for each in subscriptions if self._is_meant(each)]
        alive = found if self.is_whole or self.filter else [each for each in found if not is_abandoned(each)]
        alive = sorted(alive, key=lambda each: (-_ORDERS[self.order](each), each["name"]))
        room = len(alive)
        if self.height is not None:
            room = max(_FEWEST, self.height - _OTHER_LINES - below)
        notes = []
        if len(alive) > room:
            notes.append(f"{len(alive) - room:,} more")
        if abandoned := len(found) - len(alive):
            notes.append(f"{counted(abandoned, 'subscription')} without workers and work")
        return alive[:room], f"… and {', '.join(notes)}" if notes else ""

    def _is_meant(self, subscription: dict[str, Any]) -> bool:
        names = (subscription["name"], *subscription["patterns"])
        return any(self.filter.lower() in each.lower() for each in names)


def is_abandoned(subscription: dict[str, Any]) -> bool:
    """Whether no worker serves a subscription and nothing is due for it."""
    return not any(
        subscription[name] for name in ("workers", "waiting", "running", "scheduled", "suspended", "undoing")
    )
