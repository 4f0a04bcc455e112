"""Does every store keep the promises of the port? Directly, through two poolers, over REST, and by an own client."""

import logging
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import anyio
import pytest

from runtime.client.admin import Admin
from runtime.client.dead_letters import DeadLetterFilter
from runtime.errors import (
    Duplicate,
    InvalidValue,
    MigrationMissing,
    Refused,
    StoreError,
    StoreUnavailable,
    Unauthorized,
)
from runtime.local import keys
from runtime.message import Draft
from runtime.store import Exchange, Report, Sent, Store, Subscription, WorkerCard
from runtime.store.exchange import WireRow
from runtime.store.functions import FUNCTIONS, MOST, REQUIRED
from tests.store.conftest import Server, Way

pytestmark = pytest.mark.anyio


async def test_what_is_sent_is_read(store: Store, key: str) -> None:
    drafts = [
        Draft(key, {"n": 1}, agent="tester", headers={"h": [1]}, correlation_id="c", priority=1),
        Draft(key, None),
        Draft(key, "text"),
    ]
    sent = await store.send(drafts)
    assert [each.duplicate for each in sent] == [False] * 3
    messages = await store.read(key)
    assert [message.id for message in messages] == [each.id for each in sent]
    assert [message.value for message in messages] == [{"n": 1}, None, "text"]
    first = messages[0]
    assert (first.agent, first.headers, first.correlation_id, first.priority) == (
        "tester",
        {"h": [1]},
        "c",
        1,
    )


async def test_nothing_sent_is_nothing_asked(store: Store) -> None:
    assert await store.send([]) == []


async def test_ids_rise_in_the_order_of_a_batch(store: Store, key: str) -> None:
    sent = await store.send([Draft(key, number) for number in range(500)])
    assert [each.id for each in sent] == sorted({each.id for each in sent})
    assert [message.value for message in await store.read(key, limit=500)] == list(range(500))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(2**200 + 1, id="big-integer"),
        pytest.param(-(2**63) - 1, id="below-bigint"),
        pytest.param(9007199254740993, id="beyond-a-double"),
        pytest.param(0.1, id="float"),
        pytest.param({"é": "日本 \U0001f600 \u2028 \\u0000 \" ' $1 %s {} \x7f"}, id="unicode"),
        pytest.param([[[{}]], "", False], id="nested"),
        pytest.param("x" * 5_000_000, id="5-MB"),
    ],
)
async def test_a_value_arrives_as_it_was_sent(store: Store, key: str, value: Any) -> None:
    await store.send([Draft(key, value)])
    (message,) = await store.read(key)
    assert message.value == value
    assert type(message.value) is type(value)


@pytest.mark.parametrize("value", ["a\0b", {"a": ["\0"]}, float("nan"), "\ud800"])
async def test_what_no_json_holds_is_refused_before_it_is_sent(key: str, value: Any) -> None:
    with pytest.raises(InvalidValue):
        Draft(key, value)


async def test_reads_page_by_id_and_find_the_newest(store: Store, key: str) -> None:
    ids = [each.id for each in await store.send([Draft(f"{key}.{n % 3}", n) for n in range(9)])]
    pattern = f"{key}.*"
    assert [m.id for m in await store.read(pattern, limit=2)] == ids[-2:]
    assert [m.id for m in await store.read(pattern, after=ids[2], limit=2)] == ids[3:5]
    assert [m.id for m in await store.read(pattern, before=ids[3])] == ids[:3]
    assert [m.id for m in await store.read(pattern, after=ids[2], before=ids[5])] == ids[3:5]
    assert [m.value for m in await store.read(pattern, latest=True)] == [8, 7, 6]
    assert await store.read("nobody.writes.this") == []


async def test_g10_a_dedup_key_is_stored_once(store: Store, key: str) -> None:
    (first,) = await store.send([Draft(key, 1, dedup_key=f"{key}-a")])
    assert await store.send([Draft(key, 2, dedup_key=f"{key}-a")]) == [Sent(first.id, True)]
    both = await store.send([Draft(key, 3, dedup_key=f"{key}-a"), Draft(key, 4)])
    assert [each.duplicate for each in both] == [True, False]
    assert [message.value for message in await store.read(key)] == [1, 4]


async def test_duplicate_is_an_error_where_plain_sql_meets_one(store: Store, way: Way, key: str) -> None:
    body = (
        "insert into consciousness_stream (key, dedup_key) values (subscription, subscription); "
        "return json_build_object('subscription', subscription, 'paused', true);"
    )
    async with way.server.replaced("stream_pause", body):
        await store.operate("stream_pause", subscription=key)
        with pytest.raises(Duplicate, match="stream_send"):
            await store.operate("stream_pause", subscription=key)


def card() -> WorkerCard:
    """A worker of this test."""
    return WorkerCard(uuid4(), "tester", ("realtime",), {"pid": 1})


