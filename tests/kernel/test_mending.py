"""What is mended by itself: rows, sequences, ids of another cluster, and what a clock that was set back has spoilt."""

import subprocess
from typing import Any

import anyio
import pytest

from runtime.local import keys
from runtime.local.test_cluster import Cluster
from tests.conftest import DEBIAN_15
from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker, connected, insert, send
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio

ONE_ROW = ["runtime.policy", "runtime.routing"]
FAR = 10**15


async def lose(connect_as_superuser: Connect, *tables: str) -> None:
    """Empty them as a copy of the schema has them: no trigger notices."""
    async with connect_as_superuser() as superuser:
        await superuser.execute("set session_replication_role = replica")
        for table in tables:
            await superuser.execute(f"delete from {table}")


async def rows(db: Any) -> list[int]:
    return [await db.fetchval(f"select count(*) from {table}") for table in ONE_ROW]


# Rows


@pytest.mark.parametrize("table", ONE_ROW)
@pytest.mark.parametrize("verb", ["delete from", "truncate"])
async def test_l7_a_table_of_one_row_keeps_it(db: Any, worker: Worker, table: str, verb: str) -> None:
    await worker.subscribe("a.one=task.>")
    first = await insert(db, "task.a", 1)
    await db.execute(f"{verb} {table}")
    assert await rows(db) == [1, 1]
    second = await insert(db, "task.a", 2)
    assert [each.id for each in await worker.take()] == [first, second]


