"""What does a kernel's database hold, all of it in one look? How is it emptied, and how does its time pass?"""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from runtime.local import keys
from tests.kernel.driver import connected

T = TypeVar("T")
Place = tuple[int, int]
"""(message, subscription)"""

FRESH, PARKED = "fresh", "parked"

_LOOK = """
with said as (delete from realtime.messages returning topic)
select jsonb_build_object(
    'messages', (select coalesce(jsonb_agg(jsonb_build_object('id', m.id, 'key', m.key, 'value', m.value,
        'agent', m.agent, 'parent', m.parent_id, 'processed', m.processed) order by m.id), '[]')
        from public.consciousness_stream m),
    'deliveries', (select coalesce(jsonb_agg(jsonb_build_object('message', d.message_id, 'subscription', d.subscription,
        'attempts', d.attempts, 'crashes', d.crashes, 'lease', d.lease, 'marks', d.marks, 'heavy', d.heavy,
        'due', case when d.visible_at is null then to_jsonb('fresh'::text)
            when d.visible_at = 'infinity' then to_jsonb('parked'::text)
            else to_jsonb(extract(epoch from d.visible_at - clock_timestamp())) end)), '[]')
        from runtime.deliveries d),
    'runs', (select coalesce(jsonb_agg(jsonb_build_array(r.message_id, r.subscription, r.outcome, r.attempt)), '[]')
        from runtime.runs r),
    'dead', (select coalesce(jsonb_agg(jsonb_build_object('id', l.id, 'message', l.message_id,
        'subscription', l.subscription, 'reason', l.reason, 'value', l.message -> 'value',
        'attempts', jsonb_array_length(l.attempts))), '[]') from runtime.dead_letters l),
    'subscriptions', (select coalesce(jsonb_object_agg(s.id, jsonb_build_object(
        'settled', s.settled, 'paused', s.paused_at is not null, 'expired', s.expired)), '{}')
        from runtime.subscriptions s),
    'dedup', (select coalesce(jsonb_object_agg(d.dedup_key, d.message_id), '{}') from runtime.dedup d),
    'steps', (select coalesce(jsonb_agg(jsonb_build_array(p.message_id, p.subscription, p.name, p.value)), '[]')
        from runtime.steps p),
    'waits', (select coalesce(jsonb_agg(jsonb_build_array(w.message_id, w.subscription, w.name)), '[]')
        from runtime.waits w),
    'unsettled', (select coalesce(jsonb_agg(jsonb_build_array(u.message_id, u.subscription)), '[]')
        from runtime.unsettled_waits u),
    'unmarked', (select coalesce(jsonb_agg(u.message_id), '[]') from runtime.unmarked u),
    'announced', (select coalesce(jsonb_agg(s.topic), '[]') from said s)
)
"""

_RESET = """
truncate public.consciousness_stream, runtime.subscriptions, runtime.pins, runtime.patterns, runtime.deliveries,
    runtime.runs, runtime.dead_letters, runtime.workers, runtime.pumps, runtime.dedup, runtime.unmarked, runtime.beats,
    runtime.calls, runtime.limits, runtime.cancels, runtime.steps, runtime.waits, runtime.unsettled_waits,
    runtime.usage, runtime.holds, runtime.spent_prefixes,
    realtime.messages restart identity;
select setval('runtime.settle_fence', 0);
"""

# The kernel has no second clock: time passes by moving what is written down into the past. The workers' heartbeats
# are not moved, since living workers go on beating.
_ADVANCE = """
update runtime.deliveries set visible_at = visible_at - make_interval(secs => {0}) where visible_at < 'infinity';
update public.consciousness_stream set created_at = created_at - make_interval(secs => {0}),
    deliver_at = deliver_at - make_interval(secs => {0}), expires_at = expires_at - make_interval(secs => {0});
update runtime.runs set ended_at = ended_at - make_interval(secs => {0});
update runtime.dead_letters set died_at = died_at - make_interval(secs => {0});
update runtime.dedup set forget_at = forget_at - make_interval(secs => {0});
update runtime.waits set until = until - make_interval(secs => {0}),
    created_at = created_at - make_interval(secs => {0});
update runtime.steps set created_at = created_at - make_interval(secs => {0});
update runtime.calls set called_at = called_at - make_interval(secs => {0});
"""

