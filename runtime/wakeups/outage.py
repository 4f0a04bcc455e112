"""What was told of an outage: each kind of trouble is told once, until the connection is well again."""

import logging


class Outage:
    """The troubles that were told since a connection was last well."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def over(self) -> None:
        """The connection is well: the next trouble is news."""
        self._told.clear()

    def level(self, kind: str, first: int) -> int:
        """Return the level to log a trouble at: `first` for the first of its kind, DEBUG after that."""
        if kind in self._told:
            return logging.DEBUG
        self._told.add(kind)
        return first