async def test_subscribe_exchange_and_leave(store: Store, key: str) -> None:
    worker = card()
    name = f"{key.replace('.', '-')}.handler"
    subscribed = await store.subscribe(
        worker, [Subscription(name, name.split(".")[0], (key,), start="earliest")]
    )
    number = subscribed.numbers[name]
    pump = uuid4()
    ids = [each.id for each in await store.send([Draft(key, n) for n in range(3)])]
    n = 0
    with anyio.fail_after(60):
        while True:
            n += 1
            answer = await store.exchange(
                Exchange(worker=worker.id, pump=pump, n=n, want={number: 2}, settle=True)
            )
            if answer.taken:
                break
    assert [delivery.message.id for delivery in answer.taken] == ids[:2]
    assert [delivery.message.value for delivery in answer.taken] == [0, 1]
    assert answer.filled == {number}

    again = await store.exchange(Exchange(worker=worker.id, pump=pump, n=n, want={number: 2}))
    assert again.repeated
    assert [each.place for each in again.taken] == [each.place for each in answer.taken]
    assert (await store.exchange(Exchange(worker=worker.id, pump=pump, n=n - 1))).stale or n == 1

    first, second = answer.taken
    emit = Draft(f"{key}.out", {"ü": 2**70}, parent_id=first.message.id).json
    finished = Exchange(
        worker=worker.id,
        pump=pump,
        n=n + 1,
        done=[Report(first, 0.01, emits=(emit,), usage={"tokens_in": 7, "model": "ü"})],
        failed=[
            Report(
                second,
                0.01,
                "dead",
                reason="failed",
                error="ValueError: no",
                traceback="…",
                usage={"cost": 0.5},
            )
        ],
        want={number: 10},
    )
    last = await store.exchange(finished)
    assert not last.refused
    assert [delivery.message.id for delivery in last.taken] == ids[2:]
    (emitted,) = await store.read(f"{key}.out")
    assert (emitted.value, emitted.parent_id) == ({"ü": 2**70}, first.message.id)

    stories = [
        await store.operate("stream_trace", message=each.message.id, max=2) for each in (first, second)
    ]
    told = [
        run["usage"] for story in stories for each in story["messages"][0]["handled"] for run in each["runs"]
    ]
    assert told == [{"tokens_in": 7, "model": "ü"}, {"cost": 0.5}]

    late = Exchange(worker=worker.id, pump=pump, n=n + 2, done=[Report(first)], renew=[second, last.taken[0]])
    answer = await store.exchange(late)
    assert answer.refused == {first.place}
    assert answer.lost == {second.place}
    assert (await store.operate("stream_leave", worker=str(worker.id)))["left"]
    assert (await store.exchange(Exchange(worker=worker.id, pump=pump, n=n + 3))).unknown


async def test_operations(store: Store, key: str) -> None:
    worker = card()
    agent = key.replace(".", "-")
    name = f"{agent}.ops"
    await store.subscribe(worker, [Subscription(name, agent, (key,), ordered=True, max_attempts=3)])
    assert await store.operate("stream_pause", subscription=name) == {"subscription": name, "paused": True}
    stats = await store.operate("stream_stats")
    (mine,) = [each for each in stats["subscriptions"] if each["name"] == name]
    assert (mine["paused"], mine["ordered"], mine["patterns"]) == (True, True, [key])
    await store.operate("stream_resume", subscription=name)
    assert await store.operate("stream_beat", worker=str(worker.id), nonce=key) == {"nonce": key}

    operations = Admin(store)
    (sent,) = await store.send([Draft(key, 1)])
    now = datetime.now(UTC)
    day = timedelta(days=1)
    history = {"since": now - day, "until": now + day, "pattern": key, "ids": [sent.id]}
    assert (await operations.replay(name, **history, dry_run=True))["matching"] == 1
    assert (await operations.replay(name, since=now + day))["matching"] == 0
    letters = DeadLetterFilter(
        ids=[-1, -2], subscription=name, pattern=">", older_than_seconds=0.5, error="%"
    )
    assert await operations.dead_letters(letters, before=5, details=True) == []
    assert await operations.preview(letters) == {}
    assert [size async for size in operations.redrive(letters)] == []
    mended = operations.redrive(DeadLetterFilter(pattern=key), from_step="draft", edits={"mail": None})
    assert [size async for size in mended] == []
    with pytest.raises(Refused, match=f"no handler {name} has kept draft and mail for message {sent.id}"):
        await operations.fork(sent.id, from_step="draft", subscription=name, edits={"mail": [1]})
    assert [size async for size in operations.discard(DeadLetterFilter(subscription=name))] == []
    assert await operations.prune(3600 * 24.0) == (0, 0)
    upkeep = {"worker": str(worker.id), "retention_seconds": 3600.0, "after": 0, "max": 10}
    assert await store.operate("stream_maintain", **upkeep) is not None
    await store.operate("stream_leave", worker=str(worker.id))
    assert (await operations.remove(name, dry_run=True))["workers"] == 0
    assert await store.operate("stream_install_realtime") is not None


