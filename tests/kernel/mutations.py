"""Would the model notice? Breaks one rule of the kernel at a time and waits for the machine to object.

    python -m tests.kernel.mutations            all of them, some minutes
    python -m tests.kernel.mutations K9         those whose name matches K9
    python -m tests.kernel.mutations K9 500     those, with 500 examples each instead of 100

Run by hand after a change of the kernel, the model or the machine. A mutation that survives is a hole in the machine.
"""

import re
import sys
import time
from typing import Any, NamedTuple

import anyio
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from runtime.local.test_cluster import Cluster, running_cluster
from tests.kernel.driver import connected
from tests.kernel.machine import machine_for, open_database
from tests.kernel.switch import switch_off


class Mutation(NamedTuple):
    """One rule less."""

    name: str
    function: str
    rule: str
    instead: str = ""
    also: tuple[tuple[str, str], ...] = ()
    """More of the same function that has to go with it: (rule, instead)."""
    by_histories: bool = False
    """Whether it takes two transactions that run at the same time: then random histories are to notice it."""
    held_by: str = ""
    """Where neither notices it soon, the file of the test that carries it out and sees what comes of it."""

    async def carry_out(self, connection: Any) -> None:
        """Break the rule in this database."""
        for rule, instead in ((self.rule, self.instead), *self.also):
            await switch_off(connection, self.function, rule, instead)


