"""Operations on a stream: cancel, pause, resume, replay, redrive, fork, discard, remove, prune."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Literal

from runtime.agent.target import check_url
from runtime.client.dead_letters import DeadLetters
from runtime.encoding.json import encode
from runtime.keys import check_pattern


class Admin(DeadLetters):
    """Changes a stream on an operator's behalf.

    Every method raises `StoreError` when the store cannot be reached or refuses, and its subclass `Refused` for an
    unknown subscription; and `InvalidValue` or `InvalidKey` for arguments that make no sense.
    """

    async def cancel(
        self, message: int, subscription: str | None = None, *, outcome: Literal["dead", "done"] = "dead"
    ) -> dict[str, Any]:
        """End the deliveries of a message: at once, or when the worker has stopped the handler.

        An async handler is cancelled where it awaits. A plain function cannot be stopped: it runs to its end, and its
        result is dropped.

        Args:
            message: the message's id.
            subscription: only the delivery to this one, as `agent.handler`; all of them by default.
            outcome: whether they end as dead letters, which can be redriven, or as done.

        Returns:
            `known`, whether there is such a message; and `deliveries`, each with its `subscription` and `state`:
            ended, undoing (its finished steps are undone first), told (its worker was told to stop), or dead (it was
            dead already).
        """
        answer: dict[str, Any] = await self._store.operate(
            "stream_cancel", message=message, subscription=subscription, outcome=outcome
        )
        return answer

    async def pause(self, subscription: str) -> None:
        """Let workers take no more deliveries of a subscription; they gather."""
        await self._store.operate("stream_pause", subscription=subscription)

    async def resume(self, subscription: str) -> None:
        """Let workers take deliveries of a paused subscription again."""
        await self._store.operate("stream_resume", subscription=subscription)

    async def schedules(self) -> list[dict[str, Any]]:
        """Return the timers of all agents: their times as text, the last one, and how many workers serve them."""
        found: list[dict[str, Any]] = await self._store.operate("stream_schedules")
        return found

    async def approvals(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the requests for approval that nobody has decided yet, the oldest first."""
        found: list[dict[str, Any]] = await self._store.operate("stream_approvals", max=limit)
        return found

    async def decide(
        self,
        request: int,
        approved: bool,
        *,
        answer: Any = None,
        by: str | None = None,
        why: str | None = None,
    ) -> dict[str, Any]:
        """Decide a request for approval. The first decision counts.

        Args:
            request: the id of the request.
            approved: yes or no.
            answer: the value that goes with an approval, where the handler asks for one.
            by: who decides; by default the name in the caller's token, or the database role.
            why: the reason.

        Returns:
            `decided`, whether this was the first decision; `expired`, whether its time was over; and `decision`, the
            one that counts.

        Raises:
            Refused: the message is no request for approval.
        """
        decided: dict[str, Any] = await self._store.operate(
            "stream_decide", request=request, approved=approved,
            answer=None if answer is None else encode(answer), by=by, why=why,
        )  # fmt: skip
        return decided

    async def waits(self, subscription: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Return what suspended handlers wait for, the longest wait first.

        Args:
            subscription: only those of this one, `agent.handler`.
            limit: at most so many.
        """
        found: list[dict[str, Any]] = await self._store.operate(
            "stream_waits", subscription=subscription, max=limit
        )
        return found

    async def webhooks(self) -> list[dict[str, Any]]:
        """Return the webhooks and the state of their targets, without secrets, credentials and query strings."""
        found: list[dict[str, Any]] = await self._store.operate("stream_webhooks")
        return found

    async def add_webhook(
        self,
        name: str,
        url: str,
        *patterns: str,
        emits: str | None = None,
        ordered: bool = False,
        concurrency: int | None = None,
        attempts: int | None = None,
        start: Literal["latest", "earliest"] = "latest",
        secret: str | None = None,
        replace: bool = False,
    ) -> dict[str, Any]:
        """Add a subscription whose handler is a URL; `runtime run --webhooks` posts to it.

        Args:
            name: of the subscription, `agent.handler`.
            url: where to post to.
            patterns: keys, or patterns such as `task.*` and `task.>`.
            emits: the key under which the JSON of the answer is written.
            ordered: post messages of one key one after another.
            concurrency: how many requests all workers together make at once; by default 10 in each.
            attempts: attempts in all; 15 by default, within about half a day.
            start: "earliest" begins with the oldest message there is, "latest" with the next one.
            secret: to sign with, `whsec_…`; drawn by default.
            replace: change the webhook of this name; it keeps its secret and its waiting deliveries.

        Returns:
            Its `name`, `url` for people and `secret`.

        Raises:
            DeclarationError: `url` is no URL.
            InvalidKey: one of `patterns` is no pattern.
            Refused: there is a webhook of this name.
        """
        answer: dict[str, Any] = await self._store.operate(
            "stream_add_webhook",
            name=name,
            url=check_url(url),
            patterns=[check_pattern(pattern) for pattern in patterns],
            emits=emits,
            ordered=ordered,
            concurrency=concurrency,
            max_attempts=attempts,
            start=start,
            secret=secret,
            replace=replace,
        )
        return answer

    async def remove_webhook(self, name: str, *, dry_run: bool = False) -> int:
        """Remove a webhook; returns how many deliveries waited for it and are removed with it."""
        answer = await self._store.operate("stream_remove_webhook", name=name, dry_run=dry_run)
        return int(answer["waiting"])

    async def rotate_webhook(self, name: str, *, keep_seconds: float = 86_400) -> dict[str, Any]:
        """Draw a new secret for a webhook; the old one signs beside it for a while.

        Returns:
            Its `name`, the new `secret`, and `old_until`.
        """
        answer: dict[str, Any] = await self._store.operate(
            "stream_rotate_webhook", name=name, keep_seconds=keep_seconds
        )
        return answer

    async def replay(
        self,
        subscription: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        pattern: str = ">",
        ids: Sequence[int] | None = None,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Deliver old messages to a subscription again; deliveries that are still pending stay as they are.

        Args:
            subscription: its name, `agent.handler`.
            since: only messages written at this time or later.
            until: only messages written before this time.
            pattern: only messages whose key it matches.
            ids: only these messages.
            dry_run: count only.

        Returns:
            `matching` messages, and how many were `replayed`.
        """
        answer: dict[str, Any] = await self._store.operate(
            "stream_replay",
            subscription=subscription,
            since=since,
            until=until,
            pattern=pattern,
            ids=ids,
            dry_run=dry_run,
        )
        return answer

    async def remove(self, subscription: str, *, dry_run: bool = False) -> dict[str, Any]:
        """Remove a subscription that no worker serves, with its waiting deliveries.

        Returns:
            How many deliveries were `waiting`, and how many `workers` serve the subscription.

        Raises:
            Refused: a worker serves it.
        """
        answer: dict[str, Any] = await self._store.operate(
            "stream_remove", subscription=subscription, dry_run=dry_run
        )
        return answer

    async def prune(
        self, older_than_seconds: float, *, progress: Callable[[int, int], Awaitable[None]] | None = None
    ) -> tuple[int, int]:
        """Remove messages older than this, in bounded batches; deliveries that no worker took count as expired.

        Args:
            older_than_seconds: the age from which a message is removed.
            progress: called after each batch with how many messages were removed and deliveries expired so far.

        Returns:
            How many messages were removed, and how many deliveries expired.
        """
        pruned, expired, after = 0, 0, 0
        while True:
            answer = await self._store.operate(
                "stream_prune", older_than_seconds=older_than_seconds, max=5_000, after=after
            )
            pruned, expired = pruned + answer["pruned"], expired + answer["expired"]
            if progress is not None:
                await progress(pruned, expired)
            if answer["last"] is None:
                return pruned, expired
            after = answer["last"]
