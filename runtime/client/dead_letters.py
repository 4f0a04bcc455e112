"""Operations on dead letters: list, redrive, discard, amend; and forks, which share steps as a redriven letter does."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtime.encoding.json import encode
from runtime.keys import check_pattern
from runtime.store import Store

_ALL = 10_000_000
_BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter:
    """A choice of dead letters: those that meet all given conditions.

    Args:
        ids: their numbers.
        subscription: the subscription they died at, as `agent.handler`.
        pattern: a pattern that matches the message's key.
        older_than_seconds: they died at least so long ago.
        error: a part of the error's text, in upper or lower case.

    Raises:
        InvalidKey: `pattern` is no pattern.
    """

    ids: Sequence[int] | None = None
    subscription: str | None = None
    pattern: str | None = None
    older_than_seconds: float | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if self.pattern is not None:
            check_pattern(self.pattern)

    def arguments(self) -> dict[str, Any]:
        """Return the conditions as arguments of the SQL functions."""
        given = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in given.items() if value is not None}


class DeadLetters:
    """The part of `Admin` that delivers again what has failed, or what is to be tried in another way."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def dead_letters(
        self, which: DeadLetterFilter, *, before: int | None = None, limit: int = 100, details: bool = False
    ) -> list[dict[str, Any]]:
        """Return dead letters, the newest first.

        Args:
            which: the conditions.
            before: only those with a lower number, to page on.
            limit: how many at most.
            details: with the message, the traceback and every attempt.
        """
        found: list[dict[str, Any]] = await self._store.operate(
            "stream_dead", **which.arguments(), before=before, max=limit, details=details
        )
        return found

    async def preview(
        self,
        which: DeadLetterFilter,
        *,
        from_step: str | None = None,
        edits: Mapping[str, object] | None = None,
    ) -> dict[str, int]:
        """Return how many dead letters of each subscription meet the conditions, without touching them.

        Args:
            which: the conditions.
            from_step: as for `redrive`.
            edits: as for `redrive`.
        """
        mended = _mended(from_step, edits)
        answer = await self._store.operate(
            "stream_redrive" if mended else "stream_discard",
            **which.arguments(),
            **mended,
            max=_ALL,
            dry_run=True,
        )
        found: dict[str, int] = answer["matching"]
        return found

    def redrive(
        self,
        which: DeadLetterFilter,
        *,
        from_step: str | None = None,
        edits: Mapping[str, object] | None = None,
    ) -> AsyncIterator[int]:
        """Deliver dead letters again, with fresh attempts, in batches; yields the size of each.

        What steps have kept stays, so that the handler goes on after the last one.

        Args:
            which: the conditions. With a step, only letters are meant that have kept it.
            from_step: the name of a step, which is forgotten with all that finished after it.
            edits: new results of other steps, as JSON data, by their names. Of several steps with one name, each is
                named as `runtime trace` shows it: `mail [ada] (2)`.

        Raises:
            InvalidValue: a result cannot be stored.
            Refused: a letter that `which` names by its number has not kept such a step, or several.
        """
        return self._in_batches("redrive", which, _mended(from_step, edits))

    def discard(self, which: DeadLetterFilter) -> AsyncIterator[int]:
        """Remove dead letters for good, in batches; yields the size of each."""
        return self._in_batches("discard", which, {})

    async def _in_batches(
        self, what: Literal["redrive", "discard"], which: DeadLetterFilter, mended: Mapping[str, str]
    ) -> AsyncIterator[int]:
        counted = {"redrive": "redriven", "discard": "discarded"}[what]
        while True:
            answer = await self._store.operate(f"stream_{what}", **which.arguments(), **mended, max=_BATCH)
            if not answer[counted]:
                return
            yield answer[counted]

    async def fork(
        self,
        message: int,
        *,
        from_step: str | None = None,
        subscription: str | None = None,
        edits: Mapping[str, object] | None = None,
    ) -> dict[str, Any]:
        """Write a message anew for handlers that go on from the steps they have kept for it; it stays as it is.

        Args:
            message: the id of the message.
            from_step: the first step to run again; by default all that is kept is shared.
            subscription: only for this handler, `agent.handler`; by default for all that have kept the step.
            edits: new results of shared steps, as for `redrive`.

        Returns:
            The `id` of the new message, the `subscriptions` that get it, and how many `steps` they share.

        Raises:
            InvalidValue: a result cannot be stored.
            Refused: there is no such message, or no handler has kept such a step of it.
        """
        answer: dict[str, Any] = await self._store.operate(
            "stream_fork", message=message, subscription=subscription, **_mended(from_step, edits)
        )
        return answer

    async def amend(self, letter: int, value: object) -> int:
        """Write a dead letter's message again with another value, for its subscription alone; the letter is removed.

        Returns:
            The id of the new message.

        Raises:
            InvalidValue: the value cannot be stored.
            Refused: there is no such letter, or its subscription was removed.
        """
        answer = await self._store.operate("stream_amend", letter=letter, value=encode(value))
        return int(answer["id"])


def _mended(from_step: str | None, edits: Mapping[str, object] | None) -> dict[str, str]:
    """Return what becomes of kept steps, as arguments of the SQL functions."""
    mended = {} if from_step is None else {"from_step": from_step}
    return {**mended, "edits": encode(edits)} if edits else mended
