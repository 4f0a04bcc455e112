"""What does a person see of a stream? Messages with what became of them, activity, what flows, what died."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from runtime.keys import check_pattern
from runtime.store import Store

State = Literal["waiting", "failed", "dead", "done", "unhandled"]


def two_figures(number: float) -> int:
    """Return a number that was reckoned, not counted, as it is told: 513,204 as 510,000."""
    whole = round(number)
    return round(whole, 2 - len(str(abs(whole)))) if whole else 0


class Queries:
    """What is shown of a stream; changes nothing.

    Every method raises `StoreError` when the store cannot be reached or says no.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(
        self,
        pattern: str = ">",
        *,
        before: int | None = None,
        after: int | None = None,
        limit: int = 50,
        agent: str | None = None,
        state: State | None = None,
        text: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        look: int = 5000,
    ) -> dict[str, Any]:
        """Return messages, the newest first, each with what became of it at every subscription.

        Args:
            pattern: which keys.
            before: only messages with a lower id.
            after: only messages with a higher id.
            limit: how many at most, up to 500.
            agent: only those it wrote.
            state: only those that stand so.
            text: only those whose value holds it, in any case.
            since: only those written at this time or later.
            until: only those written before.
            look: how many rows to look at, at most, up to 20,000.

        Returns:
            `messages`; how many rows were `looked` at; and `next`, the id to go on before. As a page looks at a bounded
            number of rows, it may hold few messages, or none, and still not be the last one; then `next` is None.
        """
        found: dict[str, Any] = await self._store.operate(
            "stream_page", pattern=check_pattern(pattern), before=before, after=after, max=limit, agent=agent,
            state=state, text=text, since=since, until=until, look=look,
        )  # fmt: skip
        return found

    async def handling(self, messages: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
        """Return what became of each of these messages, as `page` does under `handled`."""
        found = await self._store.operate("stream_handling", ids=list(messages))
        return {int(number): handled for number, handled in found.items()}

    async def trace(self, message: int, *, limit: int = 200) -> dict[str, Any]:
        """Return the tree a message belongs to, from its first cause down, each with every attempt.

        Returns:
            `messages` in the order of the tree, each with its `depth`, and whether there are `more` than the limit.
        """
        found: dict[str, Any] = await self._store.operate("stream_trace", message=message, max=limit)
        return found

    async def activity(self, seconds: float = 3600, until: float = 0) -> dict[str, Any]:
        """Return the attempts of the last seconds by whole minutes.

        Args:
            seconds: how far back, to the beginning of that minute.
            until: leave out the minutes since the one of so many seconds ago.

        Returns:
            The current `minute` since 1970, and `minutes`: [minute, subscription, done, failed, mean seconds] each.
        """
        found: dict[str, Any] = await self._store.operate(
            "stream_activity", since_seconds=seconds, until_seconds=until
        )
        return found

    async def flow(self, look: int = 2000) -> dict[str, Any]:
        """Return what the last messages did: `written` by whom under which key, and `handled` by which subscription."""
        found: dict[str, Any] = await self._store.operate("stream_flow", look=look)
        return found

    async def dead_groups(self) -> list[dict[str, Any]]:
        """Return the newest dead letters, grouped by subscription and kind of error."""
        found: list[dict[str, Any]] = await self._store.operate("stream_dead_groups")
        return found

    async def last_good(self, letter: int) -> dict[str, Any] | None:
        """Return the last message before a dead letter's, under the same key, that its subscription handled well."""
        found: dict[str, Any] | None = await self._store.operate("stream_last_good", letter=letter)
        return found
