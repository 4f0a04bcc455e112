"""Queries for people: messages with the outcome of their deliveries, activity, flow, dead letters."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from runtime.store import Store

State = Literal["open", "failed", "dead", "done", "unhandled"]


def two_figures(number: float) -> int:
    """Return an estimate rounded to two figures: 513,204 as 510,000."""
    whole = round(number)
    return round(whole, 2 - len(str(abs(whole)))) if whole else 0


def dollars(cost: float) -> str:
    """Return a cost in words: 1,234.50 USD, or two figures of one below a cent."""
    return f"{cost:,.2f} USD" if not cost or cost >= 0.01 else f"{cost:.2g} USD"


class Queries:
    """Reads a stream for display; changes nothing.

    Every method raises `StoreError` when the store cannot be reached or refuses, and `InvalidValue` or `InvalidKey`
    for arguments that make no sense.
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
        """Return messages, the newest first, each with its outcome at every subscription.

        Args:
            pattern: which keys.
            before: only messages with a lower id.
            after: only messages with a higher id.
            limit: how many at most, up to 500.
            agent: only those written by it.
            state: only those in this state.
            text: only those whose value contains it, in upper or lower case.
            since: only those written at this time or later.
            until: only those written before this time.
            look: how many rows to look at, at most, up to 20,000.

        Returns:
            `messages`; how many rows were `looked` at; and `next`, the id to pass as `before` for the next page, or
            None after the last one. As a page looks at a bounded number of rows, it may hold few messages, or none, and
            still not be the last one.
        """
        found: dict[str, Any] = await self._store.operate(
            "stream_page", pattern=pattern, before=before, after=after, max=limit, agent=agent,
            state=state, text=text, since=since, until=until, look=look,
        )  # fmt: skip
        return found

    async def handling(self, messages: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
        """Return the outcomes of each of these messages, as `page` does under `handled`."""
        found = await self._store.operate("stream_handling", ids=messages)
        return {int(number): handled for number, handled in found.items()}

    async def trace(self, message: int, *, limit: int = 200) -> dict[str, Any]:
        """Return the tree a message belongs to, from its first cause down, each with every attempt.

        Returns:
            `messages` in the order of the tree, each with its `depth`, and whether there are `more` than the limit.
        """
        found: dict[str, Any] = await self._store.operate("stream_trace", message=message, max=limit)
        return found

    async def conversation(self, correlation: str, *, after: int = 0, limit: int = 200) -> dict[str, Any]:
        """Return the messages that share a correlation id, each with every attempt, in the order of their ids.

        Args:
            correlation: the correlation id; the id of a first message as text also names its conversation.
            after: only messages with a higher id.
            limit: how many at most, up to 1,000.

        Returns:
            `messages`; `next`, to pass as `after` for the next page, or None; and `totals` of the whole conversation:
            how many messages and attempts, from when until when, and what was `spent` on models.
        """
        found: dict[str, Any] = await self._store.operate(
            "stream_conversation", correlation=correlation, after=after, max=limit
        )
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
        """Return the flow of the last messages: `written` by agent and key, `handled` by subscription."""
        found: dict[str, Any] = await self._store.operate("stream_flow", look=look)
        return found

    async def tools(self) -> list[dict[str, Any]]:
        """Return the handlers that are tools of language models: `subscription`, `tool`, `paused`, `workers`."""
        found: list[dict[str, Any]] = await self._store.operate("stream_tools")
        return found

    async def usage(self, days: int = 30) -> list[dict[str, Any]]:
        """Return what handlers told of the language models they used, by day of UTC, handler and model.

        Args:
            days: how many days, with today, up to 400.

        Returns:
            `day`, `handler`, `model`, `calls`, `tokens_in`, `tokens_out` and `cost` in US dollars of each; the newest
            day first.
        """
        found: list[dict[str, Any]] = await self._store.operate("stream_usage", days=days)
        return found

    async def dead_groups(
        self, *, subscription: str | None = None, since: datetime | None = None
    ) -> list[dict[str, Any]]:
        """Return the newest dead letters, grouped by subscription and kind of error.

        Args:
            subscription: only those of this one, as `agent.handler`.
            since: only those that died at this time or later.
        """
        found: list[dict[str, Any]] = await self._store.operate(
            "stream_dead_groups", subscription=subscription, since=since
        )
        return found

    async def last_good(self, letter: int) -> dict[str, Any] | None:
        """Return the last message under the same key that a dead letter's subscription handled before it, or None."""
        found: dict[str, Any] | None = await self._store.operate("stream_last_good", letter=letter)
        return found