async def test_t1_emptying_every_table_leaves_a_kernel_that_delivers(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.>")
    await insert(db, "task.a", 1)
    await db.execute(
        "do $$ begin execute (select 'truncate ' || string_agg(c.oid::regclass::text, ', ') from pg_class c "
        "where c.relkind = 'r' and (c.relnamespace = 'runtime'::regnamespace "
        "or c.oid = 'public.consciousness_stream'::regclass)); end $$"
    )
    # Another one has the place in the routes that the old key had.
    other = Worker(worker.connection)
    await other.subscribe("b.two=task.>")
    message = await insert(db, "task.a", 2)
    assert [(each.id, each.subscription) for each in await other.take()] == [
        (message, other.numbers["b.two"])
    ]


@pytest.mark.parametrize("how", ["plain", "sent", "many"])
async def test_t2_without_the_row_of_routing_nothing_is_lost(
    db: Any, worker: Worker, connect_as_superuser: Connect, how: str
) -> None:
    await worker.subscribe("a.one=task.>")
    await insert(db, "task.a", 0)
    await worker.finish(*await worker.take())
    await lose(connect_as_superuser, "runtime.routing")
    if how == "plain":
        ids = [await insert(db, "task.a", 1), await insert(db, "task.b", 1)]
    elif how == "sent":
        ids = [*await send(db, ("task.a", 1)), *await send(db, ("task.a", 2))]
    else:
        ids = await send(db, *[(f"task.{n % 3}", n) for n in range(9)])
    assert [each.id for each in await worker.take()] == ids


async def test_t2_relying_on_the_row_every_message_is_lost(
    db: Any, worker: Worker, connect_as_superuser: Connect
) -> None:
    await switch_off(
        db,
        "runtime.route",
        "(select max(r.generation) as generation from runtime.routing r) g",
        "runtime.routing g",
    )
    await worker.subscribe("a.one=task.>")
    await lose(connect_as_superuser, "runtime.routing")
    await insert(db, "task.a", 1)
    assert await worker.take() == []


async def test_l7_whatever_needs_the_rows_brings_them_back(
    db: Any, worker: Worker, connect: Connect, connect_as_superuser: Connect
) -> None:
    async def subscribe() -> None:
        await worker.subscribe("a.one=task.>", settle=False)

    async def beat() -> None:
        await worker.exchange(beat=True)

    async def ask() -> None:
        assert (await db.fetchval("select stream_version()"))["incarnation"]

    async def send_once() -> None:
        draft = {"key": "task.a", "value": 1, "dedup_key": "once"}
        assert [each["duplicate"] for each in await db.fetchval("select stream_send($1)", [draft, draft])] == [
            False, True,
        ]  # fmt: skip

    async def insert_once() -> None:
        await insert(db, "task.a", 1, dedup_key="once more")

    await subscribe()
    for needs in (subscribe, beat, ask, send_once, insert_once):
        await lose(connect_as_superuser, *ONE_ROW)
        await needs()
        assert await rows(db) == [1, 1], needs.__name__


async def test_l7_without_the_policy_sleepers_are_still_woken(
    db: Any, worker: Worker, connect: Connect, connect_as_superuser: Connect
) -> None:
    await worker.subscribe("a.one=task.>", announce=["notify"])
    await worker.fall_asleep()
    await lose(connect_as_superuser, "runtime.policy")
    heard: list[str] = []
    async with connect() as ear:
        await ear.add_listener(worker.channel, lambda *given: heard.append(given[-1]))
        await insert(db, "task.a", 1)
        await ear.fetchval("select 1")
    assert heard == ["wake"]


async def test_l7_rows_copied_without_their_sequences_are_stepped_over(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.>")
    for n in range(3):
        await insert(db, "task.a", n)
    await worker.fail(*await worker.take(), outcome="dead")
    for sequence in (
        "public.consciousness_stream_id_seq", "runtime.subscriptions_id_seq", "runtime.pumps_number_seq",
        "runtime.dead_letters_id_seq",
    ):  # fmt: skip
        await db.execute(f"select setval('{sequence}', 1, false)")
    other = Worker(worker.connection)
    numbers = await other.subscribe("a.one=task.>", "b.two=task.>")
    message = await insert(db, "task.a", 4)
    assert message == 4
    taken = await other.take()
    assert {each.subscription for each in taken} == set(numbers.values())
    await other.fail(*taken, outcome="dead")
    assert await db.fetchval("select count(*) from runtime.dead_letters") == 5


async def test_l7_a_copy_of_the_schema_alone_works(cluster_15: Cluster) -> None:
    programs = DEBIAN_15 / "pg_dump", DEBIAN_15 / "psql"
    if not all(program.exists() for program in programs):
        pytest.skip("pg_dump and psql are not installed: apt-get install postgresql-client-15")
    origin = await anyio.to_thread.run_sync(cluster_15.make_database)
    copy = await anyio.to_thread.run_sync(cluster_15.make_empty_database)
    try:
        async with connected(cluster_15.url(origin)) as db:
            await Worker(db).subscribe("a.one=task.>")
            await insert(db, "task.a", 1)
        urls = [cluster_15.url(name, user=keys.SUPERUSER) for name in (origin, copy)]
        schema = await anyio.run_process(
            [programs[0], "--schema-only", "-n", "public", "-n", "runtime", urls[0]]
        )
        await anyio.run_process([programs[1], "-q", urls[1]], input=schema.stdout, stderr=subprocess.DEVNULL)
        async with connected(cluster_15.url(copy)) as db:
            assert await rows(db) == [0, 0]
            # Before anybody has started there, a writer is served as ever.
            await send(db, {"key": "task.a", "value": 1, "dedup_key": "once"})
            worker = Worker(db)
            await worker.subscribe("a.one=task.>", announce=["realtime"])
            await db.execute("select public.stream_install_realtime()")
            assert (await worker.exchange(beat=True)).more.get("warnings") is None
            message = await insert(db, "task.a", 2)
            assert [each.id for each in await worker.take()] == [message]
            assert (await db.fetchval("select stream_version()"))["incarnation"]
    finally:
        for name in (origin, copy):
            await anyio.to_thread.run_sync(cluster_15.drop_database, name)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("alter table public.consciousness_stream disable trigger fan_out", ("fan_out", "runtime replay")),
        ("alter table public.consciousness_stream enable replica trigger fan_out", ("fan_out",)),
        ("drop trigger fan_out on public.consciousness_stream", ("fan_out", "create or replace trigger")),
        ("drop publication supabase_realtime", ("create publication", "stream_install_realtime")),
        ("alter publication supabase_realtime drop table public.consciousness_stream", ("publication",)),
        ("alter publication supabase_realtime set (publish = 'update')", ("publication",)),
    ],
)
async def test_t2_what_cannot_be_mended_from_here_is_said(
    db: Any, worker: Worker, connect_as_superuser: Connect, loss: str, words: tuple[str, ...]
) -> None:
    await worker.subscribe("a.one=task.>", announce=["realtime"])
    assert (await worker.exchange(beat=True)).more.get("warnings") is None
    async with connect_as_superuser() as superuser:
        await superuser.execute(loss)
    (said,) = (await worker.exchange(beat=True)).more["warnings"]
    assert all(word in said for word in words)
    card = {"id": str(worker.id), "announce": ["realtime"]}
    assert (await db.fetchval("select stream_subscribe($1, '[]')", card))["warnings"] == [said]
    # Without Realtime nobody needs the publication.
    await worker.subscribe("a.one=task.>", announce=["notify"])
    assert len((await worker.exchange(beat=True)).more.get("warnings", [])) == ("fan_out" in words)


