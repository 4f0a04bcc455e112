"""A stream of a million rows, made in seconds: the triggers are off, and the index is made in the end."""

from tests.kernel.driver import Worker, connected

ROWS = 1_000_000
# Where what is rare lies: its key, its text, and who wrote it.
RARE_KEY, RARE_TEXT, RARE_AGENT = 1_234, 700_000, 400_000


async def crowd(url: str) -> None:
    """Fill a fresh database: a million messages and as many runs of the last hour, and half a million that wait.

    Args:
        url: as the superuser.
    """
    async with connected(url) as db:
        await Worker(db).subscribe("archivist.keep=archive.>", "archivist.index=archive.>")
        await db.execute("set session_replication_role = replica")
        definition = await db.fetchval("select pg_get_indexdef('consciousness_stream_key'::regclass)")
        await db.execute("drop index consciousness_stream_key")
        await db.execute(
            "insert into consciousness_stream (key, value, agent, processed, created_at) "
            f"select case when n = {RARE_KEY} then 'rare.key' else 'archive.k' || n % 500 end, "
            f"       jsonb_build_object('title', case when n = {RARE_TEXT} then 'Pinhead' else 'number ' || n end), "
            f"       case when n = {RARE_AGENT} then 'hermit' else 'importer' end, true, "
            f"       clock_timestamp() - interval '1 day' - make_interval(secs => {ROWS} - n) "
            f"from generate_series(1, {ROWS}) n"
        )
        await db.execute(definition)
        await db.execute(
            "insert into runtime.runs (message_id, subscription, ended_at, attempt, outcome, seconds) "
            f"select n, s.id, clock_timestamp() - make_interval(secs => 3500 * ({ROWS} - n)::float / {ROWS}), 1, "
            f"'done', 0.01 from generate_series(1, {ROWS}) n, runtime.subscriptions s where s.name = 'archivist.keep'"
        )
        await db.execute(
            "insert into runtime.deliveries (message_id, subscription, marks, sole) select n, s.id, false, false "
            f"from generate_series({ROWS} / 2 + 1, {ROWS}) n, runtime.subscriptions s where s.name = 'archivist.index'"
        )
        await db.execute("set session_replication_role = origin")
        await db.execute("vacuum analyze")
