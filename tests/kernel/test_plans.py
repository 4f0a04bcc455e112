"""Does the kernel stay quick as the stream grows? At a million messages each function reads only what it is about."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

import anyio
import pytest

from runtime.local import keys
from runtime.local.test_cluster import Cluster
from tests.kernel.driver import Worker, connected, insert, send
from tests.kernel.plans import Plans, explained

pytestmark = pytest.mark.anyio

MESSAGES = 1_000_000
LETTERS = 300_000
# What one call may look at: pages, batches and their like, but never a share of the table.
FEW = 12_000

Call = Callable[[Any, Worker], Awaitable[Any]]
CALLS: dict[str, Call] = {}


def call(function: Call) -> Call:
    """One way to call a function of the kernel, under the name of that function and of the way."""
    CALLS[function.__name__] = function
    return function


@pytest.fixture(scope="module", params=["pg15", "pg18"])
def crowded_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a kernel with a million finished messages, as the superuser; tests leave it much as it was."""
    cluster: Cluster = request.getfixturevalue("cluster_15" if request.param == "pg15" else "cluster")
    name = cluster.make_database()
    url = cluster.url(name, user=keys.SUPERUSER)
    anyio.run(_crowd, url)
    yield url
    cluster.drop_database(name)


async def _crowd(url: str) -> None:
    async with connected(url) as db:
        await Worker(db).subscribe(
            "a.one=task.a", {"name": "a.orderly", "patterns": ["lane.*"], "ordered": True}, "a.idle=nothing"
        )
        # No trigger runs; an index made in the end is made in a quarter of the time.
        await db.execute("set session_replication_role = replica")
        definition = await db.fetchval("select pg_get_indexdef('consciousness_stream_key'::regclass)")
        await db.execute("drop index consciousness_stream_key")
        await db.execute(
            "insert into consciousness_stream (key, processed, created_at, correlation_id, parent_id) "
            "select case when n = 77777 then 'rare.once' when n % 10 = 0 then 'other.k' || n % 1000 "
            f"else 'task.a' end, true, clock_timestamp() - make_interval(secs => {MESSAGES} - n), "
            "case when n % 10 = 0 then 'order ' || n % 1000 when n % 1000 = 7 then '77777' end, "
            f"case when n % 1000 = 7 then 77777 end from generate_series(1, {MESSAGES}) n"
        )
        await db.execute(definition)
        await db.execute(
            "insert into runtime.runs (message_id, subscription, ended_at, attempt, outcome) "
            "select n, s.id, clock_timestamp() - make_interval(secs => 100000 - n), 1, 'done' "
            "from generate_series(1, 100000) n, runtime.subscriptions s where s.name = 'a.one'"
        )
        await db.execute(
            "insert into runtime.steps (message_id, subscription, name, key, occurrence) "
            "select n, s.id, 'draft', '', 1 from generate_series(1, 100000) n, runtime.subscriptions s "
            "where s.name = 'a.one'"
        )
        await db.execute(
            "insert into runtime.statuses (message_id, subscription, text, lease) "
            "select n, s.id, 'drafting', gen_random_uuid() from generate_series(1, 100000) n, runtime.subscriptions s "
            "where s.name = 'a.one'"
        )
        await db.execute(
            "insert into stream_texts (message_id, name, subscription, handler, attempt, lease, length) "
            "select n, 'answer', s.id, s.name, 1, gen_random_uuid(), 10 from generate_series(1, 100000) n, "
            "runtime.subscriptions s where s.name = 'a.one'"
        )
        await db.execute(
            "insert into stream_text_parts (message_id, name, subscription, start, text) "
            "select n, 'answer', s.id, 0, '0123456789' from generate_series(1, 100000) n, "
            "runtime.subscriptions s where s.name = 'a.one'"
        )
        await db.execute(
            "insert into runtime.waits (message_id, subscription, name, key, occurrence, pattern, filter, probe, "
            "since_id, until, created_at) select n, s.id, 'payment.settled', '', 1, 'payment.settled', "
            "jsonb_build_object('order', n + 1000), 'order=' || n + 1000, n, null, clock_timestamp() "
            "from generate_series(1, 10000) n, runtime.subscriptions s where s.name = 'a.idle'"
        )
        # What one bad deploy leaves behind, and some of others.
        definitions = await db.fetch(
            "select indexrelid::regclass::text as name, pg_get_indexdef(indexrelid) as definition from pg_index "
            "where indrelid = 'runtime.dead_letters'::regclass and not indisprimary"
        )
        for each in definitions:
            await db.execute(f"drop index {each['name']}")
        await db.execute(
            "insert into runtime.dead_letters (message_id, subscription, subscription_name, key, message, reason, "
            "error, attempts, died_at) select n, s.id, case when n % 100000 = 0 then 'b.two' else 'a.one' end, "
            "case when n = 77777 then 'rare.once' when n % 10 = 0 then 'other.k' || n % 1000 else 'task.a' end, "
            "jsonb_build_object('id', n, 'priority', 0), 'failed', 'ValueError', '[]', "
            f"clock_timestamp() - make_interval(secs => {LETTERS} - n) "
            f"from generate_series(1, {LETTERS}) n, runtime.subscriptions s where s.name = 'a.one'"
        )
        for each in definitions:
            await db.execute(each["definition"])
        # A subscription nobody serves, with half of the stream before it.
        await db.execute(
            "insert into runtime.deliveries (message_id, subscription, marks, sole) "
            f"select n, s.id, false, false from generate_series({MESSAGES} / 2 + 1, {MESSAGES}) n, "
            "runtime.subscriptions s where s.name = 'a.idle'"
        )
        await Worker(db).subscribe("few.wait=few.wait")
        await db.execute(
            "insert into runtime.deliveries (message_id, subscription, marks, sole) "
            "select n * 10000, s.id, false, false from generate_series(1, 7) n, "
            "runtime.subscriptions s where s.name = 'few.wait'"
        )
        # One key with a crowd, and more keys than a sweep looks at, of each of which one waits and one is parked.
        await Worker(db).subscribe({"name": "many.lanes", "patterns": ["many.*"], "ordered": True})
        await db.execute(
            "insert into runtime.deliveries (message_id, subscription, visible_at, marks, sole, ordered_key) "
            "select 50000000 + 10 * d.n + (d.key <> 'many.0')::integer, s.id, "
            "case when d.n > 1 then 'infinity'::timestamptz end, false, false, d.key from runtime.subscriptions s, ("
            "    select n, 'many.0' as key from generate_series(1, 100000) n "
            "    union all select 1 + n % 2, 'many.' || n / 2 from generate_series(2, 4000) n) d "
            "where s.name = 'many.lanes' on conflict do nothing"
        )
        await db.execute("set session_replication_role = origin")
        await db.execute(
            "insert into consciousness_stream (key) select 'task.a' from generate_series(1, 20000)"
        )
        await db.execute(
            "insert into consciousness_stream (key) select 'lane.' || n % 50 from generate_series(1, 2000) n"
        )
        await db.execute("vacuum analyze")


