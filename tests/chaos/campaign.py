"""How does a campaign go? Acts with one setting of the workers each: send, strike, let it settle, judge."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import anyio

from runtime.client.stream import Stream, connect
from runtime.errors import StoreError
from tests.chaos.judge import Problem, judge
from tests.chaos.ledger import Chain, Ledger
from tests.chaos.stage import LEASE_SECONDS, Setting, Stage
from tests.chaos.strikes import FAULTS, HUGE, Fault, NotRun

LANES = 6
# A message sent becomes a chain: itself, a step, two halves, two results.
CHAIN_MESSAGES = 6
_PAUSE = (0.1, 0.8)
# The workers do this behind the last delivery: messages are marked, and waits looked at once more.
_TIDY = (
    "select not exists (select from runtime.unmarked) and not exists (select from runtime.waits) "
    "and not exists (select from runtime.unsettled_waits)"
)

Say = Callable[[str], None]


@dataclass
class Struck:
    """One strike of a fault."""

    fault: str
    began: float
    ended: float = float("inf")


@dataclass
class Outcome:
    """What came of a campaign."""

    ledger: Ledger = field(default_factory=Ledger)
    strikes: list[Struck] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    finished_at: dict[int, float] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    deliveries: int = 0


@dataclass
class Campaign:
    """A stage, a schedule and a ledger.

    Args:
        messages: how many the stream shall hold in the end, at least, over all acts.
        seconds: how long faults strike, over all acts.
        settings: the acts.
        names: the faults to order; all that apply when empty.
        huge_rows: rows of the huge transaction of each setting; none when 0.
        holds: whether each fault strikes once and lasts as long as the act, all of them together.
        settle_seconds: how long after the last fault everything must be done.
    """

    stage: Stage
    random: Random
    messages: int
    seconds: float
    settings: list[Setting]
    names: list[str]
    huge_rows: int
    holds: bool
    settle_seconds: float
    say: Say
    outcome: Outcome = field(default_factory=Outcome)
    _number: int = 0

    async def run(self) -> Outcome:
        """Play every act, and judge the whole."""
        for setting in self.settings:
            self.say(f"{setting}: two workers, faults for {self.seconds / len(self.settings):.0f} s")
            await self._act(setting)
        self.outcome.ledger.read(self.stage.ledger_folder)
        async with self.stage.connection() as connection:
            self.outcome.problems += await judge(connection, self.outcome.ledger)
            for feature in self.stage.features:
                found = await feature.judge(connection, self.outcome.ledger)
                self.outcome.problems += [
                    replace(each, text=f"{feature.name}: {each.text}") for each in found
                ]
            self.outcome.deliveries = await connection.fetchval(
                "select count(*) from runtime.runs where outcome = 'done'"
            )
        for entry in self.outcome.ledger.entries:
            if entry.handler == "last.join":
                at = self.outcome.finished_at.get(entry.number, 0.0)
                self.outcome.finished_at[entry.number] = max(at, entry.ended)
        return self.outcome

    async def _act(self, setting: Setting) -> None:
        acts = len(self.settings)
        self.outcome.settings.append(str(setting))
        await self.stage.start_workers(setting)
        chains = -(-self.messages // (CHAIN_MESSAGES * acts))
        lanes = [range(self._number + lane, self._number + chains, LANES) for lane in range(LANES)]
        self._number += chains
        until = time.monotonic() + self.seconds / acts
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as sending:
                for lane, numbers in enumerate(lanes):
                    # Half of the senders take the way that breaks.
                    store = ("rest", "direct")[lane % 2]
                    sending.start_soon(self._send, lane, numbers, store, until)
                sending.start_soon(self._strike, until)
                for feature in self.stage.features:
                    if feature.drive is not None:
                        sending.start_soon(feature.drive, self.stage, self.outcome.ledger, until)
                if self.huge_rows and (not self.names or HUGE in self.names):
                    sending.start_soon(self._send_huge, str(setting), self.huge_rows)
            tasks.cancel_scope.cancel()
        self.stage.faults.heal()
        left = await self._settle()
        if left:
            self.outcome.problems.append(
                Problem("lost", f"{setting}: still waiting after {self.settle_seconds:.0f} s: {left}")
            )
        problems = await self.stage.stop_workers()
        self.outcome.problems += [Problem("processes", f"{setting}: {text}") for text in problems]

    async def _send(self, lane: int, numbers: range, store: str, until: float) -> None:
        """Send one message after another, each until it is known to be committed, spread over the act."""
        pause = max(0.0, until - time.monotonic()) / max(1, len(numbers))
        settings = self.stage.settings(store)
        async with connect(settings) as stream:
            for number in numbers:
                sent_at = time.monotonic()
                message = await self._send_one(stream, lane, number)
                self.outcome.ledger.chains.append(Chain(number, lane, sent_at, time.monotonic(), message))
                rest = pause - (time.monotonic() - sent_at)
                if rest > 0:
                    await anyio.sleep(rest)

    async def _send_one(self, stream: Stream, lane: int, number: int) -> int:
        while True:
            try:
                sent = await stream.send(
                    f"chaos.lane.{lane}", {"number": number}, agent="chaos", dedup_key=f"chain-{number}"
                )
                return sent.id
            except StoreError:
                await anyio.sleep(0.1)

    async def _send_huge(self, name: str, rows: int) -> None:
        struck = Struck(HUGE, time.monotonic())
        self.outcome.strikes.append(struck)
        while True:
            async with self.stage.connection() as connection:
                try:
                    # Known to be committed, or rolled back and sent again: the name is there once or not at all.
                    done = await connection.fetchval(
                        "select count(*) from public.consciousness_stream where key = 'chaos.bulk' and agent = $1",
                        name,
                    )
                    if not done:
                        await connection.execute(
                            "insert into public.consciousness_stream (key, value, agent) "
                            "select 'chaos.bulk', to_jsonb(n), $1 from generate_series(1, $2::int) n",
                            name, rows,
                        )  # fmt: skip
                    break
                except Exception:  # noqa: BLE001 - a fault has struck; whether it was committed is looked up
                    await anyio.sleep(0.1)
        self.outcome.ledger.bulks[name] = rows
        struck.ended = time.monotonic()

    async def _strike(self, until: float) -> None:
        """One fault after another from a shuffled deck; in the last third two at a time."""
        chosen = [fault for fault in FAULTS if not self.names or fault.name in self.names]
        faults = [fault for fault in chosen if fault.applies(self.stage)]
        if self.holds:
            async with anyio.create_task_group() as tasks:
                for fault in faults:
                    tasks.start_soon(self._strike_once, fault, until - time.monotonic())
            return
        deck: list[Fault] = []
        began = time.monotonic()
        while faults and time.monotonic() < until:
            crowd = 2 if time.monotonic() > began + (until - began) * 2 / 3 and len(faults) > 1 else 1
            async with anyio.create_task_group() as tasks:
                for _ in range(crowd):
                    if not deck:
                        deck = self.random.sample(faults, len(faults))
                    fault = deck.pop()
                    tasks.start_soon(self._strike_once, fault, self.random.uniform(*fault.seconds))
            await anyio.sleep(self.random.uniform(*_PAUSE))

    async def _strike_once(self, fault: Fault, seconds: float) -> None:
        struck = Struck(fault.name, time.monotonic())
        try:
            async with fault.strike(self.stage, self.random):
                self.outcome.strikes.append(struck)
                await anyio.sleep(seconds)
        except NotRun as reason:
            self.outcome.not_run[fault.name] = str(reason)
        finally:
            struck.ended = time.monotonic()

    async def _settle(self) -> list[dict[str, Any]]:
        """Wait until nothing is left to do; returns what is, at the deadline."""
        deadline = time.monotonic() + self.settle_seconds + 2 * LEASE_SECONDS
        query = (
            "select s.name, count(*) as deliveries, min(d.message_id) as first, "
            "bool_or(d.lease is not null) as leased, max(d.attempts) as attempts, "
            "max(d.crashes) as crashes from runtime.deliveries d "
            "left join runtime.subscriptions s on s.id = d.subscription group by 1"
        )
        while True:
            async with self.stage.connection() as connection:
                left = [dict(row) for row in await connection.fetch(query)]
                is_tidy = await connection.fetchval(_TIDY)
            if (not left and is_tidy) or time.monotonic() > deadline:
                return left
            await anyio.sleep(0.1)