async def test_every_function_is_called_as_the_database_has_it(way: Way) -> None:
    async with way.server.admin() as admin:
        rows = await admin.fetch(
            "select p.proname, a.name, format_type(a.type, null) as type from pg_proc p, "
            "unnest(p.proargnames, p.proargtypes::oid[]) as a (name, type) "
            "where p.pronamespace = 'public'::regnamespace and p.proname like 'stream\\_%'"
        )
    known = {(row["proname"], row["name"]): row["type"] for row in rows}
    ours = {
        (function, name): {"timestamptz": "timestamp with time zone"}.get(kind, kind)
        for function, arguments in FUNCTIONS.items()
        for name, kind in arguments.items()
    }
    assert ours.items() <= known.items()


async def test_arguments_are_bounded_and_required_as_in_the_database(server: Server) -> None:
    async with server.admin() as admin:
        rows = await admin.fetch(
            "select proname, coalesce(proargnames[1:pronargs - pronargdefaults], '{}') as required, array("
            "select bound[1] || ' ' || bound[2] from "
            "regexp_matches(prosrc, 'check_between\\(''(\\w+)'', \\w+, 1, (\\d+)\\)', 'g') bound) as bounds "
            "from pg_proc where pronamespace = 'public'::regnamespace and proname like 'stream\\_%'"
        )
    bounds = {(row["proname"], *bound.split()) for row in rows for bound in row["bounds"]}
    assert {(function, name, str(most)) for (function, name), most in MOST.items()} == bounds
    required = {row["proname"]: tuple(row["required"]) for row in rows}
    assert {function: required[function] for function in REQUIRED} == REQUIRED


async def test_a_refusal_says_what_the_database_says(store: Store) -> None:
    with pytest.raises(Refused, match=r"there is no subscription 'no.body'.*stream_stats") as refused:
        await store.operate("stream_pause", subscription="no.body")
    assert refused.value.code == "22023"
    with pytest.raises(Refused, match="max must be between"):
        await store.call("stream_read", {"pattern": "a.b", "max": 0})


async def test_a_database_without_migrations_says_which_command_mends_it(way: Way) -> None:
    bare, cluster = f"bare_{uuid4().hex[:8]}", way.server.cluster
    await anyio.to_thread.run_sync(cluster.execute, f"create database {bare} owner postgres")
    try:
        async with way.open(database=bare) as store:
            with pytest.raises(MigrationMissing, match="supabase db push") as missing:
                await store.send([Draft("a.b", 1)])
        assert "runtime local start" in str(missing.value)
    finally:
        if way.is_rest:
            way.server.gateways.pop(bare).kill()
        await anyio.to_thread.run_sync(cluster.drop_database, bare)


async def test_a_function_of_another_release_is_told_apart_from_a_bad_request(way: Way, key: str) -> None:
    async with way.open() as store, way.server.admin() as admin:
        await admin.execute("alter function public.stream_pause(text) rename to stream_halt")
        try:
            with pytest.raises(MigrationMissing, match="pip install -U agent-runtime"):
                await store.operate("stream_pause", subscription=key)
        finally:
            await admin.execute("alter function public.stream_halt(text) rename to stream_pause")


# The server behind the direct way asks for no password: see test_postgres.py.
@pytest.mark.parametrize("way", ["transaction-pooler", "session-pooler", "rest", "own-client"], indirect=True)
async def test_a_wrong_key_or_password_is_unauthorized(way: Way, key: str) -> None:
    wrong = "sb_secret_wrong_and_long_enough" if way.is_rest else "wrong-password"
    async with way.open(secret=wrong) as store:
        with pytest.raises(Unauthorized, match=r"SUPABASE_SERVICE_ROLE_KEY|DATABASE_URL") as refused:
            await store.send([Draft(key, 1)])
    assert wrong not in repr(refused.value)


@pytest.mark.parametrize("way", ["rest", "own-client"], indirect=True)
@pytest.mark.parametrize("secret", [keys.ANON_KEY, keys.PUBLISHABLE_KEY], ids=["anon", "publishable"])
async def test_a_key_that_may_not_is_unauthorized(way: Way, key: str, secret: str) -> None:
    async with way.open(secret=secret) as store:
        with pytest.raises(Unauthorized, match=r"of the role anon.*service_role"):
            await store.send([Draft(key, 1)])


@pytest.mark.parametrize("way", ["direct", "transaction-pooler", "session-pooler"], indirect=True)
async def test_a_database_that_is_not_there_is_unauthorized(way: Way) -> None:
    async with way.open(database="no_such_database") as store:
        with pytest.raises(Unauthorized, match="DATABASE_URL"):
            await store.send([Draft("a.b", 1)])


