"""The runtime itself: a script's `connect()` sends, and `runtime run` works, as users have them."""

from collections.abc import Iterable
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.contestants import Senders
from tests.bench.payload import payload
from tests.bench.starts import Starts

KEY = "bench"


class _Sender:
    def __init__(self, stream: Any, key: str) -> None:
        self._stream = stream
        self._key = key

    async def one(self, number: int) -> None:
        await self._stream.send(self._key, payload(number))

    async def many(self, numbers: Iterable[int]) -> None:
        from runtime.message import Draft

        await self._stream.send_all([Draft(self._key, payload(number)) for number in numbers])


class Ours:
    """Finished messages stay in the stream, marked as processed, and the log keeps a row of each attempt."""

    requirements = ()
    settings = "`runtime run` of one agent with the default concurrency of 100, the log of attempts included"
    pending = "select exists (select from runtime.deliveries)"
    history = (
        "set session_replication_role = replica",
        # Indexes made in the end are made in a fraction of the time.
        "create temporary table kept as select pg_get_indexdef('consciousness_stream_key'::regclass) as definition",
        "drop index consciousness_stream_key",
        "alter table runtime.runs drop constraint runs_pkey",
        "insert into consciousness_stream (key, value, processed) "
        "select 'bench', jsonb_build_object('number', g, 'text', repeat('x', 130)), true "
        "from generate_series(1, {count}) g",
        "insert into runtime.runs (message_id, subscription, ended_at, worker, attempt, outcome, seconds) "
        "select m.id, s.id, m.created_at, '00000000-0000-0000-0000-0000000000aa', 1, 'done', 0.0001 "
        "from consciousness_stream m, runtime.subscriptions s where m.processed and s.name = 'bench.handle_0'",
        "do $$ begin execute (select definition from kept); end $$",
        "alter table runtime.runs add constraint runs_pkey primary key (message_id, subscription, ended_at)",
    )

    async def install(self, url: str) -> None:
        """Make its tables in an empty database: the migrations, as the CLI applies them."""
        from runtime.local.bootstrap import prepare_cluster, prepare_database
        from runtime.local.migrations import apply_migrations, migrations_folder, read_migrations

        await prepare_cluster(url)
        await prepare_database(url)
        await apply_migrations(url, read_migrations(migrations_folder()))

    @asynccontextmanager
    async def sender(self, url: str, key: str = KEY) -> Senders:
        """Open a sender of the direct store."""
        from pydantic import SecretStr

        from runtime import connect
        from runtime.settings import Settings

        settings = Settings.load(database_url=SecretStr(url), supabase_url=None, supabase_key=None)
        async with connect(settings) as stream:
            yield _Sender(stream, key)

    async def work(self, url: str, starts: Starts) -> None:
        """Not used: the worker is `runtime run`, see `workers.py`."""
        raise NotImplementedError


contestant = Ours()
