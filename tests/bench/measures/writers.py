"""What does a commit pay for its announcement? Many writers of single rows at once, by pgbench."""

import re
import subprocess
from collections.abc import AsyncIterator

import anyio

from tests.bench.machine import Foreign, quiet
from tests.bench.measures import Scale
from tests.bench.payload import payload
from tests.bench.sample import Sample
from tests.bench.server import Database, Server, Shape

_CROWDS = (8, 32)
# Not as JSON: pgbench takes a colon for the beginning of a variable.
_PAIRS = ", ".join(f"'{name}', '{value}'" for name, value in payload(1).items())
_WORKER = "00000000-0000-0000-0000-0000000000aa"
_TARGETS = {
    "bare table": ("bare", None),
    "ungated NOTIFY": ("notified", None),
    "workers busy": ("consciousness_stream", False),
    "workers busy, and ungated NOTIFY": ("consciousness_stream", False),
    "workers asleep": ("consciousness_stream", True),
}


async def writers(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """Commits a second: into a bare table of the same shape, one with a NOTIFY per row, and the stream.

    Nothing is worked off meanwhile, so that the writers have the machine for themselves: the row of a worker says
    that it is busy (the gate is shut), or that it sleeps and never wakes (it is called as often as anybody ever is),
    and somebody listens.
    """
    database = await server.fresh(name, Shape())
    async with server.connected(database) as listener:
        await listener.execute(_TABLES)
        await listener.execute("analyze")
        channel = await listener.fetchval("select runtime.notify_channel($1::uuid)", _WORKER)
        for each in ("bare_rows", channel):
            await listener.add_listener(each, lambda *_: None)
        for crowd in _CROWDS:
            await quiet(scale.quiet_seconds)
            for label, (table, is_asleep) in _TARGETS.items():
                if is_asleep is not None:
                    await listener.execute(_REST, is_asleep)
                if is_ungated := "and ungated" in label:
                    await listener.execute(_notifying("consciousness_stream"))
                foreign = Foreign(lambda: server.pids)
                rate = await commits(server, database, table, crowd, scale.writing_seconds)
                if is_ungated:
                    # Disabled, it would still cost every insert something.
                    await listener.execute("drop trigger notify_row on consciousness_stream")
                yield Sample(f"{crowd} writers/{label}", name, rate, "/s", foreign.cores())


async def commits(server: Server, database: Database, table: str, crowd: int, seconds: float) -> float:
    """Commits a second of so many writers of single rows."""
    script = server.folder / "insert.sql"
    await anyio.Path(script).write_text(
        f"insert into {table} (key, value) values ('bench', jsonb_build_object({_PAIRS}));\n"
    )
    answer = await anyio.run_process(
        [
            str(server.program("pgbench")), "--no-vacuum", f"--file={script}", f"--client={crowd}", "--jobs=1",
            f"--time={max(1, round(seconds))}", "--protocol=prepared", database.url,
        ],
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    found = re.search(r"tps = ([\d.]+)", answer.stdout.decode())
    if found is None:
        raise RuntimeError(f"pgbench: {answer.stdout.decode()[-500:]}")
    return float(found[1])


def _notifying(table: str) -> str:
    return f"create trigger notify_row after insert on {table} for each row execute function notify_row();"


_TABLES = f"""
create table bare (like consciousness_stream including defaults including identity including indexes
    including storage including constraints);
create table notified (like bare including all);
create function notify_row() returns trigger language plpgsql as $$
begin
    perform pg_notify('bare_rows', new.id::text);
    return null;
end
$$;
{_notifying("notified")}
grant all on bare, notified to postgres;
delete from runtime.workers;
insert into runtime.pumps (id, worker, n) values ('{_WORKER}', '{_WORKER}', 1);
insert into runtime.workers (id, name, announce, pump, subscriptions)
select '{_WORKER}', 'sleeper', '{{notify}}', '{_WORKER}', array_agg(id) from runtime.subscriptions;
"""
_REST = """
update runtime.workers w set asleep = $1, seen_at = clock_timestamp(), free = w.subscriptions
"""