@pytest.fixture
async def crowded(crowded_url: str) -> AsyncIterator[Any]:
    """A connection to it, as the superuser, who may see plans."""
    async with connected(crowded_url) as connection:
        yield connection


@call
async def send_one(db: Any, _: Worker) -> None:
    await send(db, ("task.a", 1))


@call
async def send_once(db: Any, _: Worker) -> None:
    for _round in range(2):
        await send(db, {"key": "nobody.wants", "value": 1, "dedup_key": "once"})


@call
async def insert_plainly(db: Any, _: Worker) -> None:
    await insert(db, "task.a", 1)


@call
async def read_key(db: Any, _: Worker) -> None:
    await db.fetchval("select stream_read('task.a')")
    await db.fetchval("select stream_read('task.a', before => 500000)")


@call
async def read_key_after(db: Any, _: Worker) -> None:
    await db.fetchval("select stream_read('task.a', after => 500000)")


@call
async def read_pattern(db: Any, _: Worker) -> None:
    await db.fetchval("select stream_read('task.>', before => 500000)")
    await db.fetchval("select stream_read('other.*', after => 500000)")
    for rare in ("rare.*", "*.once", "*.never"):
        for where in ("after => 1000", "before => 900000"):
            found = await db.fetchval(f"select stream_read('{rare}', {where})")
            assert [row["key"] for row in found] == ([] if rare == "*.never" else ["rare.once"])


@call
async def read_latest(db: Any, _: Worker) -> None:
    assert len(await db.fetchval("select stream_read('other.>', latest => true)")) == 100
    await db.fetchval("select stream_read('task.a', latest => true)")


