"""A bootstrapped database is one of Supabase: its roles, grants, auth.* and realtime.* behave alike."""

import json

import asyncpg
import pytest

from runtime.local import keys
from runtime.local.bootstrap import check_decoding, connected, prepare_cluster, prepare_database

pytestmark = pytest.mark.anyio

IS_MEMBER = "select pg_has_role('postgres', 'supabase_realtime_admin', 'member')"


async def test_roles_have_the_attributes_of_supabase(kernel_database: str) -> None:
    async with connected(kernel_database) as connection:
        rows = await connection.fetch(
            "select rolname, rolsuper, rolbypassrls, rolcanlogin, rolinherit from pg_roles "
            "where rolname in ('anon', 'authenticated', 'service_role', 'authenticator', 'postgres')"
        )
        assert {row["rolname"]: tuple(row)[1:] for row in rows} == {
            "anon": (False, False, False, True),
            "authenticated": (False, False, False, True),
            "service_role": (False, True, False, True),
            "authenticator": (False, False, True, False),
            "postgres": (False, True, True, True),
        }
        assert await connection.fetchval("select current_user") == "postgres"
        owner = "select pg_get_userbyid(datdba) from pg_database where datname = current_database()"
        assert await connection.fetchval(owner) == "postgres"
        for role in ("anon", "authenticated", "service_role"):
            assert await connection.fetchval("select pg_has_role('authenticator', $1, 'member')", role)


async def test_n7_what_postgres_makes_in_public_is_closed_to_the_api_roles_until_it_is_granted(
    kernel_database: str,
) -> None:
    async with connected(kernel_database) as connection:
        await connection.execute(
            "create table notes (id bigint generated always as identity primary key);"
            "create function note() returns int language sql as 'select 1';"
        )
        for role in ("anon", "authenticated", "service_role"):
            for privilege in ("select", "insert", "update", "delete", "truncate"):
                has = "select has_table_privilege($1, 'notes', $2)"
                assert not await connection.fetchval(has, role, privilege)
            # PostgreSQL's own default is that everybody may call a function.
            assert await connection.fetchval("select has_function_privilege($1, 'note()', 'execute')", role)
            assert not await connection.fetchval(
                "select has_sequence_privilege($1, 'notes_id_seq', 'usage')", role
            )
        await connection.execute(
            "alter table notes enable row level security; insert into notes default values; "
            "grant select on notes to anon, service_role"
        )
        for role, seen in {"anon": 0, "service_role": 1}.items():
            async with connection.transaction():
                await connection.execute(f"set local role {role}")
                assert await connection.fetchval("select count(*) from notes") == seen


async def test_auth_functions_read_the_claims(kernel_database: str) -> None:
    claims = {"sub": "6f1f5e5c-0000-4000-8000-000000000001", "role": "authenticated", "email": "a@b.c"}
    async with connected(kernel_database) as connection, connection.transaction():
        question = "select auth.uid()::text, auth.role(), auth.email(), auth.jwt()::text"
        assert tuple(await connection.fetchrow(question)) == (None, None, None, None)
        await connection.execute("set local role authenticated")
        await connection.execute("select set_config('request.jwt.claims', $1, true)", json.dumps(claims))
        *fields, whole = await connection.fetchrow(question)
        assert fields == [claims["sub"], claims["role"], claims["email"]]
        assert json.loads(whole) == claims


async def test_realtime_send_stores_a_message_with_an_id(kernel_database: str) -> None:
    async with connected(kernel_database) as connection:
        await connection.execute("""select realtime.send('{"keys": ["a.b"]}', 'wake', 'runtime:x')""")
        row = await connection.fetchrow(
            "select *, tableoid::regclass::text as partition from realtime.messages"
        )
        assert row is not None
        assert json.loads(row["payload"]) == {"keys": ["a.b"], "id": str(row["id"])}
        assert (row["event"], row["topic"], row["extension"], row["private"]) == (
            "wake",
            "runtime:x",
            "broadcast",
            True,
        )
        assert row["partition"] == f"realtime.messages_{row['inserted_at']:%Y_%m_%d}"
        assert await connection.fetchval("select realtime.topic()") is None


