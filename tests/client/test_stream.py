"""Does a script see what is in the stream, and nothing twice? Over a direct connection and over REST."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import anyio
import asyncpg
import pytest

import runtime
from runtime.client.stream import Stream, connect
from runtime.errors import InvalidKey, InvalidValue, StoreUnavailable, Unauthorized
from runtime.message import Draft, Message
from runtime.settings import Settings
from runtime.store import Store
from tests.conftest import Cluster
from tests.faulty_proxy import faulty_proxy

pytestmark = pytest.mark.anyio


def settings_for(url: str, **options: object) -> Settings:
    """A direct connection, and nothing else."""
    return Settings.load(
        **{
            "supabase_url": None,
            "supabase_key": None,
            "database_url": url,
            "poll_slow_seconds": 0.1,
            **options,
        }
    )


@pytest.fixture
async def stream(database: str) -> AsyncIterator[Stream]:
    """A stream over a fresh database."""
    async with connect(settings_for(database)) as stream:
        yield stream


@asynccontextmanager
async def writer(url: str) -> AsyncIterator[Any]:
    """Another program's connection."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def test_connect_is_exported() -> None:
    assert runtime.connect is connect


async def test_send_and_latest(stream: Stream) -> None:
    assert await stream.latest("task.output") is None
    first = await stream.send("task.output", {"title": "Hello"}, agent="me", headers={"a": 1})
    second = await stream.send("task.output", {"title": "Again"}, correlation_id="c")
    assert second.id > first.id
    latest = await stream.latest("task.output")
    assert latest is not None
    assert (latest.id, latest.value, latest.correlation_id) == (second.id, {"title": "Again"}, "c")
    with pytest.raises(InvalidKey):
        await stream.latest("task.*")


async def test_send_all_is_one_transaction_in_order(stream: Stream) -> None:
    sent = await stream.send_all([Draft("a.b", number) for number in range(10)])
    messages = await stream.read("a.b")
    assert [(m.id, m.value) for m in messages] == [(each.id, n) for n, each in enumerate(sent)]
    assert len({m.created_at for m in messages}) <= 10
    assert await stream.send_all([]) == []


async def test_send_takes_delay_expiry_and_dedup(stream: Stream) -> None:
    await stream.send("a.b", 1, delay=60, expires_in=120, priority=1, dedup_key="k")
    again = await stream.send("a.b", 2, dedup_key="k")
    assert again.duplicate
    (message,) = await stream.read("a.b")
    assert message.deliver_at is not None
    assert message.expires_at is not None
    assert 50 < (message.deliver_at - message.created_at).total_seconds() < 70
    assert (message.priority, message.dedup_key, message.id) == (1, "k", again.id)


@pytest.mark.parametrize("key", ["", "Task output", "a..b", "a.*", "x" * 256])
async def test_a_bad_key_is_refused_before_it_is_sent(stream: Stream, key: str) -> None:
    with pytest.raises(InvalidKey):
        await stream.send(key, 1)


async def test_a_bad_value_is_refused_before_it_is_sent(stream: Stream) -> None:
    with pytest.raises(InvalidValue, match="NUL"):
        await stream.send("a.b", {"text": "a\0b"})
    assert await stream.read("a.b") == []


async def test_read_pages_and_latest_of_each(stream: Stream) -> None:
    sent = await stream.send_all([Draft(f"news.{n % 3}", n) for n in range(9)])
    ids = [each.id for each in sent]
    assert [m.id for m in await stream.read("news.*", after=ids[1], limit=3)] == ids[2:5]
    assert [m.id for m in await stream.read("news.>", before=ids[4], limit=2)] == ids[2:4]
    assert [m.value for m in await stream.latest_of_each("news.*")] == [8, 7, 6]
    assert [m.value for m in await stream.latest_of_each("news.*", limit=1)] == [8]