@call
async def read_of_a_time(db: Any, _: Worker) -> None:
    day = {
        "since": f"clock_timestamp() - make_interval(secs => {MESSAGES / 2})",
        "until": "clock_timestamp() - '9 days'::interval",
    }
    for pattern in ("task.a", "task.*", "rare.*", ">"):
        for name, moment in day.items():
            await db.fetchval(f"select stream_read('{pattern}', {name} => {moment})")
    states = await db.fetchval(
        f"select stream_read('>', latest => true, max => 200, until => {day['until']})"
    )
    assert {row["key"] for row in states} > {"task.a", "rare.once"}


@call
async def read_correlated(db: Any, _: Worker) -> None:
    for correlation, count in {"order 10": 1000, "77777": 1001, "no such": 0}.items():
        for where in ("after => 0", "before => 2000000"):
            found = await db.fetchval(
                f"select stream_read(correlation_id => '{correlation}', max => 2000, {where})"
            )
            assert len(found) == count
    assert len(await db.fetchval("select stream_read('task.a', correlation_id => '77777', max => 3)")) == 3


@call
async def subscribe_from_the_earliest(db: Any, _: Worker) -> None:
    late = Worker(db)
    await late.subscribe({"name": "late.comer", "patterns": ["other.k10"], "start": "earliest"}, settle=False)
    for _round in range(3):
        await late.exchange(settle=True)
    await db.fetchval("select stream_leave($1)", late.id)


@call
async def exchange_takes_and_finishes(_: Any, worker: Worker) -> None:
    taken = await worker.take(100)
    assert len(taken) > 100
    await worker.exchange(renew=[each.report() for each in taken[:50]])
    await worker.finish(*taken[:50])
    await worker.finish(*taken[50:], emits=[{"key": "nobody.wants", "value": 1}])


@call
async def exchange_fails(db: Any, worker: Worker) -> None:
    taken = await worker.take(10)
    await worker.fail(*taken[:5], delay=5)
    await worker.fail(*taken[5:], outcome="dead")
    await db.fetchval("select stream_dead()")
    await db.fetchval("select stream_redrive(max => 2)")
    await db.fetchval("select stream_discard()")


@call
async def keep_steps(db: Any, worker: Worker) -> None:
    taken, *_ = await worker.take(1)
    for occurrence in (1, 1, 2):
        await db.fetchval(
            "select stream_step($1, $2, $3, 'draft', '', $4, '1')",
            taken.id, taken.subscription, UUID(taken.lease), occurrence,
        )  # fmt: skip
    steps = [
        {
            "message": taken.id, "subscription": taken.subscription, "lease": taken.lease, "name": "draft", "key": "",
            "occurrence": 3, "value": 4,
        }
    ]  # fmt: skip
    assert await db.fetchval("select stream_steps($1)", steps) == [{"held": True}]
    await db.fetchval(
        "select stream_step($1, $2, $3, 'draft', '', 1, null, asking => true)",
        taken.id, taken.subscription, UUID(taken.lease),
    )  # fmt: skip
    status = {
        "message": taken.id,
        "subscription": taken.subscription,
        "lease": taken.lease,
        "text": "drafting",
    }
    assert await db.fetchval("select stream_status($1)", [status]) == {"told": 1}
    assert [each["message"] for each in (await db.fetchval("select stream_stats()"))["statuses"]] == [
        taken.id
    ]
    for beginning in (1, 2):
        begun = await db.fetchval(
            "select stream_begin_text($1, $2, $3, 'draft', 1)",
            taken.id,
            taken.subscription,
            UUID(taken.lease),
        )
        assert begun["beginning"] == beginning
        piece = {**status, "name": "draft", "beginning": beginning, "start": 0}
        assert (await db.fetchval("select stream_write_texts($1)", [piece]))["kept"] == [True]
    assert (await db.fetchval("select stream_follow($1, 'draft', 5)", taken.id))["text"] == "ing"
    await worker.fail(taken)
    [again] = [each for each in await worker.take(5) if each.id == taken.id and each.steps]
    assert len(again.steps) == 3
    await worker.fail(again, outcome="dead")
    await db.fetchval("select stream_fork($1, 'draft (2)', null, '{\"draft\": 2}')", taken.id)
    await db.fetchval("select stream_redrive(pattern => 'other.k10', from_step => 'draft', max => 2)")