async def test_a_broadcast_that_cannot_be_stored_warns_and_fails_nobody(kernel_database: str) -> None:
    warnings: list[str] = []
    admin = kernel_database.replace("postgres:", f"{keys.SUPERUSER}:", 1)
    async with connected(admin) as connection:
        connection.add_log_listener(lambda _, said: warnings.append(said.args[0]))
        async with connection.transaction():
            await connection.execute("set local role supabase_realtime_admin")
            for (name,) in await connection.fetch(
                "select inhrelid::regclass::text from pg_inherits where inhparent = 'realtime.messages'::regclass"
            ):
                await connection.execute(f"drop table {name}")
            await connection.execute("select realtime.send('{}', 'wake', 'x')")
        assert await connection.fetchval("select count(*) from realtime.messages") == 0
        await connection.execute("select realtime.make_message_partitions()")
        await connection.execute("select realtime.make_message_partitions()")
        await connection.execute("select realtime.send('{}', 'wake', 'x')")
        assert await connection.fetchval("select count(*) from realtime.messages") == 1
    assert any(said.startswith("WarnSendingBroadcastMessage: no partition") for said in warnings)


async def test_clients_see_broadcasts_only_by_policy(kernel_database: str) -> None:
    async with connected(kernel_database) as connection, connection.transaction():
        await connection.execute("select realtime.send('{}', 'wake', 'mine')")
        await connection.execute("set local role authenticated")
        assert await connection.fetchval("select count(*) from realtime.messages") == 0
        await connection.execute("reset role")
        # postgres is no superuser, neither the owner nor a member of it, and may do this all the same.
        assert not await connection.fetchval(IS_MEMBER)
        await connection.execute(
            "create policy hear on realtime.messages for select to authenticated using (realtime.topic() = 'mine')"
        )
        await connection.execute("set local role authenticated; set local realtime.topic to 'mine'")
        assert await connection.fetchval("select count(*) from realtime.messages") == 1


async def test_n6_postgres_writes_policies_on_messages_and_owns_nothing_of_realtime(
    kernel_database: str,
) -> None:
    async with connected(kernel_database) as connection:
        await connection.execute("create policy a on realtime.messages for select to anon using (true)")
        await connection.execute("alter policy a on realtime.messages using (false)")
        assert not await connection.fetchval(IS_MEMBER)
        for statement in ("drop policy b on realtime.messages", "drop table realtime.messages",
                          "alter table realtime.messages disable row level security"):  # fmt: skip
            with pytest.raises(asyncpg.PostgresError):
                await connection.execute(statement)
            assert not await connection.fetchval(IS_MEMBER)
        await connection.execute("drop policy a on realtime.messages")
        assert not await connection.fetchval(IS_MEMBER)


async def test_changes_of_a_row_are_broadcast_by_a_trigger(kernel_database: str) -> None:
    async with connected(kernel_database) as connection:
        await connection.execute("""
            create table notes (id int primary key);
            create function tell() returns trigger language plpgsql as $$
            begin
                perform realtime.broadcast_changes('t', 'e', tg_op, tg_table_name, tg_table_schema, new, old);
                return null;
            end $$;
            create trigger tell after insert on notes for each row execute function tell();
            insert into notes values (7);
        """)
        payload = json.loads(await connection.fetchval("select payload from realtime.messages"))
        del payload["id"]
        assert payload == {
            "record": {"id": 7}, "old_record": None, "operation": "INSERT", "table": "notes", "schema": "public",
        }  # fmt: skip


async def test_preparing_twice_changes_nothing(database: str) -> None:
    admin = database.replace("//postgres:", "//supabase_admin:")
    async with connected(admin) as connection:
        await connection.execute("select realtime.send('{}', 'wake', 'x')")
        await connection.execute("alter role anon set statement_timeout to '9s'")
        await prepare_cluster(admin)
        await prepare_database(admin)
        await check_decoding(admin)
        assert await connection.fetchval("select count(*) from realtime.messages") == 1
        setting = await connection.fetchval("select rolconfig from pg_roles where rolname = 'anon'")
        assert setting == ["statement_timeout=9s"]
        await connection.execute("alter role anon set statement_timeout to '3s'")


async def test_the_publication_takes_tables_of_postgres(kernel_database: str) -> None:
    async with connected(kernel_database) as connection:
        await connection.execute("create table notes (id int primary key)")
        await connection.execute("alter publication supabase_realtime add table notes")
        tables = (
            "select array_agg(tablename::text) from pg_publication_tables where pubname = 'supabase_realtime'"
        )
        assert "notes" in await connection.fetchval(tables)
        assert not await connection.fetchval("select rolsuper from pg_roles where rolname = current_user")