async def test_messages_are_got_by_id_by_time_and_by_correlation_id(stream: Stream) -> None:
    first = await stream.send("news.a", 1)
    later = await stream.send("news.a", 2, correlation_id=str(first.id))
    message = await stream.get(first.id)
    assert message is not None
    assert (message.id, message.key, message.value) == (first.id, "news.a", 1)
    assert [await stream.get(number) for number in (0, later.id + 1, 2**63)] == [None] * 3
    # A time without a zone is local.
    ago = datetime.now() - timedelta(hours=1)
    assert [m.value for m in await stream.read(since=ago)] == [1, 2]
    assert await stream.read(until=ago) == []
    assert [m.id for m in await stream.read(correlation_id=message.correlation)] == [first.id, later.id]
    newest = await stream.latest("news.a", correlation_id=str(first.id))
    assert newest is not None
    assert newest.id == later.id
    assert await stream.latest("news.a", correlation_id="another") is None


async def test_stats(stream: Stream) -> None:
    await stream.send("a.b", 1)
    stats = await stream.stats()
    assert stats["last_message"] >= 1
    assert stats["subscriptions"] == []


async def test_an_error_of_the_script_comes_out_as_it_is(database: str) -> None:
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012
        async with connect(settings_for(database)) as stream:
            await stream.send("a.b")
            raise KeyError("mine")
    wrong = database.replace("/test_", "/none_")
    with pytest.raises(Unauthorized):
        async with connect(settings_for(wrong)) as stream:
            await stream.send("a.b")


async def test_the_connections_are_closed_in_the_end(cluster: Cluster, database: str) -> None:
    async with faulty_proxy(cluster.server.port) as proxy:
        url = database.replace(f":{cluster.server.port}/", f":{proxy.port}/")
        with anyio.move_on_after(30) as scope:
            async with connect(settings_for(url)) as stream:
                await stream.send("a.b")
                scope.cancel()
                await anyio.sleep(1)
        with anyio.fail_after(60):
            while proxy.open_connections:
                await anyio.sleep(0.01)


class Heard:
    """Collects what a listener yields."""

    def __init__(self) -> None:
        self.messages: list[Message[Any]] = []

    async def collect(self, stream: Stream, pattern: str, since: int | None, *, task_status: Any) -> None:
        listener = stream.listen(pattern, since=since)
        task_status.started()
        async for message in listener:
            self.messages.append(message)

    @property
    def values(self) -> list[Any]:
        return [message.value for message in self.messages]

    async def until(self, count: int) -> None:
        with anyio.fail_after(60):
            while len(self.messages) < count:
                await anyio.sleep(0.005)


async def hear_first(stream: Stream, heard: Heard, key: str) -> None:
    """Return when the listener listens: it has heard a message sent after it began."""
    with anyio.fail_after(60):
        while not heard.messages:
            await stream.send(key, "begin")
            await anyio.sleep(0.05)


async def test_listen_yields_what_is_written_from_now_on(stream: Stream) -> None:
    await stream.send("site.a", "before")
    heard = Heard()
    async with anyio.create_task_group() as tasks:
        await tasks.start(heard.collect, stream, "site.>", None)
        await hear_first(stream, heard, "site.a")
        await stream.send("other.a", "not for it")
        await stream.send_all([Draft("site.b", number) for number in range(1200)])
        with anyio.fail_after(60):
            while heard.values[-1] != 1199:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert [value for value in heard.values if value != "begin"] == list(range(1200))
    assert len({message.id for message in heard.messages}) == len(heard.messages)


async def test_listen_since_begins_with_history(stream: Stream) -> None:
    sent = await stream.send_all([Draft("site.a", number) for number in range(1300)])
    heard = Heard()
    async with anyio.create_task_group() as tasks:
        await tasks.start(heard.collect, stream, "site.a", sent[9].id)
        await heard.until(1290)
        await stream.send("site.a", "new")
        await heard.until(1291)
        tasks.cancel_scope.cancel()
    assert heard.values == [*range(10, 1300), "new"]