@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_a_lost_race_is_run_again(store: Store, way: Way, key: str, code: str) -> None:
    # A sequence counts the tries, since no transaction takes back its numbers.
    body = f"if nextval('public.tries') < {{}} then raise exception using errcode = '{code}'; end if; return "
    body += "json_build_object('subscription', 'won', 'paused', false);"
    async with way.server.admin() as admin:
        await admin.execute("create sequence public.tries; grant usage on public.tries to service_role")
        try:
            async with way.server.replaced("stream_resume", body.format(4)):
                assert (await store.operate("stream_resume", subscription=key))["subscription"] == "won"
                assert await admin.fetchval("select last_value from public.tries") == 4
            async with way.server.replaced("stream_resume", body.format(100)):
                with pytest.raises(StoreUnavailable) as lost:
                    await store.operate("stream_resume", subscription=key)
                assert not lost.value.maybe_applied
                assert await admin.fetchval("select last_value from public.tries") == 4 + 5
        finally:
            await admin.execute("drop sequence public.tries")


@pytest.mark.parametrize("code", ["53100", "57014", "25006", "58030", "54000", "42501", "P0001"])
async def test_what_is_nobodys_fault_is_no_refusal(store: Store, way: Way, key: str, code: str) -> None:
    kind = {"54000": Refused, "P0001": Refused, "42501": Unauthorized}.get(code, StoreUnavailable)
    body = f"raise exception 'as told' using errcode = '{code}', hint = 'Do this.';"
    async with way.server.replaced("stream_resume", body):
        with pytest.raises(kind, match=r"as told.*Do this") as failed:
            await store.call("stream_resume", {"subscription": key})
    assert failed.value.code == code
    if isinstance(failed.value, StoreUnavailable):
        assert not failed.value.maybe_applied


async def test_a_backend_that_dies_in_the_middle_leaves_it_open(store: Store, way: Way, key: str) -> None:
    async def kill() -> None:
        ended = "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep' and datname = $1"
        async with way.server.admin() as admin:
            while not await admin.fetch(ended, way.server.database):
                await anyio.sleep(0.01)

    async with way.server.replaced("stream_resume", "perform pg_sleep(20); return '1';"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill)
            with anyio.fail_after(60), pytest.raises(StoreUnavailable) as dead:
                await store.call("stream_resume", {"subscription": key})
        assert dead.value.maybe_applied
    (sent,) = await store.send([Draft(key, 1)])
    assert not sent.duplicate


async def test_many_at_once_share_few_connections(way: Way, key: str) -> None:
    async with way.open() as store, way.server.admin() as admin:
        began = await admin.fetchval("select clock_timestamp()")
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(store.send, [Draft(key, number)])
        assert sorted(m.value for m in await store.read(key, limit=100)) == list(range(50))
        database = way.server.database
        count = await admin.fetchval(
            "select count(*) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid() "
            "and application_name like 'agent-runtime%' and backend_start > $2",
            database,
            began,
        )
        assert 1 <= count <= 10


async def test_a_cancelled_request_leaves_the_store_usable(store: Store, key: str) -> None:
    await store.send([Draft(key, 0)])
    for _ in range(20):
        with anyio.move_on_after(0.001):
            await store.read(key)
    (message,) = await store.read(key)
    assert message.value == 0


async def test_no_secret_in_any_record_or_error(way: Way, key: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = keys.ANON_KEY if way.is_rest else "very-secret-word"
    async with way.open(secret=secret) as store:
        with suppress(StoreError):
            await store.send([Draft(key, "a-private-value")])
        assert secret not in repr(store) + store.place
    async with way.open() as store:
        await store.send([Draft(key, "a-private-value")])
    for record in caplog.records:
        text = record.getMessage() + repr(record.args) + str(record.exc_text)
        for word in (secret, keys.SERVICE_ROLE_KEY, "a-private-value"):
            assert word not in text, record.name


async def test_a_place_is_for_people(store: Store, way: Way) -> None:
    assert f"127.0.0.1:{way.port}" in store.place
    assert "postgres:" not in store.place
    assert "@" not in store.place


async def test_s7_a_function_that_returns_nothing_returns_none(store: Store) -> None:
    assert await store.operate("stream_last_good", letter=987_654_321) is None


async def test_a_row_on_the_wire_has_the_columns_that_are_read_by_name(server: Server) -> None:
    async with server.admin() as admin:
        body = await admin.fetchval("select prosrc from pg_proc where oid = 'runtime.describe'::regproc")
    (built,) = re.findall(r"json_build_array\((.*?)\)", body, re.DOTALL)
    assert tuple(part.strip().partition(".")[2] for part in built.split(",")) == WireRow._fields
