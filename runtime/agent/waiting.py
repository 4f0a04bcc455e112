"""Waits: a handler that waits for longer than a moment is suspended, and runs from the top when its wait is over."""

import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Protocol, TypeAlias

import anyio

from runtime.agent.retry import LONGEST_SECONDS, is_number, short_repr
from runtime.agent.schedule import is_span
from runtime.agent.schedule import seconds_of as seconds_of_span
from runtime.agent.step import StepPlace, Steps
from runtime.agent.step_names import WAIT_PREFIX
from runtime.agent.step_scope import scoped
from runtime.encoding.json import encode
from runtime.errors import InvalidValue, RuntimeFault, WaitTimeout
from runtime.keys import check_pattern
from runtime.message import Message
from runtime.tracebacks import members_of

GRACE_SECONDS: Final = 2.0
"""So long a wait goes on within the process; one that takes longer suspends the delivery."""

MAX_FILTER_BYTES: Final = 32_768

Outcome: TypeAlias = Mapping[str, Any] | None
"""How a wait ended: {"answer": the message's row, "id": its id} or {"timeout": true}; None while it goes on."""


class Suspended(BaseException):
    """Raised through a handler whose wait goes on outside of any process. Not to be caught.

    Attributes:
        places: the waits that it waits for.
        delay: seconds until the delivery is looked at again if nothing happens.
    """

    def __init__(self, places: Sequence[StepPlace], delay: float) -> None:
        super().__init__(
            "the handler waits, and runs from the top when its wait is over; let this exception pass"
        )
        self.places = tuple(places)
        self.delay = delay


@dataclass(frozen=True, slots=True)
class WaitFor:
    """A message to wait for, as `Context.wait_any` and `Context.wait_all` take several.

    Attributes:
        pattern: the message's key, or a pattern such as payment.*.
        where: what its value contains, as JSON data: `{"order": 7}` matches a value with more fields, too.
        timeout: how long to wait: seconds, or a text such as "30s", "15m", "2h" or "7d"; None for ever.
        since: the id of a message: those after it count. By default the message that is handled.
        key: tells waits for one pattern apart that go on at the same time.
    """

    pattern: str
    where: Any = None
    timeout: float | str | timedelta | None = None
    since: int | None = None
    key: str = ""

    def __post_init__(self) -> None:
        check_pattern(self.pattern)
        timeout_of(self.timeout)
        if self.since is not None and not (type(self.since) is int and 0 <= self.since < 2**63 - 1):
            raise InvalidValue(f"since= is the id of a message, not {self.since!r:.100}.")
        if not isinstance(self.key, str) or "\0" in self.key or len(self.key.encode(errors="replace")) > 255:
            raise InvalidValue(f"key= of a wait is a text of at most 255 bytes, not {self.key!r:.100}.")
        if self.where is not None and len(encode(self.where)) > MAX_FILTER_BYTES:
            raise InvalidValue(f"where= takes more than {MAX_FILTER_BYTES // 1024} kB as JSON.")


class WaitKeeper(Protocol):
    """Keeps the waits of one delivery."""

    async def wait(self, waits: Sequence[Mapping[str, Any]], is_over: "IsOver", seconds: float) -> "Waited":
        """Register waits, and return how they stand when that is enough, or after so many seconds."""

    def wait_blocking(
        self, waits: Sequence[Mapping[str, Any]], is_over: "IsOver", seconds: float
    ) -> "Waited":
        """As `wait`, from a thread of user code."""


IsOver: TypeAlias = Callable[[Sequence[Outcome]], bool]
"""Whether the outcomes of some waits are enough for the handler to go on."""


@dataclass(frozen=True, slots=True)
class Waited:
    """What a keeper found.

    Attributes:
        outcomes: of each wait.
        seconds: until the first of those that go on ends by time; None for never.
    """

    outcomes: Sequence[Outcome]
    seconds: float | None = None


@dataclass(slots=True)
class _Begun:
    """Waits that a handler has come to."""

    waits: Mapping[StepPlace, WaitFor | float]
    outcomes: dict[StepPlace, Outcome]
    needs_all: bool
    limit: float | None = None

    @property
    def open(self) -> list[StepPlace]:
        return [place for place in self.waits if self.outcomes.get(place) is None]

    @property
    def wires(self) -> list[dict[str, Any]]:
        """Those that go on, as the database takes them."""
        return [self._wire(place, self.waits[place]) for place in self.open]

    def _wire(self, place: StepPlace, wait: WaitFor | float) -> dict[str, Any]:
        name, key, occurrence = place
        wire: dict[str, Any] = {"name": name, "key": key, "occurrence": occurrence}
        if not isinstance(wait, WaitFor):
            return wire | {"seconds": wait}
        times = [timeout_of(wait.timeout), self.limit]
        seconds = min((each for each in times if each is not None), default=None)
        return wire | {"pattern": wait.pattern, "filter": wait.where, "since": wait.since, "seconds": seconds}

    def is_over(self, outcomes: Sequence[Outcome] = ()) -> bool:
        """Whether the handler goes on; given the outcomes of those that went on before."""
        known = {**self.outcomes, **dict(zip(self.open, outcomes, strict=False))}
        ended = [outcome for outcome in known.values() if outcome is not None]
        if not self.needs_all and any("answer" in outcome for outcome in ended):
            return True
        return len(ended) == len(self.waits)

    def absorb(self, waited: Waited) -> None:
        self.outcomes.update(zip(self.open, waited.outcomes, strict=True))


