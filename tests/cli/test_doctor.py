"""`runtime doctor`: every failure it knows, produced for real, and told with its cure."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import jwt
import pytest

from runtime.cli.checks.access import check_claims
from runtime.cli.checks.database import plugin_cure
from runtime.cli.checks.examination import examine
from runtime.cli.checks.finding import Finding, Verdict
from runtime.local import keys
from runtime.local.ports import free_port
from runtime.wakeups.database_webhook import WebhookWakeups
from tests.cli.shell import Shell, error_line
from tests.integration.conftest import connected, settings_of, until
from tests.pgbouncer import pooler
from tests.wakeups.test_database_webhook import Heard, is_open

pytestmark = pytest.mark.anyio

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


async def findings(
    stack: Any, *, deaf: bool = False, lost: bool = False, **overrides: object
) -> dict[str, Finding]:
    """What the doctor finds, by check; of two findings of one check the worse.

    Args:
        stack: the stack it examines.
        deaf: whether a path is expected to be deaf: it is found so sooner.
        lost: whether the row is expected not to come round: it is given up sooner.
        overrides: of the settings.
    """
    seconds = {
        "_NONCE_SECONDS": 10.0 if deaf else 60.0,
        "_PATHS_SECONDS": 120.0,
        "_LIVE_SECONDS": 1.0 if deaf else 60.0,
        "_ROUND_SECONDS": 5.0 if lost else 180.0,
    }
    found: dict[str, Finding] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in seconds.items():
            patch.setattr(f"runtime.cli.checks.round_trip.{name}", value)
        async for finding in examine(settings_of(stack, **overrides)):
            if finding.check not in found or finding.verdict is Verdict.FAULT:
                found[finding.check] = finding
    return found


def faults(found: dict[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if finding.verdict is Verdict.FAULT}


async def execute(url: str, *statements: str) -> None:
    async with connected(url) as connection:
        for statement in statements:
            await connection.execute(statement)


async def test_a_healthy_stack_has_nothing_wrong_and_nothing_is_left_behind(stack: Any) -> None:
    found = await findings(stack)
    assert faults(found) == set()
    assert {name for name, each in found.items() if each.verdict is Verdict.WARNING} == set()
    assert {name for name, each in found.items() if each.verdict is Verdict.OK} == {
        "url", "key", "token", "store", "clock", "migrations", "isolation", "publication", "grants", "row security",
        "trigger", "versions",
        "policies", "partition", "socket", "broadcast", "postgres_changes", "round trip",
    }  # fmt: skip
    assert set(found["round trip"].details["legs"]) == {"insert", "insert to handler", "handler to answer"}
    assert found["round trip"].details["woken_by"]
    async with connected(stack.admin_url) as connection:
        assert not await connection.fetchval("select exists (select from runtime.subscriptions)")
        assert not await connection.fetchval("select exists (select from runtime.workers)")


def test_the_exit_code_tells_and_json_is_for_machines(shell: Shell, stack: Any) -> None:
    well = shell.run("doctor", "--json")
    assert well.code == 0, well.stdout
    lines = [json.loads(line) for line in well.stdout.splitlines()]
    assert {line["verdict"] for line in lines} == {"ok", "skipped"}
    anyio.run(execute, stack.admin_url, "drop publication supabase_realtime")
    ill = shell.run("doctor")
    assert ill.code == 1
    assert "create publication supabase_realtime" in ill.stdout
    assert "Traceback" not in ill.stderr
    for secret in (stack.service_role_key, "postgres:postgres"):
        assert secret not in well.stdout + well.stderr + ill.stdout + ill.stderr


async def test_l4_a_default_isolation_in_which_nothing_can_be_taken_is_found(stack: Any) -> None:
    await execute(
        stack.admin_url,
        f"alter database {stack.admin_url.rpartition('/')[2]} set default_transaction_isolation = 'serializable'",
        "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and "
        "datname = current_database()",
    )
    found = await findings(stack, lost=True)
    assert "isolation" in faults(found)
    assert "alter role authenticator set default_transaction_isolation" in str(found["isolation"].cure)


BROKEN = [
    pytest.param("drop publication supabase_realtime", {"publication", "postgres_changes"},
                 "create publication", id="no publication"),
    pytest.param("alter publication supabase_realtime drop table public.consciousness_stream",
                 {"publication", "postgres_changes"}, "stream_install_realtime", id="not published"),
    pytest.param("alter publication supabase_realtime set (publish = 'update, delete')",
                 {"publication", "postgres_changes"}, "insert", id="no inserts published"),
    pytest.param("revoke execute on function public.stream_prune from service_role", {"grants"},
                 "grant execute", id="no execute"),
    pytest.param("revoke insert on public.consciousness_stream from service_role", {"grants"},
                 "grant select, insert", id="no insert"),
    pytest.param("grant execute on function public.stream_stats() to anon", {"grants"}, "revoke execute", id="open"),
    pytest.param("alter table public.consciousness_stream disable row level security", {"row security"},
                 "enable row level security", id="no row security"),
    pytest.param("alter table public.consciousness_stream disable trigger fan_out", {"trigger", "round trip"},
                 "enable trigger", id="no trigger"),
    pytest.param("drop trigger fan_out on public.consciousness_stream", {"trigger", "round trip"},
                 "create or replace trigger", id="trigger gone"),
    pytest.param("alter table public.consciousness_stream enable replica trigger fan_out", {"trigger", "round trip"},
                 "enable trigger", id="trigger for replicas"),
    pytest.param("revoke select on realtime.messages from service_role", {"policies", "socket"},
                 "stream_install_realtime", id="no grant on messages"),
    pytest.param("delete from supabase_migrations.schema_migrations where version = '20261101001100'", {"migrations"},
                 "runtime init", id="a migration missing"),
    pytest.param("create or replace function public.stream_version() returns json language sql as "
                 "$$ select json_build_object('version', 9, 'serves', 9, 'incarnation', 'x') $$", {"store"},
                 "pip install -U", id="newer schema"),
    pytest.param("create or replace function public.stream_version() returns json language sql as "
                 "$$ select json_build_object('version', 0, 'serves', 0, 'incarnation', 'x') $$", {"store"},
                 "runtime init", id="older schema"),
    pytest.param("revoke execute on all functions in schema public from service_role", {"store"},
                 "SUPABASE_SERVICE_ROLE_KEY", id="no execute at all"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "expected", "cure"), BROKEN)
async def test_what_is_wrong_in_the_database_is_told_with_its_cure(
    stack: Any, statement: str, expected: set[str], cure: str
) -> None:
    await execute(stack.admin_url, statement)
    found = await findings(
        stack, deaf=bool(expected & {"postgres_changes", "socket"}), lost="round trip" in expected
    )
    assert faults(found) == expected
    assert any(cure in found[name].cure for name in expected)
    if "store" in expected:
        assert found["round trip"].verdict is Verdict.SKIPPED


CURED = [
    each
    for each in BROKEN
    if each.id
    in {
        "not published",
        "no execute",
        "no insert",
        "open",
        "no row security",
        "no trigger",
        "trigger gone",
        "trigger for replicas",
    }
]


@pytest.mark.parametrize(("statement", "expected", "cure"), CURED)
async def test_a_cure_that_is_sql_cures(stack: Any, statement: str, expected: set[str], cure: str) -> None:
    await execute(stack.admin_url, statement)
    found = await findings(stack, lost="round trip" in expected, broadcast=False, postgres_changes=False)
    [name] = faults(found) - {"round trip"}
    await execute(stack.admin_url, found[name].cure)
    assert faults(await findings(stack)) == set()


@pytest.mark.parametrize("table", ["runtime.policy", "runtime.routing"])
async def test_l7_a_lost_row_of_the_kernel_s_own_is_back_and_nothing_is_wrong(stack: Any, table: str) -> None:
    await execute(stack.admin_url, "set session_replication_role = replica", f"delete from {table}")
    assert faults(await findings(stack, postgres_changes=False)) == set()


async def test_a_partition_that_is_missing_is_told(stack: Any) -> None:
    async with connected(stack.admin_url) as connection:
        for row in await connection.fetch("select inhrelid::regclass::text as name from pg_inherits "
                                          "where inhparent = 'realtime.messages'::regclass"):  # fmt: skip
            await connection.execute(f"drop table {row['name']}")
        # Nor may the gateway make them anew, as Realtime does not at each join.
        await connection.execute(
            "create or replace function realtime.make_message_partitions() returns void language sql as ''"
        )
    found = await findings(stack, deaf=True)
    # The join of a private channel fails with it, as the server tries a row there.
    assert faults(found) == {"partition", "socket"}
    assert "no partition for today" in found["partition"].text
    assert "other findings" in found["socket"].cure or "partition" in found["socket"].cure
    assert found["round trip"].verdict is Verdict.OK


async def test_a_policy_that_is_missing_matters_to_who_is_bound_by_policies(stack: Any) -> None:
    await execute(stack.admin_url, 'drop policy "runtime workers hear their wake-ups" on realtime.messages')
    found = await findings(stack)
    assert faults(found) == set()
    assert found["policies"].verdict is Verdict.OK
    assert "bypasses" in found["policies"].text
    await execute(stack.admin_url, "alter role service_role nobypassrls")
    try:
        bound = await findings(stack, deaf=True)
    finally:
        await execute(stack.admin_url, "alter role service_role bypassrls")
    assert faults(bound) == {"policies", "socket"}
    await execute(stack.admin_url, bound["policies"].cure)
    assert (await findings(stack))["policies"].verdict is Verdict.OK


async def test_t7_the_servers_refusal_of_realtimes_output_plugin_is_told_where_no_row_comes(
    stack: Any,
) -> None:
    # What makes rows stay away here is another cause; the setting is the server's own.
    await execute(stack.admin_url, "alter publication supabase_realtime drop table runtime.beats")
    async with connected(stack.admin_url) as connection:
        listed = await connection.fetchval("select current_setting('output_plugin_libraries', true)")
    if listed is None:
        pytest.skip("this PostgreSQL does not list its output plugins")
    found = await findings(stack, deaf=True)
    assert f"output_plugin_libraries = '{listed}, wal2json'" in found["postgres_changes"].cure


@pytest.mark.parametrize("listed", [None, "pgoutput, wal2json", '"wal2json"'])
def test_t7_a_server_that_lets_realtime_read_rows_needs_no_cure(listed: str | None) -> None:
    assert plugin_cure({"output_plugins": listed}) is None


# As where postgres neither is a member of the table's owner nor has supautils to let it write policies all the same.
NO_POLICIES = """
drop event trigger lend_messages; drop event trigger take_messages_back;
drop policy "runtime workers hear their wake-ups" on realtime.messages;
drop policy "runtime workers broadcast" on realtime.messages;
"""


async def test_n6_doctor_is_content_where_postgres_may_write_no_policies_and_none_is_needed(
    stack: Any,
) -> None:
    await execute(stack.admin_url, NO_POLICIES)
    async with connected(stack.db_url) as connection:
        told = json.loads(await connection.fetchval("select public.stream_install_realtime()"))
        assert "must be owner of" in told["refused"]
        assert told["broadcast"]
        assert told["postgres_changes"]
    found = await findings(stack)
    assert found["policies"].verdict is Verdict.OK
    assert not [each for each in found.values() if each.verdict is Verdict.FAULT]


async def test_n6_policies_are_made_where_postgres_is_a_member_of_the_owner(stack: Any) -> None:
    await execute(stack.admin_url, NO_POLICIES)
    await execute(stack.admin_url, "grant supabase_realtime_admin to postgres")
    try:
        async with connected(stack.db_url) as connection:
            told = json.loads(await connection.fetchval("select public.stream_install_realtime()"))
        assert told["refused"] is None
        found = await findings(stack)
    finally:
        await execute(stack.admin_url, "revoke supabase_realtime_admin from postgres")
    assert found["policies"].verdict is Verdict.OK
    assert "bypasses" not in found["policies"].text


async def test_broadcast_that_is_deaf_is_told_and_the_row_comes_round_all_the_same(stack: Any) -> None:
    await execute(
        stack.admin_url,
        # As when the server's replication connection is gone: sent, and never heard.
        "create or replace function realtime.send(payload jsonb, event text, topic text, private boolean default true) "
        "returns void language plpgsql as 'begin end'",
    )
    found = await findings(stack, deaf=True)
    assert faults(found) == {"broadcast"}
    assert "deaf" in found["broadcast"].text
    assert found["postgres_changes"].verdict is Verdict.OK
    assert found["round trip"].verdict is Verdict.OK


async def test_a_database_that_cannot_broadcast_works_with_the_other_path(stack: Any) -> None:
    await execute(stack.admin_url, "drop function realtime.send")
    found = await findings(stack, broadcast=False)
    assert faults(found) == set()
    assert found["policies"].verdict is Verdict.WARNING
    assert "postgres_changes alone" in found["policies"].cure


async def test_a_database_without_our_migrations_is_told_with_the_command(bare_stack: Any) -> None:
    found = await findings(bare_stack)
    assert faults(found) == {"store"}
    assert found["store"].details["kind"] == "schema"
    assert "runtime init" in found["store"].cure


def token(**claims: Any) -> str:
    return jwt.encode({"iss": "supabase-demo", **claims}, keys.JWT_SECRET, algorithm="HS256")


async def test_every_wrong_key_is_told_apart(stack: Any) -> None:
    now = int(time.time())
    foreign = jwt.encode({"role": "service_role", "exp": now + 10_000_000}, "x" * 40, algorithm="HS256")
    wrong = {
        stack.anon_key: ("key", "stands for anon"),
        stack.publishable_key: ("key", "publishable"),
        "nonsense": ("key", "neither a JWT"),
        token(role="authenticated", exp=now + 10_000_000): ("key", "stands for authenticated"),
        token(role="service_role", exp=now - 60): ("token", "expired"),
        token(role="service_role"): ("token", "no `exp`"),
        foreign: ("store", "refused the key"),
        "sb_secret_of_another_project": ("store", "refused the key"),
    }  # fmt: skip
    for key, (check, text) in wrong.items():
        found = await findings(stack, supabase_key=key)
        assert found[check].verdict is Verdict.FAULT, (check, found)
        assert text in found[check].text
        assert "SUPABASE_SERVICE_ROLE_KEY" in found[check].cure
        assert not any(key in each.text + each.cure for each in found.values())
    soon = await findings(stack, supabase_key=token(role="service_role", exp=now + 3600))
    assert soon["token"].verdict is Verdict.WARNING


async def test_a_secret_key_is_as_good(stack: Any) -> None:
    found = await findings(stack, supabase_key=stack.secret_key)
    assert faults(found) == set()
    assert found["token"].verdict is Verdict.SKIPPED


async def test_a_key_of_another_project_is_told_by_its_ref(stack: Any) -> None:
    key = token(role="service_role", ref="abcdefghijklmnopqrst", exp=int(time.time()) + 10_000_000)
    settings = settings_of(stack, supabase_key=key, supabase_url="https://zyxwvutsrqponmlkjihg.supabase.co")
    found = check_claims(settings)
    assert found.verdict is Verdict.FAULT
    assert "abcdefghijklmnopqrst" in found.text


async def test_a_gateway_that_is_gone_is_told(stack: Any) -> None:
    await anyio.to_thread.run_sync(stack.kill_gateway)
    found = await findings(stack, request_seconds=2)
    assert faults(found) == {"store"}
    assert found["store"].details["kind"] == "reach"
    assert "could not be reached" in found["store"].text


async def test_realtime_that_is_gone_is_told_where_the_database_is_reached_directly(stack: Any) -> None:
    await anyio.to_thread.run_sync(stack.kill_gateway)
    found = await findings(stack, deaf=True, database_url=stack.db_url)
    assert faults(found) == {"socket"}
    assert "no connection" in found["socket"].text
    assert found["round trip"].verdict is Verdict.OK


def test_a_url_that_is_none_is_told(nowhere: Shell) -> None:
    for url in ("nonsense", "https://supabase.com/dashboard/project/abcdefghijklmnopqrst"):
        line = error_line(nowhere.run("doctor", SUPABASE_URL=url, SUPABASE_SERVICE_ROLE_KEY="sb_secret_x"))
        assert "https://" in line


def test_nothing_at_all_is_told(nowhere: Shell) -> None:
    ended = nowhere.run("doctor")
    assert ended.code == 1
    assert "runtime local start" in ended.stdout


@asynccontextmanager
async def writing(url: str) -> AsyncIterator[None]:
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("select pg_current_xact_id()")
    yield
    await transaction.rollback()
    await connection.close()


async def test_an_open_transaction_that_holds_up_subscribing_is_told(stack: Any) -> None:
    async with writing(stack.admin_url):
        found = await findings(stack, deaf=True, lost=True)
    # Realtime's slot waits for it, too.
    assert "round trip" in faults(found)
    assert "pg_stat_activity" in found["round trip"].cure


@pytest.mark.parametrize("mode", ["transaction", "session"])
async def test_the_poolers_mode_is_told(stack: Any, mode: str) -> None:
    database = stack.db_url.rpartition("/")[2]
    target = int(stack.db_url.rpartition(":")[2].partition("/")[0])
    with pooler(target, mode=mode) as bouncer:
        found = await findings(stack, database_url=bouncer.url(database))
    assert faults(found) == set()
    assert found["pooler"].details["mode"] == mode
    assert found["pooler"].verdict is (Verdict.WARNING if mode == "transaction" else Verdict.OK)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_is_told(shell: Shell, hours: int) -> None:
    if not FAKETIME.exists():
        pytest.skip("libfaketime is not installed: apt-get install faketime")
    ended = shell.run(
        "doctor",
        "--json",
        LD_PRELOAD=str(FAKETIME),
        FAKETIME=f"{hours:+d}h",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    clock = next(line for line in map(json.loads, ended.stdout.splitlines()) if line["check"] == "clock")
    assert clock["verdict"] == "warning"
    assert ("ahead of" if hours > 0 else "behind") in clock["text"]
    assert round(clock["details"]["ahead_seconds"] / 3600) == hours
    # Nothing else minds.
    assert ended.code == 0, ended.stdout


WEBHOOK = (
    "create schema supabase_functions",
    "create function supabase_functions.http_request() returns trigger language plpgsql as 'begin return null; end'",
    "create trigger wake_agents after insert on public.consciousness_stream for each row "
    "execute function supabase_functions.http_request()",
)


async def test_the_webhook_is_examined_from_both_ends(stack: Any) -> None:
    port = free_port()
    settings = {
        "webhook": f"127.0.0.1:{port}",
        "webhook_secret": "right",
        "broadcast": False,
        "postgres_changes": False,
    }
    nothing_posts = await findings(stack, **settings)
    assert faults(nothing_posts) == {"webhook"}
    assert "Database Webhooks" in nothing_posts["webhook"].cure
    await execute(stack.admin_url, *WEBHOOK)
    assert "Nobody listens" in (await findings(stack, **settings))["webhook"].text
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(WebhookWakeups(f"127.0.0.1:{port}", "right", patterns=["task.*"]).run, Heard())
        await until(lambda: is_open(port))
        assert (await findings(stack, **settings))["webhook"].verdict is Verdict.OK
        other = await findings(stack, **{**settings, "webhook_secret": "wrong"})
        assert faults(other) == {"webhook"}
        assert "401" in other["webhook"].text
        tasks.cancel_scope.cancel()
    outside = await findings(stack, **{**settings, "webhook": "0.0.0.0:8787", "webhook_secret": None})
    assert "RUNTIME_WEBHOOK_SECRET" in outside["webhook"].cure


async def test_paths_that_are_switched_off_are_not_examined(stack: Any) -> None:
    found = await findings(stack, broadcast=False, postgres_changes=False)
    assert faults(found) == set()
    assert found["socket"].verdict is Verdict.SKIPPED
    assert found["round trip"].verdict is Verdict.OK
