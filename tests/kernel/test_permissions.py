"""Who may do what? service_role runs workers, an agent is held to its name, nobody else sees or calls anything."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from runtime.local.migrations import migrations_folder, read_migrations
from tests.document import blocks
from tests.kernel.driver import Worker, insert, send
from tests.kernel.schedule import transaction

pytestmark = pytest.mark.anyio

ASKING_PEOPLE = Path(__file__).parents[2] / "docs/how-to/asking-people.md"

OUR_FUNCTIONS = (
    "select p.oid, p.oid::regprocedure::text as name, p.pronamespace = 'public'::regnamespace as is_public, "
    "p.prosecdef, p.proconfig, p.proowner::regrole::text as owner from pg_proc p where p.pronamespace = "
    "'runtime'::regnamespace or p.pronamespace = 'public'::regnamespace and p.proname like 'stream\\_%'"
)

SHADOWS = (
    "pg_class", "pg_stat_activity", "pg_publication", "pg_publication_tables", "pg_roles", "pg_policy", "replayed",
    "deliveries", "subscriptions", "patterns", "workers",
)  # fmt: skip
MAY_REACH = """
    select array_agg(c.oid::regclass::text) from pg_class c
    where (c.relnamespace = 'runtime'::regnamespace
           or c.oid::regclass::text in ('consciousness_stream', 'consciousness_stream_id_seq'))
      and case c.relkind
              when 'S' then has_sequence_privilege($1, c.oid, 'usage, select, update')
              when 'r' then has_table_privilege($1, c.oid, 'select, insert, update, delete, truncate, trigger')
                  or has_any_column_privilege($1, c.oid, 'select, insert, update, references')
          end
"""


@asynccontextmanager
async def acting_as(connection: Any, role: str, /, **claims: str) -> AsyncIterator[None]:
    """As PostgREST does it: the role and the token's claims, for one transaction that is taken back."""
    async with transaction(connection) as acting:
        await connection.execute(f"set local role {role}")
        await connection.execute(
            "select set_config('request.jwt.claims', $1, true)", json.dumps({"role": role, **claims})
        )
        yield
        if connection.is_in_transaction():
            await acting.rollback()


