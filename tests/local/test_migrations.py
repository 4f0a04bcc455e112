"""Migrations: which there are, how they are split for the record, and what happens when one fails."""

import pytest

from runtime.errors import LocalStackError
from runtime.local.bootstrap import connected
from runtime.local.migrations import (
    Migration,
    apply_migrations,
    migrations_folder,
    read_migrations,
    split_statements,
)


@pytest.mark.parametrize(
    ("script", "statements"),
    [
        ("", []),
        (" ; ;\n", []),
        ("select 1; select 2", ["select 1", "select 2"]),
        ("select ';', 'it''s;', E'\\';'; select 2", ["select ';', 'it''s;', E'\\';'", "select 2"]),
        ('select 1 as ";"";"; select 2', ['select 1 as ";"";"', "select 2"]),
        ("-- one; two\nselect 1;\n-- end;", ["-- one; two\nselect 1", "-- end;"]),
        ("/* a; /* b; */ c; */ select 1; select 2", ["/* a; /* b; */ c; */ select 1", "select 2"]),
        ("do $$ begin; end $$; select 2", ["do $$ begin; end $$", "select 2"]),
        ("do $a$ x; $$ y; $b$ $a$; select 2", ["do $a$ x; $$ y; $b$ $a$", "select 2"]),
        ("select a$b$c; select $1;", ["select a$b$c", "select $1"]),
        ("select '\\'; select 2", ["select '\\'", "select 2"]),
        ("do $$ never closed; ", ["do $$ never closed;"]),
    ],
)
def test_scripts_are_split_where_postgres_would(script: str, statements: list[str]) -> None:
    assert split_statements(script) == statements


def test_our_own_are_found_in_order() -> None:
    found = read_migrations(migrations_folder())
    assert found
    assert [migration.version for migration in found] == sorted(migration.version for migration in found)
    assert all(split_statements(migration.sql) for migration in found)


@pytest.mark.anyio
async def test_they_are_recorded_as_the_cli_records_them(kernel_database: str) -> None:
    admin = kernel_database.replace("//postgres:", "//supabase_admin:")
    first = Migration(
        "20300101000000", "make_notes", "create table notes (id int);\n\ninsert into notes values (1);\n"
    )
    assert await apply_migrations(admin, [first]) == [first]
    assert await apply_migrations(admin, [first]) == []
    async with connected(kernel_database) as connection:
        row = await connection.fetchrow(
            "select * from supabase_migrations.schema_migrations where version = '20300101000000'"
        )
        assert row is not None
        assert dict(row) == {
            "version": "20300101000000",
            "statements": ["create table notes (id int)", "insert into notes values (1)"],
            "name": "make_notes",
        }
        assert (
            await connection.fetchval("select tableowner from pg_tables where tablename = 'notes'")
            == "postgres"
        )


@pytest.mark.anyio
async def test_one_that_fails_is_named_with_its_line_and_leaves_nothing(database: str) -> None:
    admin = database.replace("//postgres:", "//supabase_admin:")
    good = Migration("20300101000000", "good", "create table good (id int)")
    bad = Migration("20300101000001", "bad", "create table bad (id int);\n\nselect nonsense\nfrom good;")
    with pytest.raises(
        LocalStackError, match=r'20300101000001_bad\.sql, line 3: column "nonsense" does not exist'
    ):
        await apply_migrations(admin, [good, bad])
    async with connected(database) as connection:
        assert await connection.fetchval(
            "select to_regclass('good') is not null and to_regclass('bad') is null"
        )
        versions = (
            "select array_agg(version) from supabase_migrations.schema_migrations where version > '2030'"
        )
        assert await connection.fetchval(versions) == [good.version]


@pytest.mark.anyio
async def test_they_run_without_the_power_of_a_superuser(database: str) -> None:
    admin = database.replace("//postgres:", "//supabase_admin:")
    greedy = Migration("20300101000000", "greedy", "create function f() returns int language c as 'x', 'y'")
    with pytest.raises(LocalStackError, match="permission denied"):
        await apply_migrations(admin, [greedy])