async def test_t2_the_cure_of_a_missing_trigger_cures(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.>")
    await db.execute("drop trigger fan_out on public.consciousness_stream")
    await insert(db, "task.a", 1)
    assert await worker.take() == []
    cure = await db.fetchval("select runtime.fan_out_cure()")
    await db.execute(cure.strip("`"))
    message = await insert(db, "task.a", 2)
    assert [each.id for each in await worker.take()] == [message]


# Ids of another cluster


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_l6_a_fence_of_another_cluster_turns_nobody_away(
    db: Any, worker: Worker, isolation: str
) -> None:
    await worker.subscribe("a.one=task.>")
    await db.execute(f"select setval('runtime.settle_fence', {FAR})")
    async with db.transaction(isolation=isolation):
        first = await insert(db, "task.a", 1)
    await worker.subscribe("a.one=task.>")
    assert await db.fetchval("select last_value from runtime.settle_fence") < FAR
    async with db.transaction(isolation=isolation):
        second = await insert(db, "task.a", 2)
    assert [each.id for each in await worker.take()] == [first, second]


async def test_l6_taken_for_this_cluster_s_it_turns_all_away(db: Any, worker: Worker) -> None:
    await switch_off(db, "runtime.is_foreign", "return true;", "return false;")
    await db.execute(f"select setval('runtime.settle_fence', {FAR})")
    with pytest.raises(Exception, match="begun since"):
        async with db.transaction(isolation="repeatable_read"):
            await insert(db, "task.a", 1)


async def test_l6_a_new_subscription_replaces_a_fence_of_another_cluster(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await worker.subscribe("a.one=task.>", settle=False)
    await db.execute(f"select setval('runtime.settle_fence', {FAR})")
    async with connect() as writer:
        transaction = writer.transaction(isolation="repeatable_read")
        await transaction.start()
        await writer.fetchval("select count(*) from consciousness_stream")
        await worker.exchange(settle=True)
        fence = await db.fetchval("select last_value from runtime.settle_fence")
        assert 0 < fence < FAR
        # The new fence does what fences do.
        with pytest.raises(Exception, match="begun since"):
            await insert(writer, "task.a", 1)
        await transaction.rollback()
    await worker.settle()


@pytest.mark.parametrize("by_heart", [True, False], ids=["subscribe", "settle"])
async def test_l6_a_subscription_half_settled_in_another_cluster_settles(
    db: Any, worker: Worker, by_heart: bool
) -> None:
    await worker.subscribe("a.one=task.>", settle=False)
    await worker.exchange(settle=True)
    await worker.exchange(settle=True)
    await db.execute(
        f"update runtime.subscriptions set settled = false, settling_fenced = true, settling_xid = '{FAR}'::xid8"
    )
    if by_heart:
        await worker.subscribe("a.one=task.>", settle=False)
        assert await db.fetchval("select settling_xid from runtime.subscriptions") is None
    await worker.settle()
    message = await insert(db, "task.a", 1)
    assert [each.id for each in await worker.take()] == [message]


async def test_l6_without_knowing_whose_ids_they_are_it_never_settles(db: Any, worker: Worker) -> None:
    await switch_off(db, "runtime.is_foreign", "return true;", "return false;")
    await worker.subscribe("a.one=task.>", settle=False)
    await db.execute(
        f"update runtime.subscriptions set settled = false, settling_fenced = true, settling_xid = '{FAR}'::xid8"
    )
    for _ in range(5):
        left = (await worker.exchange(settle=True)).more["unsettled"]
    assert left == list(worker.numbers.values())


async def test_l6_a_change_of_routes_in_another_cluster_hides_none_of_this_one(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.>")
    await db.execute(f"update runtime.routing set changed_by = '{FAR}'::xid8")
    await worker.subscribe("a.one=task.>")
    assert await db.fetchval("select changed_by::text from runtime.routing") != str(FAR)


# A clock that was set back


async def set_back(db: Any, hours: float = 1) -> None:
    """As if the database's clock were set back by so much: what it has stamped lies so much further ahead."""
    ahead = f"+ make_interval(secs => {hours * 3600})"
    for table, columns in {
        "runtime.workers": ("seen_at", "started_at"), "runtime.subscriptions": ("declared_at",),
        "runtime.limits": ("filled_at",), "runtime.calls": ("called_at",), "runtime.dedup": ("forget_at",),
        "public.consciousness_stream": ("created_at", "deliver_at", "expires_at"),
        "runtime.webhooks": ("rests_until",),
    }.items():  # fmt: skip
        await db.execute(
            f"update {table} set " + ", ".join(f"{column} = {column} {ahead}" for column in columns)
        )
    await db.execute(
        f"update runtime.deliveries set visible_at = visible_at {ahead} where visible_at < 'infinity'"
    )


async def test_l9_a_lease_of_the_old_clock_ends_in_time(db: Any, worker: Worker, connect: Connect) -> None:
    await worker.subscribe("a.one=task.>")
    ids = await send(db, *[("task.a", n) for n in range(3)])
    dead, retried, fresh = await worker.take()
    await worker.fail(retried, delay=20)
    await worker.exchange(failed=[fresh.report(outcome="released")])
    await set_back(db)
    async with connect() as connection:
        other = Worker(connection)
        # It comes after the jump; what it takes by the new clock is left as it is.
        await other.subscribe("a.one=task.>")
        (taken,) = await other.take()
        assert taken.id == fresh.id
        await other.exchange(beat=True)
        left = dict(await db.fetch(
            "select message_id, extract(epoch from visible_at - clock_timestamp())::float8 from runtime.deliveries"
        ))  # fmt: skip
    assert left.keys() == set(ids)
    # At most the lease's time, and what was left of a heartbeat's.
    assert 0 < left[dead.id] <= 60
    assert left[retried.id] <= 60
    assert 0 < left[fresh.id] <= 30
    assert await db.fetchval("select max(seen_at) <= clock_timestamp() from runtime.workers")


async def test_l9_the_next_heartbeat_mends_without_another_worker_s_start(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.>")
    await insert(db, "task.a", 1)
    await worker.take()
    await set_back(db)
    await worker.exchange(beat=True)
    assert await db.fetchval(
        "select max(visible_at) < clock_timestamp() + interval '61 s' from runtime.deliveries"
    )


async def test_l9_without_mending_a_lease_ends_as_late_as_the_clock_was_set_back(
    db: Any, worker: Worker
) -> None:
    await switch_off(db, "runtime.mend_clock", "jump < slack", "true")
    await worker.subscribe("a.one=task.>")
    await insert(db, "task.a", 1)
    await worker.take()
    await set_back(db)
    await worker.exchange(beat=True)
    assert await db.fetchval(
        "select max(visible_at) > clock_timestamp() + interval '50 min' from runtime.deliveries"
    )


async def test_l9_upkeep_does_not_wait_for_a_worker_that_died_by_the_old_clock(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await worker.subscribe("a.one=task.>")
    await set_back(db)
    async with connect() as connection:
        other = Worker(connection)
        await other.subscribe("a.one=task.>")
        await db.execute(
            "update runtime.workers set seen_at = seen_at - interval '2 min' where id = $1", worker.id
        )
        maintained = await db.fetchval("select stream_maintain($1)", other.id)
    assert maintained["elected"] is True


async def test_l9_a_clock_that_goes_right_mends_nothing(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.>")
    await insert(db, "task.a", 1)
    await worker.take(lease=7200)
    before = await db.fetch("select visible_at from runtime.deliveries")
    await worker.exchange(beat=True)
    assert await db.fetch("select visible_at from runtime.deliveries") == before