@call
async def wait_for_messages(db: Any, worker: Worker) -> None:
    # Among many that wait for other things, and with a history of its own key and of a rare one.
    ids = [await insert(db, "task.a", n, priority=1) for n in range(2)]
    first, second = [each for each in await worker.take(2) if each.id in ids]
    waits = [
        {"name": name, "key": "", "occurrence": 1, "pattern": pattern, "filter": value, "seconds": 3600, "since": since}
        for name, pattern, value, since in (
            ("a", "task.a", {"order": 7}, ids[0]), ("b", "payment.*", {"order": 7}, None), ("sleep", None, None, None),
            ("c", "rare.once", None, 0),
        )
    ]  # fmt: skip
    places = [[each["name"], each["key"], each["occurrence"]] for each in waits[:3]]
    for taken, asked in ((first, waits), (second, waits[:3])):
        told = await db.fetchval(
            "select stream_wait($1, $2, $3, $4)", taken.id, taken.subscription, UUID(taken.lease), asked
        )
        assert [outcome is None for outcome in told["outcomes"]] == [True, True, True, False][: len(asked)]
        await worker.exchange(failed=[taken.report(outcome="suspended", waits=places)])
    assert len(await db.fetchval("select stream_waits('a.one', max => 10)")) == 6
    with anyio.fail_after(60):
        # No writer can have missed a wait.
        while await db.fetchval("select exists (select from runtime.unsettled_waits)"):
            await worker.exchange(want=0, due=True)
    # One message ends a wait of both.
    await insert(db, "payment.settled", {"order": 7})
    with anyio.fail_after(60):
        gone_on: list[int] = []
        while len(gone_on) < len(ids):
            gone_on += [each.id for each in await worker.take(2) if each.id in ids]
    await db.fetchval("select stream_trace($1)", ids[0])


@call
async def ask_people(db: Any, worker: Worker) -> None:
    (taken, *_others) = await worker.take(1)
    [request] = await send(
        db, {"key": "approval.requested", "value": {"title": "Send it?"}, "parent_id": taken.id}
    )
    wait = {
        "name": "approval.decided", "key": "", "occurrence": 1, "pattern": "approval.decided",
        "filter": {"request": request}, "since": request,
    }  # fmt: skip
    await db.fetchval(
        "select stream_wait($1, $2, $3, $4)", taken.id, taken.subscription, UUID(taken.lease), [wait]
    )
    assert [each["request"] for each in await db.fetchval("select stream_approvals()")] == [request]
    assert (await db.fetchval("select stream_decide($1, true)", request))["decided"]
    assert not (await db.fetchval("select stream_decide($1, false)", request))["decided"]
    assert await db.fetchval("select stream_approvals()") == []


@call
async def exchange_repeats(db: Any, worker: Worker) -> None:
    taken = await worker.take(10)
    assert [each.id for each in (await worker.exchange(n=worker.n, want=10)).taken] == [
        each.id for each in taken
    ]
    await db.fetchval("select stream_leave($1)", worker.id)


@call
async def exchange_takes_alone(db: Any, worker: Worker) -> None:
    taken, *_ = await worker.take(1)
    await db.execute(
        "update runtime.deliveries set lease = null, crashes = 2, visible_at = clock_timestamp() "
        "where message_id = $1 and subscription = $2",
        taken.id, taken.subscription,
    )  # fmt: skip
    assert [each.id for each in await worker.take(alone=True)] == [taken.id]
    await db.fetchval("select stream_leave($1)", worker.id)


@call
async def exchange_beats_and_sleeps(db: Any, worker: Worker) -> None:
    await worker.exchange(want={"a.idle": 5}, due=True, sleep=True, beat=True, nonce="n", settle=True)
    await db.fetchval("select stream_beat($1, 'n')", worker.id)


@call
async def exchange_heals_order(_: Any, worker: Worker) -> None:
    await worker.subscribe({"name": "many.lanes", "patterns": ["many.*"], "ordered": True})
    for _sweep in range(3):
        await worker.exchange(beat=True)


@call
async def pause_and_resume(db: Any, _: Worker) -> None:
    await db.fetchval("select stream_pause('a.one')")
    await db.fetchval("select stream_resume('a.one')")