_PREPARE = """
alter function public.stream_exchange(uuid, uuid, bigint, json, json, json, jsonb, jsonb) set lock_timeout = '20ms';
alter function public.stream_step(bigint, integer, uuid, text, text, integer, jsonb, text, jsonb, boolean)
    set lock_timeout = '20ms';
alter function public.stream_steps(jsonb) set lock_timeout = '20ms';
alter function public.stream_wait(bigint, integer, uuid, jsonb) set lock_timeout = '20ms';
-- Its transactions would keep workers from falling asleep, and now and then only.
do $$
declare
    name regclass;
begin
    for name in
        select oid from pg_class
        where relkind = 'r' and relnamespace in ('runtime'::regnamespace, 'public'::regnamespace)
    loop
        execute format('alter table %s set (autovacuum_enabled = false)', name);
    end loop;
end
$$;
update runtime.policy set dedup_seconds = {dedup_seconds}, sleeper_seconds = 86400, call_seconds = 86400;
"""


@dataclass(frozen=True)
class State:
    """Everything committed, as one statement sees it."""

    messages: dict[int, dict[str, Any]]
    deliveries: dict[Place, dict[str, Any]]
    runs: Counter[tuple[int, int, str, int]]
    dead: dict[int, dict[str, Any]]
    subscriptions: dict[int, dict[str, Any]]
    dedup: dict[str, int]
    steps: dict[Place, dict[str, Any]]
    waits: set[tuple[Place, str]]
    unsettled: set[Place]
    unmarked: set[int]
    announced: set[str]
    """Workers that were woken since the last look."""

    @classmethod
    def from_wire(cls, raw: dict[str, Any]) -> "State":
        """From the JSON of one look."""
        return cls(
            messages={row["id"]: row for row in raw["messages"]},
            deliveries={(row["message"], row["subscription"]): row for row in raw["deliveries"]},
            runs=Counter((row[0], row[1], row[2], row[3]) for row in raw["runs"]),
            dead={row["id"]: row for row in raw["dead"]},
            subscriptions={int(number): row for number, row in raw["subscriptions"].items()},
            dedup=raw["dedup"],
            steps=_steps(raw["steps"]),
            waits={((message, number), name) for message, number, name in raw["waits"]},
            unsettled={(message, number) for message, number in raw["unsettled"]},
            unmarked=set(raw["unmarked"]),
            announced={topic.removeprefix("runtime:") for topic in raw["announced"]},
        )


def _is_near(due: float | str) -> bool:
    return isinstance(due, int | float) and 0 < due < 0.05


def _steps(rows: list[list[Any]]) -> dict[Place, dict[str, Any]]:
    steps: dict[Place, dict[str, Any]] = {}
    for message, number, name, value in rows:
        kept = steps.setdefault((message, number), {})
        assert name not in kept, f"G12: {name} is kept twice"
        kept[name] = value
    return steps


class Database:
    """One kernel and connections to it, driven step by step from plain functions.

    Every lock is waited for briefly: a step that meets an open transaction fails instead of hanging.
    """

    def __init__(self, url: str, *, workers: int, writers: int, dedup_seconds: float) -> None:
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.overseer = self._connect(url.replace("postgres:", f"{keys.SUPERUSER}:", 1))
        self.operator = self._connect(url)
        self.workers = [self._connect(url) for _ in range(workers)]
        self.writers = [self._connect(url) for _ in range(writers)]
        self.run(self.overseer.execute(_PREPARE.replace("{dedup_seconds}", str(dedup_seconds))))

    def _connect(self, url: str) -> Any:
        connection = self.run(self._stack.enter_async_context(connected(url)))
        self.run(connection.execute("set lock_timeout = '20ms'; set client_min_messages = error"))
        return connection

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Wait for one call."""
        return self._runner.run(call)

    def close(self) -> None:
        """Close every connection."""
        self.run(self._stack.aclose())
        self._runner.close()

    def reset(self) -> None:
        """Empty everything, and end what transactions are open."""
        for connection in (self.operator, *self.workers, *self.writers):
            if connection.is_in_transaction():
                self.run(connection.execute("rollback"))
        self.run(self.overseer.execute(_RESET))
        # Whom the kernel wakes is drawn by lot: the same lots for the same steps, so that an example can be repeated.
        for connection in (self.operator, *self.workers, *self.writers):
            self.run(connection.execute("select setseed(0.5)"))

    def advance(self, seconds: int) -> None:
        """Let time pass for everything committed."""
        self.run(self.overseer.execute(_ADVANCE.format(seconds)))

    def look(self) -> State:
        """Read everything, once the deliveries are due that one message has let go: they are spread by milliseconds."""
        announced: set[str] = set()
        while True:
            state = State.from_wire(self.run(self.overseer.fetchval(_LOOK)))
            announced |= state.announced
            if not any(row["lease"] is None and _is_near(row["due"]) for row in state.deliveries.values()):
                return replace(state, announced=announced)