@dataclass(slots=True)
class Waits:
    """The waits of one attempt.

    Attributes:
        handler: the subscription's name, for errors.
        steps: the steps of the attempt, among which earlier attempts have kept the outcomes of waits.
        keeper: keeps new ones; None outside of a worker.
        suspended: the exception that was raised, if one was.
        grace: how many seconds it waits within the process before it is suspended.
    """

    handler: str
    steps: Steps
    keeper: WaitKeeper | None = None
    suspended: Suspended | None = None
    grace: float = GRACE_SECONDS
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _going: set[tuple[str, str]] = field(default_factory=set)

    async def sleep(self, seconds: float, key: str) -> None:
        """Sleep; see `Context.sleep`."""
        if seconds <= self.grace:
            await anyio.sleep(seconds)
        else:
            await self._over({("sleep", key): seconds}, grace=0.0)

    def sleep_blocking(self, seconds: float, key: str) -> None:
        """As `sleep`, in the thread of a plain handler."""
        if seconds <= self.grace:
            time.sleep(seconds)
        else:
            self._over_blocking({("sleep", key): seconds}, grace=0.0)

    async def all(self, waits: Sequence[WaitFor], limit: float | None = None) -> list[Message[Any]]:
        """Return the messages that these waits are for; see `Context.wait_all`."""
        return _messages(await self._over(self._named(waits), needs_all=True, limit=limit))

    def all_blocking(self, waits: Sequence[WaitFor], limit: float | None = None) -> list[Message[Any]]:
        """As `all`, in the thread of a plain handler."""
        return _messages(self._over_blocking(self._named(waits), needs_all=True, limit=limit))

    async def any(self, waits: Sequence[WaitFor], limit: float | None = None) -> tuple[int, Message[Any]]:
        """Return which of these waits has ended first, and its message; see `Context.wait_any`."""
        outcomes = await self._over(self._named(waits), needs_all=False, limit=limit)
        place = self._place(("any", waits[0].key))
        if place not in self.steps.kept:
            # What was first stays so: others may have come when the handler runs once more.
            first = _first(outcomes, waits)
            if self.steps.keeper is not None:
                await self.steps.keeper.keep(place, str(first))
            self.steps.kept[place] = first
        return self._chosen(place, outcomes)

    def any_blocking(self, waits: Sequence[WaitFor], limit: float | None = None) -> tuple[int, Message[Any]]:
        """As `any`, in the thread of a plain handler."""
        outcomes = self._over_blocking(self._named(waits), needs_all=False, limit=limit)
        place = self._place(("any", waits[0].key))
        if place not in self.steps.kept:
            first = _first(outcomes, waits)
            if self.steps.keeper is not None:
                self.steps.keeper.keep_blocking(place, str(first))
            self.steps.kept[place] = first
        return self._chosen(place, outcomes)

    def _chosen(self, place: StepPlace, outcomes: Sequence[Outcome]) -> tuple[int, Message[Any]]:
        self.steps.asked.add(place)
        index = int(self.steps.kept[place])
        return index, _messages([outcomes[index]])[0]

    def _named(self, waits: Sequence[WaitFor]) -> dict[tuple[str, str], WaitFor | float]:
        named: dict[tuple[str, str], WaitFor | float] = {(each.pattern, each.key): each for each in waits}
        if not waits or len(named) < len(waits):
            raise InvalidValue(
                f"{self.handler} waits for one pattern twice at the same time: give each wait a key of its own, "
                '`WaitFor("payment.settled", key="second", …)`.'
                if waits
                else f"{self.handler} waits for nothing: give at least one WaitFor(…)."
            )
        return named

    async def _over(
        self,
        waits: Mapping[tuple[str, str], WaitFor | float],
        *,
        needs_all: bool = True,
        limit: float | None = None,
        grace: float | None = None,
    ) -> list[Outcome]:
        """Return the outcomes of waits that are over.

        Raises:
            Suspended: they are not yet.
        """
        seconds = self.grace if grace is None else grace
        with self._begun(waits, needs_all, limit) as begun:
            if not begun.is_over():
                begun.absorb(waited := await self._kept().wait(begun.wires, begun.is_over, seconds))
                self._check(begun, waited)
            return [begun.outcomes[place] for place in begun.waits]

    def _over_blocking(
        self,
        waits: Mapping[tuple[str, str], WaitFor | float],
        *,
        needs_all: bool = True,
        limit: float | None = None,
        grace: float | None = None,
    ) -> list[Outcome]:
        seconds = self.grace if grace is None else grace
        with self._begun(waits, needs_all, limit) as begun:
            if not begun.is_over():
                begun.absorb(waited := self._kept().wait_blocking(begun.wires, begun.is_over, seconds))
                self._check(begun, waited)
            return [begun.outcomes[place] for place in begun.waits]

    @contextmanager
    def _begun(
        self, waits: Mapping[tuple[str, str], WaitFor | float], needs_all: bool, limit: float | None
    ) -> Iterator[_Begun]:
        waits = {(name, scoped(key)): wait for (name, key), wait in waits.items()}
        if twice := self._going & waits.keys():
            raise InvalidValue(
                f"{self.handler} waits for {sorted(twice)[0][0]} twice at the same time, and no attempt could tell "
                'which is which: give each wait a key of its own, `context.wait_for(…, key="second")`.'
            )
        places = {(lane[0], lane[1], self._occurrence(lane)): wait for lane, wait in waits.items()}
        stored = [(place, (f"{WAIT_PREFIX}{place[0]}", *place[1:])) for place in places]
        self.steps.asked.update(kept for _, kept in stored)
        self._going |= waits.keys()
        try:
            yield _Begun(
                places, {place: self.steps.kept.get(kept) for place, kept in stored}, needs_all, limit
            )
        finally:
            self._going -= waits.keys()

    def _check(self, begun: _Begun, waited: Waited) -> None:
        """Go on with waits that are over, or suspend."""
        for place, outcome in begun.outcomes.items():
            if outcome is not None:
                self.steps.kept[(f"{WAIT_PREFIX}{place[0]}", *place[1:])] = outcome
        if begun.is_over():
            return
        is_sleep = all(isinstance(wait, float | int) for wait in begun.waits.values())
        delay = waited.seconds if is_sleep and waited.seconds is not None else 0.0
        self.suspended = Suspended(begun.open, delay)
        raise self.suspended

    def _occurrence(self, lane: tuple[str, str]) -> int:
        self._counts[lane] = count = self._counts.get(lane, 0) + 1
        return count

    def _place(self, lane: tuple[str, str]) -> StepPlace:
        lane = (lane[0], scoped(lane[1]))
        return (f"{WAIT_PREFIX}{lane[0]}", lane[1], self._occurrence(lane))

    def _kept(self) -> WaitKeeper:
        if self.keeper is None:
            raise RuntimeFault(
                f"{self.handler} cannot wait here: its context belongs to no worker, or to a batch. Run the agent in "
                "a worker, as a test does with `async with harness.running(agent)`."
            )
        return self.keeper