MUTATIONS = (
    Mutation("K1 done needs no lease", "runtime.finish", "and d.lease = r.lease"),
    Mutation("K1 failed needs no lease", "runtime.fail", "and l.lease = r.lease"),
    Mutation("K1 renew needs no lease", "runtime.renew", "and d.lease = r.lease"),
    Mutation("K3 bad output is swallowed", "runtime.finish", "perform runtime.store(emits);", "begin perform runtime.store(emits); exception when others then null; end;"),
    Mutation("K3 takes any key", "runtime.route", "perform runtime.check_key(k) from unnest(unknown) as k;", "null;"),
    Mutation("K2 a repeated number is applied", "public.stream_exchange", "p.n < stream_exchange.n", "p.n <= stream_exchange.n"),
    Mutation("K2 an older number is applied", "public.stream_exchange", "p.n < stream_exchange.n", "p.n <> stream_exchange.n"),
    Mutation("K5 takes before it is settled", "runtime.take_fresh", "s.settled and"),
    Mutation("K5 history without on conflict", "runtime.backfill", "on conflict do nothing"),
    Mutation("K5 settles beside open writers", "runtime.settle", "elsif pg_snapshot_xmin(pg_current_snapshot()) > s.settling_xid then", "else"),
    Mutation("K5 lets old snapshots write", "runtime.fan_out", "perform runtime.check_snapshot();", "null;"),
    Mutation("K5 history leaves sole", "runtime.backfill", "where target.marks_processed and", "where false and"),
    Mutation("K6 takes what is paused", "runtime.take_fresh", "and s.paused_at is null"),
    Mutation("K6 classes in the wrong order", "runtime.take_fresh", "(1::smallint, 0::bigint), (0::smallint, w.past)", "(0::smallint, w.past), (1::smallint, 0::bigint)"),
    Mutation("K6 fresh ones wait behind a crowd", "runtime.share_of_due", "least(runtime.most_due(w.value::integer), floor(w.value::integer / 2.0 + random())::integer)", "w.value::integer", held_by="test_k6_taking.py"),
    Mutation("K6 says nothing is due next", "runtime.next_due_seconds", "min(d.visible_at) is not null", "false"),
    Mutation("K8 counts no crash", "runtime.settle_crashes", "set crashes = d.crashes + 1", "set crashes = d.crashes"),
    Mutation("K8 looks at no abandoned lease", "public.stream_exchange", "perform runtime.count_crashes(want);", "null;"),
    Mutation("K8 poison messages come with others", "runtime.take_due", "= coalesce((pins ->> w.key)::integer, 0) + alone::integer", "< 2"),
    Mutation("K8 one attempt too many", "runtime.fail", "d.attempts + 1 >= s.max_attempts", "d.attempts >= s.max_attempts"),
    Mutation("K8 giving back counts", "runtime.fail", "(r.verdict = 'failed')::integer", "1"),
    Mutation("K9 unparks nothing", "runtime.unpark", "where d.ctid = next.place", "where false"),
    Mutation("K9 unparks the first if it is parked", "runtime.unpark", "where d.ctid = next.place", "where d.ctid = next.place and not exists (select from runtime.deliveries f where f.subscription = d.subscription and f.ordered_key = d.ordered_key and f.message_id < d.message_id)", by_histories=True),
    Mutation("K9 parks behind what it could not lock", "runtime.take_ordered", "for key share skip locked"),
    Mutation("K9 takes beside a leased one", "runtime.take_ordered", "n.ordered_key = m.ordered_key", "n.ordered_key = m.ordered_key and (n.lease is null or n.message_id < all (seen))", (("r.ordered_key = d.ordered_key", "false"),)),
    Mutation("K9 takes beside one that is just being taken", "runtime.take_ordered", "pg_try_advisory_xact_lock(hashtextextended(f.key, wanted))", "true", by_histories=True),
    Mutation("K9 a failed attempt unparks nothing below", "runtime.fail", "perform runtime.unpark_below(dead.unleased);", "null;", by_histories=True),
    Mutation("K9 a crash unparks nothing below", "runtime.settle_crashes", "perform runtime.unpark_below(unleased);", "null;", held_by="test_k9_one_at_a_time.py"),
    Mutation("K9 a dead letter that blocks unparks nothing below", "runtime.bury", "perform runtime.unpark_below(unleased);", "null;", held_by="test_k9_one_at_a_time.py"),
    Mutation("K9 a sweep heals nothing", "runtime.beat", "perform runtime.heal_order(me);"),
    Mutation("K9 takes past the head", "runtime.take_ordered", "n.ordered_key = m.ordered_key", "n.ordered_key = m.ordered_key and n.message_id = any (seen)"),
    Mutation("K9 stops behind a hot key", "runtime.take_ordered", "is_full := parked > 0 and 4 * amount in (cardinality(fresh), cardinality(overdue));", "is_full := false;"),
    Mutation("K9 an expired head wakes nobody", "public.stream_exchange", "taking.look_again := true;", "null;"),
    Mutation("K9 no order for what was unordered", "runtime.settle", "perform runtime.begin_order(s.id);", "null;"),
    Mutation("K9 pruning unparks nothing", "public.stream_prune", "perform runtime.after_end(expired);"),
    Mutation("K9 discarding unparks nothing", "runtime.discard", "perform runtime.after_end(gone);"),
    Mutation("K9 discarding leaves the key held up", "runtime.discard", "and d.lease = runtime.dead_lease()", "and false"),
    Mutation("K9 a dead letter blocks nothing", "runtime.bury", "s.ordered and s.dead_blocks", "false"),
    Mutation("K10 does not wait for the others", "runtime.mark_processed", "and not exists (select from runtime.deliveries d where d.message_id = m.id and d.marks)"),
    Mutation("K10 forgets what was locked", "runtime.mark_processed", "and not m.id = any (locked)", "and false"),
    Mutation("K11 a plain insert stores twice", "runtime.keep_dedup", "where d.message_id is null or d.forget_at < clock_timestamp()"),
    Mutation("K10 removing forgets processed", "public.stream_remove", "perform runtime.mark_processed(gone.sole, gone.shared);"),
    Mutation("K11 upkeep forgets too soon", "public.stream_maintain", "where f.forget_at < clock_timestamp()"),
    Mutation("K11 upkeep forgets nothing", "public.stream_maintain", "where f.forget_at < clock_timestamp()", "where false"),
    Mutation("K11 a batch stores twice", "runtime.reserve", "where d.forget_at < clock_timestamp()"),
    Mutation("K12 delivers what has expired", "runtime.describe", "where (m.expires_at <= at) is not true or (t.heavy and runtime.has_begun(t.message_id, t.subscription))"),
    Mutation("K12 anybody does the upkeep", "public.stream_maintain", "elected is distinct from worker or"),
    Mutation("K12 retention prunes nothing", "public.stream_maintain", "pruned := public.stream_prune(retention_seconds, max, after);", "null;"),
    Mutation("K12 removes what is served", "public.stream_remove", "if served > 0 then", "if false then"),
    Mutation("K12 removing leaves deliveries", "public.stream_remove", "where d.subscription = s.id returning", "where false returning"),
    Mutation("K15 announces nothing of many", "runtime.fan_out", "if somebody_sleeps or is_stricter then", "if false then"),
    Mutation("K15 announces nothing of one", "runtime.fan_out", "if is_stricter or single.somebody_sleeps then", "if false then"),
    Mutation("K4 one message takes no heed of time", "runtime.fan_out", "case when single.deliver_at > clock_timestamp() then single.deliver_at end", "null"),
    Mutation("K4 routes outlive a new subscription", "runtime.reroute", "generation = r.generation + 1", "generation = r.generation"),
    Mutation("K15 resume wakes nobody", "public.stream_resume", "perform runtime.wake_sleepers(array[s.id], '{}');", "null;"),
    Mutation("K15 redrive wakes nobody", "runtime.redrive", "perform runtime.wake_sleepers(woken, '{}');", "null;"),
    Mutation("K15 discard wakes nobody", "runtime.discard", "perform runtime.wake_sleepers(array(select distinct g.subscription from unnest(gone) as g), '{}');"),
    Mutation("K16 sleeps beside open writers", "runtime.fall_asleep", ">= fence", ">= '0'::xid8"),
    Mutation("K16 deaf to a call it was left at", "runtime.fall_asleep", "called = fall_asleep.pump.previous then", "false then"),
    Mutation("K16 the fence of before the call", "runtime.fall_asleep", "elsif called is not null", "elsif false"),
    Mutation("G4 emits nothing", "runtime.finish", "perform runtime.store(emits);", "null;"),
    Mutation("G12 a step needs no lease", "runtime.keep_steps", "and d.lease = g.lease"),
    Mutation("G12 a step is overwritten", "runtime.keep_steps", "on conflict on constraint steps_pkey do nothing", "on conflict on constraint steps_pkey do update set value = excluded.value"),
    Mutation("G12 steps do not come along", "runtime.keep_steps", "set heavy = true", "set heavy = d.heavy"),
    Mutation("G13 what a message lets go is not due", "runtime.go_on", "clock_timestamp() + make_interval(secs => (f.turn - 1) * 0.0005)", "'infinity'"),
    Mutation("G14 who takes a delivery passes by what is being kept", "runtime.keep_steps", "for no key update of d", "", held_by="test_k17_steps.py"),
    Mutation("G14 a step is kept by the lease that the delivery had", "runtime.keep_steps", "and d.lease = g.lease", "and (d.lease = g.lease or d.lease is null)", held_by="test_k17_steps.py"),
    Mutation("K17 takes what another version has begun", "runtime.take_due", "coalesce(one.pinned, 0)", "0", held_by="test_k17_pins.py"),
    Mutation("K17 who asks for a step does not wait", "public.stream_step", "for update;", ";", held_by="test_k17_steps.py"),
    Mutation("K18 no second look", "runtime.settle_waits", "elsif pg_snapshot_xmin(pg_current_snapshot()) > u.xid then", "else", held_by="test_k18_waits.py"),
    Mutation("K18 a wait that a writer held stays settled", "runtime.end_overdue_waits", "where x.settled and t.heavy and not exists", "where false and not exists", held_by="test_k18_waits.py"),
    Mutation("K18 its time ends what a writer may have missed", "runtime.end_overdue_waits", "x.settled and not exists", "not exists", (("from runtime.unsettled_waits u where", "from runtime.unsettled_waits u where false and"),), held_by="test_k18_waits.py"),
    Mutation("K18 a wait needs no lease", "public.stream_wait", "and d.lease = stream_wait.lease", held_by="test_k18_waits.py"),
    Mutation("K18 a death undoes nothing", "runtime.undo_first", "elsif runtime.has_undos(one.id, one.subscription) then", "elsif false then", held_by="test_k18_undos.py"),
    Mutation("K18 undone past the point of no return", "runtime.has_undos", "s.name = 'no_return'", "false", held_by="test_k18_undos.py"),
    Mutation("K18 undoing has no end", "runtime.undo_first", "if died is not null then", "if false then", held_by="test_k18_undos.py"),
    Mutation("K18 what a writer locks is not looked at again", "runtime.answer_waits", "from met h where h.place is null", "from met h where false", held_by="test_k18_waits.py"),
    Mutation("K18 the answer to another request counts", "runtime.first_answer", "m.parent_id = parent and", held_by="test_k18_waits.py"),
    Mutation("K18 an answer that was seen counts again", "runtime.first_answer", "and m.id <> all (seen)", held_by="test_k18_waits.py"),
)  # fmt: skip