@call
async def replay_ids(db: Any, _: Worker) -> None:
    assert (await db.fetchval("select stream_replay('a.one', ids => '{1, 2, 3}')"))["matching"] == 3


@call
async def replay_key(db: Any, _: Worker) -> None:
    await db.fetchval("select stream_replay('late.comer', pattern => 'other.*', dry_run => true)")


@call
async def prune_and_maintain(db: Any, worker: Worker) -> None:
    # Past what others have replayed or redriven: where that is leased it is somebody's work in hand, and stays.
    pruned = await db.fetchval("select stream_prune(86400, 1000, after => 400000)")
    assert (pruned["pruned"], pruned["last"]) == (1000, 401000)
    await db.fetchval("select stream_maintain($1, 86400, max => 1000)", worker.id)


@call
async def stats(db: Any, _: Worker) -> None:
    told = {each["name"]: each for each in (await db.fetchval("select stream_stats()"))["subscriptions"]}
    # Of many it is said about how many they are; few are counted, among however many others.
    assert told["a.idle"]["about"]
    assert told["a.idle"]["waiting"] == pytest.approx(MESSAGES / 2, rel=0.25)
    assert (told["few.wait"]["about"], told["few.wait"]["waiting"]) == (False, 7)


@call
async def remove(db: Any, _: Worker) -> None:
    await Worker(db).subscribe("gone.soon=nothing")
    await db.execute("update runtime.workers set seen_at = 'epoch'")
    await db.fetchval("select stream_remove('gone.soon')")


@call
async def schedule_and_tick(db: Any, worker: Worker) -> None:
    timers = [{"name": "a.idle", "key": "timer.a.idle", "spec": "every 60", "missed": "one"}]
    declared = await db.fetchval("select stream_schedule($1, $2)", worker.id, timers)
    last = datetime.fromisoformat(declared["schedules"]["a.idle"]["last_slot"])
    ticks = [{"slot": last.isoformat(), "missed": 0}]
    await db.fetchval("select stream_tick('a.idle', 'every 60', $1, $1, $2)", last, ticks)
    await db.fetchval("select stream_schedules()")


@call
async def post_to_targets(db: Any, _: Worker) -> None:
    await db.fetchval("select stream_add_webhook('crm.post', 'https://example.com', '{nothing.at.all}')")
    await db.fetchval("select stream_rotate_webhook('crm.post')")
    await db.fetchval("select stream_serve_webhooks()")
    notes = [{"name": "crm.post", "kind": "target", "message": 1}, {"name": "crm.post", "kind": "done"}]
    await db.fetchval("select stream_note_webhooks($1, $2)", [{"name": "crm.post"}], notes)
    await db.fetchval("select stream_webhooks()")
    await db.fetchval("select stream_remove_webhook('crm.post')")


@call
async def listen_and_broadcast(db: Any, _: Worker) -> None:
    found = await db.fetchval("select stream_horizon(1000)")
    assert found["floor"] <= found["drawn"]
    await db.fetchval("select stream_broadcast($1)", '{"broadcasts":[]}')


@call
async def view_the_stream(db: Any, _: Worker) -> None:
    page = await db.fetchval("select stream_page('task.>', before => 500000)")
    await db.fetchval("select stream_page('other.*', after => 500000, state => 'done')")
    await db.fetchval("select stream_page(text => 'nowhere', look => 5000)")
    assert len((await db.fetchval("select stream_page('*.once')"))["messages"]) == 1
    for state in ("open", "failed", "dead", "done", "unhandled"):
        await db.fetchval("select stream_page(state => $1)", state)
    await db.fetchval(
        "select stream_page(agent => 'nobody', since => now() - interval '1 day', until => now())"
    )
    ids = [row["id"] for row in page["messages"]]
    await db.fetchval("select stream_handling($1)", ids)
    await db.fetchval("select stream_trace($1)", ids[0])
    await db.fetchval("select stream_conversation($1)", str(ids[0]))


@call
async def view_what_flows(db: Any, _: Worker) -> None:
    await db.fetchval("select stream_activity(60)")
    await db.fetchval("select stream_flow(2000)")


@call
async def mend_dead_letters(db: Any, worker: Worker) -> None:
    (taken, *_others) = await worker.take(1)
    await worker.fail(taken, outcome="dead")
    (letter, *_more) = await db.fetchval("select stream_dead()")
    await db.fetchval("select stream_dead_groups()")
    await db.fetchval("select stream_last_good($1)", letter["id"])
    await db.fetchval("select stream_amend($1, $2)", letter["id"], {"mended": True})