async def test_listen_hears_commits_with_lower_ids(stream: Stream, database: str) -> None:
    heard = Heard()
    insert = "insert into consciousness_stream (key, value) values ('site.a', $1)"
    async with writer(database) as early, writer(database) as late, anyio.create_task_group() as tasks:
        opened_before = late.transaction()
        await opened_before.start()
        await late.execute(insert, '"late 1"')
        await early.execute(insert, '"not heard: committed before"')
        await tasks.start(heard.collect, stream, "site.a", None)
        await hear_first(stream, heard, "site.a")
        await opened_before.commit()
        with anyio.fail_after(60):
            while "late 1" not in heard.values:
                await anyio.sleep(0.01)
        async with late.transaction():
            await late.execute(insert, '"late 2"')
            await early.execute(insert, '"early"')
            with anyio.fail_after(60):
                while "early" not in heard.values:
                    await anyio.sleep(0.01)
        with anyio.fail_after(60):
            while "late 2" not in heard.values:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert [value for value in heard.values if value != "begin"] == ["late 1", "early", "late 2"]


async def test_a_listener_may_be_left_without_being_closed(stream: Stream) -> None:
    sent = await stream.send("site.a", 1)
    kept = []
    for _ in range(3):
        listener = stream.listen("site.a", since=sent.id - 1)
        kept.append(listener)
        async for message in listener:
            assert message.value == 1
            break
    assert (await stream.latest("site.a")) is not None