async def broken(connection: Any, name: str) -> None:
    """Carry out one of them, by its name."""
    [mutation] = [each for each in MUTATIONS if each.name == name]
    await mutation.carry_out(connection)


def noticed(cluster: Cluster, mutation: Mutation | None, *, examples: int, steps: int) -> str | None:
    """What the machine says of a kernel changed so; None if it says nothing."""
    name = cluster.make_database()
    url = cluster.url(name)

    async def mutate() -> None:
        async with connected(url) as connection:
            if mutation is not None:
                await mutation.carry_out(connection)

    anyio.run(mutate)
    database = open_database(url)
    try:
        run_state_machine_as_test(
            machine_for(database),
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
    except Flaky:
        # It has failed once and not twice, which can say something of the machine itself.
        return None
    except Exception as error:  # noqa: BLE001 - whatever it stumbles over, it has stumbled
        return f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        database.close()
        cluster.drop_database(name)
    return None


def noticed_by_histories(cluster: Cluster, mutation: Mutation) -> str | None:
    """What is wrong with one of some random histories on a kernel changed so; None if nothing is."""
    from tests.chaos.histories.__main__ import one_history

    for seed in range(40):
        if problems := one_history(cluster, seed, 20, rest=False, broken=(mutation.name,)).problems:
            return problems[0]
    return None


def main() -> int:
    """Break each rule; say which the machine noticed, and after how long."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    examples = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    survivors = 0
    with running_cluster() as cluster:
        for mutation in MUTATIONS:
            if re.search(wanted, mutation.name):
                began = time.monotonic()
                if mutation.held_by:
                    print(f"{mutation.name:42}          held by {mutation.held_by}", flush=True)
                    continue
                if mutation.by_histories:
                    objection = noticed_by_histories(cluster, mutation)
                else:
                    objection = noticed(cluster, mutation, examples=examples, steps=50)
                survivors += objection is None
                print(
                    f"{mutation.name:42} {time.monotonic() - began:5.1f} s  {objection or 'SURVIVES'}"[:160],
                    flush=True,
                )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