@call
async def look_for_dead_letters(db: Any, _: Worker) -> None:
    async def found(**asked: Any) -> list[str]:
        named = ", ".join(f"{name} => ${place}" for place, name in enumerate(asked, 1))
        return [each["key"] for each in await db.fetchval(f"select stream_dead({named})", *asked.values())]

    for rare in ("rare.once", "rare.*", "*.once", "rare.>"):
        assert await found(pattern=rare) == ["rare.once"]
        assert await found(pattern=rare, before=1000) == []
    assert (
        await found(pattern="*.never")
        == await found(pattern="task.b")
        == await found(subscription="a.three")
        == []
    )
    for common in ("task.a", "task.*", "other.>", ">"):
        assert (
            len(await found(pattern=common)) == len(await found(pattern=common, before=LETTERS // 2)) == 100
        )
    assert len(await found(subscription="b.two")) == LETTERS // 100_000
    assert await found(subscription="b.two", pattern="task.>") == []
    assert len(await found(subscription="b.two", pattern="other.*")) == LETTERS // 100_000
    assert len(await found(older_than_seconds=LETTERS - 5000)) == 100
    assert len(await found(older_than_seconds=10, pattern="task.a")) == 100


@call
async def end_dead_letters(db: Any, _: Worker) -> None:
    for choice in (
        "pattern => 'other.k10'",
        "pattern => 'other.*'",
        "pattern => '*.once'",
        "subscription => 'b.two'",
    ):
        for function in ("redrive", "discard"):
            told = await db.fetchval(f"select stream_{function}({choice}, max => 2, dry_run => true)")
            assert 1 <= sum(told["matching"].values()) <= 2
    assert (await db.fetchval("select stream_redrive(pattern => 'other.k10', max => 2)"))["redriven"] == 2
    assert (await db.fetchval("select stream_discard(pattern => 'other.k20', max => 2)"))["discarded"] == 2


@call
async def take_within_limits(db: Any, worker: Worker) -> None:
    limits = {"rate_amount": 600, "rate_seconds": 60, "concurrency_total": 4}
    await worker.subscribe({"name": "a.limited", "patterns": ["task.limited"], **limits})
    await send(db, *[("task.limited", n) for n in range(9)])
    taken = await worker.take()
    assert len(taken) == 2
    await worker.exchange(done=[each.report() for each in taken], want=9, due=True)
    await db.fetchval("select stream_stats()")
    await db.fetchval("select stream_tools()")


@call
async def count_usage(db: Any, worker: Worker) -> None:
    budget = {"budget": 0.5, "budget_period": "month"}
    await worker.subscribe(
        {"name": "a.dear", "patterns": ["task.dear"], **budget},
        {"name": "a.dearer", "patterns": ["task.dearer"], "budget_per": 2, **budget},
    )
    await send(db, *[("task.dearer", n) for n in range(9)])
    for taken in (await worker.exchange(want={"a.dearer": 2})).taken:
        await worker.finish(taken, usage={"tokens_in": 7, "cost": 0.25, "model": "m"})
    await send(db, *[("task.dear", n) for n in range(9)])
    for taken in await worker.take(2):
        await worker.finish(taken, usage={"tokens_in": 7, "cost": 0.25, "model": "m"})
    assert await worker.take() == []
    assert len(await db.fetchval("select stream_usage()")) == 2
    await db.fetchval("select stream_stats()")


@call
async def cancel(db: Any, worker: Worker) -> None:
    waits, runs = [await insert(db, "task.a", n, priority=1) for n in range(2)]
    await db.fetchval("select stream_cancel($1, 'a.one', 'done')", waits)
    (taken,) = [each for each in await worker.take() if each.id == runs]
    await db.fetchval("select stream_cancel($1)", runs)
    await worker.fail(taken, outcome="cancelled")


@call
async def ask_and_answer(db: Any, worker: Worker) -> None:
    headers = {"reply_to": f"answer.{worker.id}", "reachable_by": ["notify", "realtime"]}
    good, bad = await send(db, *[{"key": "task.a", "headers": headers, "priority": 1} for _ in range(2)])
    taken = {each.id: each for each in await worker.take()}
    await worker.finish(
        taken[good],
        emits=[{"key": headers["reply_to"], "dedup_key": f"answer {good} {taken[good].subscription}"}],
    )
    await worker.fail(taken[bad], outcome="dead")
    found = await db.fetchval("select stream_answers($1)", [good, bad])
    assert [len(each["answers"]) for each in found] == [1, 1]


@call
async def tell_what_is_due(db: Any, _: Worker) -> None:
    await db.fetchval("select stream_due('{a.one,a.orderly,a.idle}')")


@call
async def examine(db: Any, _: Worker) -> None:
    await db.fetchval("select stream_examine()")
    await db.fetchval("select stream_version()")


async def plans_of(db: Any, name: str) -> Plans:
    """The plans of everything that one of the calls runs, after it has run once and everything is warm."""
    worker = Worker(db)
    await worker.subscribe(
        "a.one=task.a", {"name": "a.orderly", "patterns": ["lane.*"], "ordered": True}, "a.idle=nothing"
    )
    if name == "replay_key":
        await subscribe_from_the_earliest(db, worker)
    # What calls a function for each of a million rows would explain a million statements.
    await db.execute("set statement_timeout = '10s'")
    async with explained(db, analyze=True) as plans:
        await CALLS[name](db, worker)
    return plans


@pytest.mark.parametrize("name", CALLS)
async def test_k6_no_function_reads_the_stream_as_a_whole(crowded: Any, name: str) -> None:
    plans = await plans_of(crowded, name)
    assert plans.all
    for plan in plans.all:
        scans = plan.scans_of("consciousness_stream")
        assert "Seq Scan" not in scans, plan.statement
        assert plan.rows_read("consciousness_stream") <= FEW, (scans, plan.statement)


@pytest.mark.parametrize("name", ["stats", "post_to_targets", "view_the_stream", "view_what_flows"])
async def test_k6_what_is_shown_reads_no_share_of_what_waits_or_ran(crowded: Any, name: str) -> None:
    for plan in (await plans_of(crowded, name)).all:
        # The sample of the deliveries is of some 300 blocks, each of 136 rows at most.
        assert plan.rows_read("deliveries") <= 60_000, (plan.scans_of("deliveries"), plan.statement)
        assert plan.rows_read("runs") <= 25_000, (plan.scans_of("runs"), plan.statement)


@pytest.mark.parametrize("name", ["look_for_dead_letters", "end_dead_letters"])
async def test_g1_dead_letters_are_found_by_their_indexes(crowded: Any, name: str) -> None:
    for plan in (await plans_of(crowded, name)).all:
        assert "Seq Scan" not in plan.scans_of("dead_letters"), plan.statement
        assert plan.rows_read("dead_letters") <= FEW, (plan.scans_of("dead_letters"), plan.statement)


async def test_o1_k9_healing_looks_once_at_each_of_a_thousand_keys(crowded: Any) -> None:
    healing = (await plans_of(crowded, "exchange_heals_order")).of("from page p")
    assert len(healing) == 3
    for plan in healing:
        assert plan.scans_of("deliveries") == {"deliveries_ordered"}
        # Of each key its first entry, and of one that has some parked the first that waits.
        assert 0 < plan.rows_read("deliveries") <= 2_100, plan.statement


async def test_k6_reading_a_key_walks_the_index_of_keys(crowded: Any) -> None:
    for name in ("read_key", "read_key_after"):
        read = [each for each in (await plans_of(crowded, name)).all if each.scans_of("consciousness_stream")]
        assert {scan for each in read for scan in each.scans_of("consciousness_stream")} == {
            "consciousness_stream_key"
        }
        assert all("id" in each.conditions_on("consciousness_stream_key") for each in read)


async def test_k6_no_function_of_the_kernel_is_left_out(crowded: Any) -> None:
    public = await crowded.fetch(
        "select proname::text from pg_proc where pronamespace = 'public'::regnamespace and proname like 'stream\\_%'"
    )
    text = await anyio.Path(__file__).read_text()
    without_the_stream = {"stream_install_realtime", "stream_broadcast"}
    by_the_driver = {"stream_send", "stream_subscribe", "stream_exchange"}
    named = {row["proname"] for row in public} - without_the_stream - by_the_driver
    assert {name for name in named if f"select {name}(" not in text} == set()