async def denied(connection: Any, call: Any) -> str:
    """The words of the refusal, in a savepoint, so that the transaction goes on."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError) as caught:
        async with connection.transaction():
            await call()
    return str(caught.value)


async def test_anon_and_authenticated_see_and_call_nothing(db: Any, worker: Worker) -> None:
    await insert(db, "task.output", "secret")
    for role in ("anon", "authenticated"):
        may_call = f"select array_agg(name) from ({OUR_FUNCTIONS}) f where has_function_privilege($1, f.oid, 'execute')"
        called = [
            "stream_decide(bigint,boolean,jsonb,text,text)", "stream_follow(bigint,text,integer,integer,text)",
        ]  # fmt: skip
        assert sorted(await db.fetchval(may_call, role) or []) == (called if role == "authenticated" else [])
        assert await db.fetchval(MAY_REACH, role) is None
        async with acting_as(db, role):
            for statement in (
                "select * from consciousness_stream",
                "insert into consciousness_stream (key) values ('task.output')",
                "select stream_send('[]')",
                "select stream_read()",
                "select stream_stats()",
                "select stream_decide(1, true)",
                "select stream_follow(1, 'answer')",
                "select message_id from stream_texts",
                "select * from stream_text_parts",
                "select runtime.check_key('a')",
                "select * from runtime.deliveries",
            ):
                assert "permission denied" in await denied(db, lambda s=statement: db.fetch(s)), (
                    role,
                    statement,
                )


async def test_service_role_calls_the_public_functions_and_none_beneath_them(db: Any, worker: Worker) -> None:
    functions = await db.fetch(OUR_FUNCTIONS)
    assert len([each for each in functions if each["is_public"]]) > 10
    for function in functions:
        may = await db.fetchval(
            "select has_function_privilege('service_role', $1::oid, 'execute')", function["oid"]
        )
        assert may is function["is_public"], function["name"]
    worker.connection = db
    async with acting_as(db, "service_role"):
        await db.fetchval("select stream_install_realtime()")
        await worker.subscribe({"name": "a.one", "patterns": ["task.output"]}, settle=False)
        assert len(await send(db, ("task.output", 1))) == 1
        await insert(db, "task.output", 2)
        await worker.exchange(want=1, settle=True, beat=True)
        await db.execute("update consciousness_stream set processed = true")
        for call in ("read()", "stats()", "pause('a.one')", "resume('a.one')", "replay('a.one')", "prune(0)", "dead()",
                     "redrive()", "discard()", f"maintain('{worker.id}')", f"beat('{worker.id}', 'x')",
                     "usage()", f"leave('{worker.id}')", "remove('a.one')"):  # fmt: skip
            assert await db.fetchval(f"select stream_{call}") is not None
        assert await db.fetchval("select count(*) from runtime.deliveries") == 0
        assert "permission denied" in await denied(db, lambda: db.execute("delete from runtime.deliveries"))


async def test_functions_run_as_their_owner_by_names_that_nobody_can_shadow(db: Any) -> None:
    for function in await db.fetch(OUR_FUNCTIONS):
        name = function["name"]
        assert 'search_path=""' in (function["proconfig"] or ()), name
        assert function["owner"] == "postgres", name
        # Beneath the public ones only the trigger of an insert has a caller that is not one of ours. People decide
        # under their own policies.
        as_owner = function["is_public"] and not name.startswith(("stream_decide(", "stream_follow("))
        assert function["prosecdef"] is (as_owner or name == "runtime.fan_out()"), name


async def exchange_among_shadows(db: Any, worker: Worker) -> list[int]:
    """A message sent and taken by a caller whose search_path and temporary tables try to stand in for the real ones."""
    await worker.subscribe("a.one=task.output")
    await db.execute(
        "create schema evil; grant usage on schema evil to public; "
        "create function evil.clock_timestamp() returns timestamptz language plpgsql as "
        "$$ begin raise exception 'shadowed'; end $$"
    )
    worker.connection = db
    async with acting_as(db, "service_role"):
        await db.execute("set local search_path = evil, pg_catalog, public")
        for table in SHADOWS:
            await db.execute(f"create temporary table {table} (id int)")
        sent = [await insert(db, "task.output", 1), *await send(db, ("task.output", 1))]
        await db.fetchval("select public.stream_stats()")
        await db.fetchval("select public.stream_install_realtime()")
        await db.fetchval("select public.stream_replay('a.one')")
        assert [each.id for each in await worker.take()] == sent
    return sent


async def test_a_caller_s_search_path_and_temporary_tables_shadow_nothing(db: Any, worker: Worker) -> None:
    assert await exchange_among_shadows(db, worker)


async def test_without_a_search_path_of_its_own_the_trigger_would_run_a_caller_s_code_as_its_owner(
    db: Any, worker: Worker
) -> None:
    await db.execute("alter function runtime.fan_out() reset search_path")
    with pytest.raises(asyncpg.RaiseError, match="shadowed"):
        await exchange_among_shadows(db, worker)


async def test_what_a_user_grants_works_under_row_level_security(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.>")
    await db.execute("grant select, insert on consciousness_stream to authenticated")
    async with acting_as(db, "authenticated"):
        inserting = "insert into consciousness_stream (key, value) values ('task.output', '1')"
        assert "row-level security" in await denied(db, lambda: db.execute(inserting))
        assert await db.fetch("select * from consciousness_stream") == []
    await db.execute(
        "create policy ask on consciousness_stream for insert to authenticated with check (key = 'task.ask'); "
        "create policy hear on consciousness_stream for select to authenticated using (key like 'task.%')"
    )
    async with transaction(db):
        await db.execute("set local role authenticated")
        message = await insert(db, "task.ask", 1)
        assert "row-level security" in await denied(db, lambda: insert(db, "task.output", 1))
    # Its row was fanned out though it may not see the subscriptions.
    assert [each.id for each in await worker.take()] == [message]


async def test_an_agent_is_who_its_token_says(db: Any, worker: Worker) -> None:
    numbers = await worker.subscribe("publisher.publish=task.output", "writer.write=task.ask")
    await send(db, ("task.output", 1), ("task.ask", 2))
    mine, other = sorted(await worker.take(), key=lambda each: each.key, reverse=True)
    assert mine.subscription == numbers["publisher.publish"]
    await worker.fail(other, outcome="dead")
    await send(db, ("task.ask", 3))
    (other,) = await worker.take()
    worker.connection = db
    async with acting_as(db, "service_role"):
        await db.execute(
            'select set_config(\'request.jwt.claims\', \'{"role": "agent", "agent": "publisher"}\', true)'
        )
        (sent,) = await send(db, {"key": "site.published", "value": 1, "agent": "writer"})
        assert await db.fetchval("select agent from consciousness_stream where id = $1", sent) == "publisher"

        for words, call in (
            ("may not subscribe", lambda: worker.subscribe("writer.write=>", settle=False)),
            ("does not own", lambda: worker.exchange(done=[other.report()])),
            ("does not own", lambda: worker.exchange(failed=[other.report(outcome="dead")])),
            ("does not own", lambda: worker.exchange(renew=[other.report()])),
            ("does not own", lambda: worker.exchange(want={numbers["writer.write"]: 1})),
            ("belongs to another", lambda: db.fetchval("select stream_pause('writer.write')")),
            ("belongs to another", lambda: db.fetchval("select stream_resume('writer.write')")),
            ("belongs to another", lambda: db.fetchval("select stream_replay('writer.write')")),
            ("belongs to another", lambda: db.fetchval("select stream_remove('writer.write')")),
        ):
            assert words in await denied(db, call)
        assert (await db.fetchval("select stream_redrive()"))["redriven"] == 0
        assert (await db.fetchval("select stream_discard()"))["discarded"] == 0
        assert await db.fetchval("select stream_dead()") == []

        emits = [{"key": "site.published", "value": 1, "agent": "writer"}]
        assert (await worker.finish(mine, emits=emits)).refused == set()
        assert (
            await db.fetchval("select agent from consciousness_stream where parent_id = $1", mine.id)
            == "publisher"
        )

        # A token that names no agent is nobody, rather than everybody.
        await db.execute("select set_config('request.jwt.claims', '{\"role\": \"agent\"}', true)")
        assert "names no agent" in await denied(db, lambda: send(db, ("task.output", 1)))
        assert "names no agent" in await denied(
            db, lambda: worker.exchange(want={numbers["writer.write"]: 1})
        )


# What an agent's own token may call, each held to that agent's own; everything else is for operators and the runtime.
OF_AGENTS = {
    "stream_send", "stream_subscribe", "stream_exchange", "stream_leave", "stream_version", "stream_pause",
    "stream_resume", "stream_replay", "stream_remove", "stream_cancel", "stream_dead", "stream_redrive",
    "stream_discard", "stream_schedule", "stream_tick", "stream_note_webhooks", "stream_answers",
    "stream_step", "stream_steps", "stream_status", "stream_begin_text", "stream_write_texts", "stream_wait",
    "stream_waits", "stream_approvals",
}  # fmt: skip


async def test_s8_an_agent_s_token_calls_nothing_that_is_not_made_for_agents(db: Any) -> None:
    functions = await db.fetch(
        "select p.proname as name, array(select format_type(t, null) from unnest(p.proargtypes) t) as types "
        "from pg_proc p where p.pronamespace = 'public'::regnamespace and p.proname like 'stream\\_%'"
    )
    assert {each["name"] for each in functions} > OF_AGENTS
    claims = json.dumps({"role": "agent", "agent": "publisher"})
    async with acting_as(db, "service_role"):
        for function in functions:
            if function["name"] in OF_AGENTS:
                continue
            await db.execute("select set_config('request.jwt.claims', $1, true)", claims)
            arguments = ", ".join(f"null::{kind}" for kind in function["types"])
            statement = f"select public.{function['name']}({arguments})"
            assert "an agent's identity may not" in await denied(db, lambda s=statement: db.fetch(s)), (
                statement
            )


async def test_s8_an_agent_s_token_ends_no_worker_of_another(db: Any, worker: Worker) -> None:
    await worker.subscribe("writer.write=task.ask")
    async with acting_as(db, "service_role"):
        for agent, words in (("publisher", "does not own worker"), ("writer", None)):
            claims = json.dumps({"role": "agent", "agent": agent})
            await db.execute("select set_config('request.jwt.claims', $1, true)", claims)
            leave = f"select stream_leave('{worker.id}')"
            if words is not None:
                assert words in await denied(db, lambda s=leave: db.fetch(s))
            else:
                assert (await db.fetchval(leave))["left"] is True


async def test_signed_in_people_decide_under_their_own_policies_and_in_their_own_name(db: Any) -> None:
    [rights] = [block.text for block in blocks(ASKING_PEOPLE) if block.language == "sql"]
    may_see, _, may_write = rights.rpartition("create policy")
    ada, bob = str(UUID(int=1)), str(UUID(int=2))
    hers, his = [
        await insert(db, "approval.requested", {"title": "May I?", "details": {"approver": who}})
        for who in (ada, bob)
    ]
    decide = "select stream_decide($1, true, by => 'carl')"
    await db.execute(may_see)
    async with acting_as(db, "authenticated", sub=ada):
        assert "row-level security" in await denied(db, lambda: db.fetchval(decide, hers))
    await db.execute("create policy" + may_write)
    async with acting_as(db, "authenticated", sub=ada):
        decided = await db.fetchval(decide, hers)
        assert (decided["decided"], decided["decision"]["by"]) == (True, ada)
        again = await db.fetchval(decide, hers)
        assert (again["decided"], again["decision"]) == (False, decided["decision"])
        with pytest.raises(asyncpg.InvalidParameterValueError, match="no request for approval"):
            async with db.transaction():
                await db.fetchval(decide, his)
        forged = (
            "insert into consciousness_stream (key, value, parent_id, dedup_key) "
            "values ('approval.decided', '{}', $1, $2)"
        )
        with pytest.raises(asyncpg.InvalidParameterValueError, match="reserved"):
            async with db.transaction():
                await db.execute(forged, his, f"decision {his}")
    async with acting_as(db, "service_role", role="agent", agent="carl"):
        assert "agent's identity" in await denied(db, lambda: db.fetchval(decide, his))
    assert (await db.fetchval(decide, his))["decision"]["by"] == "carl"
    # It stands for good: after its dedup_key was forgotten, and for those who may not see it.
    await db.execute("delete from runtime.dedup")
    await db.execute(
        "create policy blind on public.consciousness_stream as restrictive for select to authenticated "
        "using (key <> 'approval.decided')"
    )
    async with acting_as(db, "authenticated", sub=bob):
        blind = await db.fetchval(decide, his)
        assert (blind["decided"], blind["decision"]) == (False, None)


async def test_s7_what_a_later_migration_makes_is_closed_at_its_end(db: Any) -> None:
    may = "select has_function_privilege($1, $2, 'execute')"
    await db.execute(
        "create function public.stream_later() returns int language sql as 'select 1'; "
        "create function runtime.later() returns int language sql as 'select 1'; create table runtime.late (id int)"
    )
    # As hosted projects have it: what is made in schema public is open.
    assert await db.fetchval(may, "anon", "public.stream_later()")
    await db.execute("select runtime.finish_migration()")
    assert await db.fetchval("select relrowsecurity from pg_class where oid = 'runtime.late'::regclass")
    for role, function, expected in (
        ("anon", "public.stream_later()", False), ("authenticated", "public.stream_later()", False),
        ("service_role", "public.stream_later()", True), ("anon", "runtime.later()", False),
        ("service_role", "runtime.later()", False),
    ):  # fmt: skip
        assert await db.fetchval(may, role, function) is expected, (role, function)


async def test_k6_a_function_that_a_later_migration_replaces_gets_its_planner_settings_back(db: Any) -> None:
    settings = (
        "select array_agg(c order by c) from pg_proc, unnest(proconfig) c where proname = 'stream_pause'"
    )
    before = await db.fetchval(settings)
    assert {"enable_seqscan=off", "jit=off", "plan_cache_mode=force_generic_plan"} < set(before)
    await db.execute(
        "create or replace function public.stream_pause(subscription text) returns json "
        "language plpgsql security definer set search_path = '' as $$ begin return '1'; end $$"
    )
    assert await db.fetchval(settings) == ['search_path=""']
    await db.execute("select runtime.finish_migration()")
    assert await db.fetchval(settings) == before


async def test_k6_every_function_that_is_to_have_planner_settings_is_there(db: Any) -> None:
    body = await db.fetchval("select prosrc from pg_proc where oid = 'runtime.keep_settings'::regproc")
    lists = re.findall(r"\(\'\{(.*?)\}\', \'(.*?)\'", body, re.DOTALL)
    named = {prefix + name.strip() for names, prefix in lists for name in names.split(",")}
    assert len(named) > 30
    found = await db.fetch(
        "select proname::text from pg_proc where pronamespace in ('public'::regnamespace, 'runtime'::regnamespace) "
        "and proconfig @> '{jit=off}'"
    )
    assert {row["proname"] for row in found} == named


def test_s7_every_later_migration_ends_as_it_should() -> None:
    migrations = read_migrations(migrations_folder())
    (first,) = [
        place for place, each in enumerate(migrations) if "function runtime.finish_migration()" in each.sql
    ]
    for migration in migrations[first:]:
        assert migration.sql.rstrip().endswith("select runtime.finish_migration();"), migration.file_name


def test_s7_every_table_is_closed_where_it_is_made() -> None:
    # Later it would be locked against workers that outlived a reset, which ended the reset by a deadlock.
    for migration in read_migrations(migrations_folder()):
        made = set(re.findall(r"^create (?:unlogged )?table (\S+)", migration.sql, re.MULTILINE))
        closed = set(
            re.findall(r"^alter table (\S+) enable row level security;", migration.sql, re.MULTILINE)
        )
        assert made == closed, migration.file_name


async def test_s7_a_function_open_to_all_is_told_as_a_fact(db: Any) -> None:
    await db.execute("create function public.stream_later() returns int language sql as 'select 1'")
    assert "public.stream_later()" in (await db.fetchval("select stream_examine()"))["open"]