async def test_listening_waits_for_a_database_that_is_away(
    cluster: Cluster, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with faulty_proxy(cluster.server.port) as proxy:
        url = database.replace(f":{cluster.server.port}/", f":{proxy.port}/")
        heard = Heard()
        async with (
            connect(settings_for(url)) as stream,
            connect(settings_for(database)) as direct,
            anyio.create_task_group() as tasks,
        ):
            await tasks.start(heard.collect, stream, "site.a", None)
            await hear_first(direct, heard, "site.a")
            proxy.refusing = True
            await proxy.cut()
            with anyio.fail_after(60):
                while "the store is away" not in caplog.text:
                    await anyio.sleep(0.01)
            await direct.send("site.a", "meanwhile")
            proxy.refusing = False
            with anyio.fail_after(60):
                while "meanwhile" not in heard.values:
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        assert heard.values.count("meanwhile") == 1
        assert caplog.text.count("the store is away") == 1


class Counted(Store):
    """Counts what goes through to another store."""

    def __init__(self, store: Store) -> None:
        self.store, self.calls, self.rows = store, 0, 0

    @property
    def place(self) -> str:
        return self.store.place

    async def call(self, function: str, arguments: Any) -> Any:
        self.calls += 1
        answer = await self.store.call(function, arguments)
        self.rows += len(answer)
        return answer

    async def close(self) -> None:
        await self.store.close()


async def test_reading_on_does_not_read_everything_again(stream: Stream) -> None:
    from runtime.client.listener import Reader

    now = 1000.0
    counted = Counted(stream._store)
    await stream.send_all([Draft("busy.a", number) for number in range(1000)])
    horizon = await counted.operate("stream_horizon", look=5000)
    assert horizon["floor"] == horizon["drawn"] == 1000
    reader = Reader(counted, "rare.>", after=0, horizon=horizon, clock=lambda: now)
    busy = Reader(counted, "busy.a", after=0, horizon=horizon, clock=lambda: now)
    got = 0
    while fresh := await busy.fresh():
        got += len(fresh)
    assert got == 1000
    counted.rows = 0
    for number in range(100):
        await stream.send("busy.a", number)
        now += 0.01
        assert [message.value for message in await busy.fresh()] == [number]
    assert counted.rows < 1000
    # A pattern that nothing matches is not sought from the beginning for ever.
    for _ in range(3):
        now += 11
        assert await reader.fresh() == []
    newest = await stream.latest("busy.a")
    assert newest is not None
    assert reader._floor == newest.id


class Interrupted(Store):
    """Holds messages, and answers only so many calls."""

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids, self.answers = list(ids), 1000
        self.horizon = {"drawn": 2000, "floor": 0, "xid": 1, "xmin": 1}

    @property
    def place(self) -> str:
        return "here"

    async def call(self, function: str, arguments: Any) -> Any:
        if not self.answers:
            raise StoreUnavailable("away")
        self.answers -= 1
        return self.horizon

    async def read(
        self, pattern: str, *, after: int | None = None, before: int | None = None, limit: int = 100
    ) -> Any:
        await self.call("stream_read", {})
        return [Message(n, pattern, n) for n in sorted(self.ids) if n > (after or 0)][:limit]

    async def close(self) -> None: ...


async def test_a_late_row_is_not_lost_when_the_store_goes_away_while_looking_back() -> None:
    from runtime.client.listener import Reader

    now = 1000.0
    store = Interrupted(range(2, 1202))
    reader = Reader(store, "site.a", after=0, horizon=store.horizon, clock=lambda: now)
    read = [message.id for _ in range(4) for message in await reader.fresh()]
    assert read == store.ids
    store.ids.append(1)
    now += 2
    store.answers = 1
    with pytest.raises(StoreUnavailable):
        await reader.fresh()
    store.answers = 1000
    now += 2
    assert [message.id for message in await reader.fresh()] == [1]


async def test_after_a_reset_of_the_database_ids_that_were_used_before_are_heard_again() -> None:
    from runtime.client.listener import Reader

    now = 1000.0
    store = Interrupted(range(1, 11))
    reader = Reader(store, "site.a", after=0, horizon=store.horizon, clock=lambda: now)
    assert len(await reader.fresh()) == 10
    store.ids, store.horizon = [], {**store.horizon, "drawn": 0}
    now += 11
    assert await reader.fresh() == []
    store.ids = [1, 2]
    now += 2
    assert [message.id for message in await reader.fresh()] == [1, 2]


@pytest.mark.parametrize("since", [None, 0])
async def test_a_batch_that_is_open_when_listening_begins_is_heard_whole(
    stream: Stream, database: str, since: int | None
) -> None:
    heard = Heard()
    async with writer(database) as batch, anyio.create_task_group() as tasks:
        async with batch.transaction():
            await batch.execute(
                "insert into consciousness_stream (key, value) "
                "select 'site.a', to_jsonb(n) from generate_series(1, 1000) n"
            )
            await stream.send("site.a", "beside")
            await tasks.start(heard.collect, stream, "site.a", since)
            await hear_first(stream, heard, "site.a")
        with anyio.fail_after(60):
            while len(heard.values) < 1000 + (since == 0):
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert [value for value in heard.values if isinstance(value, int)] == list(range(1, 1001))
    assert heard.values.count("beside") == (since == 0)


async def test_a_row_is_heard_however_long_its_transaction_stays_open(
    stream: Stream, database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from runtime.client.listener import Reader

    now = 1000.0
    horizon = await stream._store.operate("stream_horizon")
    reader = Reader(stream._store, "site.a", after=0, horizon=horizon, clock=lambda: now)
    insert = "insert into consciousness_stream (key, value) values ('site.a', '\"late\"')"

    async def heard_in(seconds: int) -> list[Any]:
        nonlocal now
        values = []
        for number in range(seconds // 15):
            await stream.send("site.a", number)
            now += 15
            while fresh := await reader.fresh():
                values += [message.value for message in fresh]
        return values

    async with writer(database) as late:
        opened = late.transaction()
        await opened.start()
        await late.execute(insert)
        assert await heard_in(90) == list(range(6))
        await opened.commit()
        assert sorted(await heard_in(45), key=str) == [0, 1, 2, "late"]
        opened = late.transaction()
        await opened.start()
        await late.execute(insert)
        # Memory has a bound, and then it is said that something may be missed.
        monkeypatch.setattr("runtime.client.listener._MAX_SEEN", 3)
        assert await heard_in(90) == list(range(6))
        await opened.rollback()
    assert "a listener may miss what it writes" in caplog.text


async def test_history_and_what_comes_meet_without_a_gap_or_a_double_under_writers(
    stream: Stream, database: str
) -> None:
    heard = Heard()

    async def write(first: int) -> None:
        async with writer(database) as connection:
            for number in range(first, first + 100):
                async with connection.transaction():
                    await connection.execute(
                        "insert into consciousness_stream (key, value) values ('site.a', to_jsonb($1::int))",
                        number,
                    )
                    await anyio.sleep(0.01 if number % 7 == 0 else 0)

    await stream.send_all([Draft("site.a", number) for number in range(1200)])
    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as writers:
            for first in range(1200, 1800, 100):
                writers.start_soon(write, first)
            await tasks.start(heard.collect, stream, "site.a", 0)
        with anyio.fail_after(60):
            while len(heard.values) < 1800:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert sorted(heard.values) == list(range(1800))