def seconds_of(given: object, what: str) -> float:
    """Return a time in seconds, given as that, as a timedelta or as a text such as "30s", "15m", "2h" or "7d".

    Raises:
        InvalidValue: it is none of these, or longer than a year.
    """
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    if isinstance(given, str) and is_span(given):
        seconds = seconds_of_span(given)
    if not is_number(seconds) or not 0 <= seconds <= LONGEST_SECONDS:
        raise InvalidValue(
            f'{what} is a time of a year at most: seconds, or a text such as "90s", "15m", "2h" or "7d"; '
            f"not {short_repr(given)}."
        )
    return float(seconds)


def timeout_of(given: float | str | timedelta | None) -> float | None:
    """Return a timeout in seconds.

    Raises:
        InvalidValue: it is no time.
    """
    return None if given is None else seconds_of(given, "timeout=")


def suspension(error: BaseException) -> Suspended | None:
    """Return the suspension that ended an attempt: the error itself, or one in a task group's."""
    # By the type: what a handler raises may lie about its class.
    found = [each for each in members_of(error) if not issubclass(type(each), CancelledError)]
    suspended = [each for each in found if type(each) is Suspended]
    if not suspended or len(suspended) < len(found):
        return None
    if len(suspended) == 1:
        return suspended[0]
    places = [place for each in suspended for place in each.places]
    return Suspended(places, min(each.delay for each in suspended))


def _messages(outcomes: Sequence[Outcome]) -> list[Message[Any]]:
    """Return the messages that have ended waits.

    Raises:
        WaitTimeout: time has ended one of them.
    """
    if any(outcome is None or "timeout" in outcome for outcome in outcomes):
        raise WaitTimeout("Nothing of what the handler waited for came in time.")
    return [_message(outcome) for outcome in outcomes if outcome is not None]


def _message(outcome: Mapping[str, Any]) -> Message[Any]:
    if outcome["answer"] is None:
        raise InvalidValue(
            f"Message {outcome.get('id')}, which had ended a wait, was pruned before the handler went on."
        )
    return Message.from_row(outcome["answer"])


def _first(outcomes: Sequence[Outcome], waits: Sequence[WaitFor]) -> int:
    """Return which wait was ended by the oldest message.

    Raises:
        WaitTimeout: none was.
    """
    answered = [
        (int(outcome["id"]), index)
        for index, outcome in enumerate(outcomes)
        if outcome is not None and "answer" in outcome
    ]
    if not answered:
        patterns = ", ".join(each.pattern for each in waits)
        raise WaitTimeout(f"Nothing came under {patterns} in time.")
    return min(answered)[1]
