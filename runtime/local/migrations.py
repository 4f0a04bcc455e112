"""The migrations, applied in order, each in one transaction, recorded as the Supabase CLI does."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from runtime.errors import LocalStackError
from runtime.local.bootstrap import Connection, connected

_FILE_NAME: Final = re.compile(r"([0-9]+)_(.*)\.sql")

_HISTORY: Final = """
create schema if not exists supabase_migrations;
create table if not exists supabase_migrations.schema_migrations (version text not null primary key);
alter table supabase_migrations.schema_migrations add column if not exists statements text[];
alter table supabase_migrations.schema_migrations add column if not exists name text;
"""

_TOKEN: Final = re.compile(
    r"""
    (?P<end> ; )
    | -- [^\n]*                                     # comment
    | (?P<comment> /\* )                            # comment that may hold others
    | [eE] ' (?: [^'\\] | \\. | '' )* '             # string with escapes
    | ' (?: [^'] | '' )* '                          # string
    | " (?: [^"] | "" )* "                          # quoted name
    | (?P<dollar> \$ (?: [^\W\d] \w* )? \$ )        # dollar-quoted string
    | \w [\w$]*                                     # word: a dollar within one quotes nothing
    | [^\w\s]                                       # anything else
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `supabase/migrations`.

    Attributes:
        version: the digits its name begins with; the order is that of the versions as text, as the CLI has it.
        name: the rest of its name.
        sql: its text.
    """

    version: str
    name: str
    sql: str

    @property
    def file_name(self) -> str:
        """The name of the file it came from."""
        return f"{self.version}_{self.name}.sql"


def migrations_folder() -> Path:
    """Where this package's own migrations are: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "supabase" / "migrations"


def read_migrations(folder: Path) -> list[Migration]:
    """The migrations in a folder, in the order they are applied. A file of another name is no migration."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        if matched := _FILE_NAME.fullmatch(path.name):
            found.append(Migration(matched[1], matched[2], path.read_text(encoding="utf-8")))
    return found


async def apply_migrations(url: str, migrations: Sequence[Migration]) -> list[Migration]:
    """Apply those that are not recorded yet, as the role postgres, and record them.

    Args:
        url: the database, as a superuser.
        migrations: all there are, in order.

    Returns:
        Those that were applied now.

    Raises:
        LocalStackError: one failed; it names the file and the line. Those before it stay applied.
    """
    async with connected(url) as connection:
        # Who migrates a hosted project is no superuser; what needs one should fail here too.
        await connection.execute("set client_min_messages to warning")
        await connection.execute('set role postgres; set search_path to "$user", public, extensions')
        await connection.execute(_HISTORY)
        rows = await connection.fetch("select version from supabase_migrations.schema_migrations")
        known = {row["version"] for row in rows}
        missing = [migration for migration in migrations if migration.version not in known]
        for migration in missing:
            await _apply(connection, migration)
    return missing


async def _apply(connection: Connection, migration: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute(migration.sql)
            # The migration may have changed these for itself.
            await connection.execute('set role postgres; set search_path to "$user", public, extensions')
            await connection.execute(
                "insert into supabase_migrations.schema_migrations (version, name, statements) values ($1, $2, $3)",
                migration.version,
                migration.name,
                split_statements(migration.sql),
            )
    except asyncpg.PostgresError as error:
        raise LocalStackError(f"{migration.file_name}{_line(migration.sql, error)}: {error}") from error


def _line(sql: str, error: asyncpg.PostgresError) -> str:
    position = getattr(error, "position", None)
    if position is None:
        return ""
    return f", line {sql.count(chr(10), 0, int(position) - 1) + 1}"


def split_statements(sql: str) -> list[str]:
    """The statements of a script, trimmed and without their semicolons, comments kept."""
    statements = []
    begin = position = 0
    while matched := _TOKEN.search(sql, position):
        position = matched.end()
        if matched["end"]:
            statements.append(sql[begin : matched.start()])
            begin = position
        elif matched["comment"]:
            position = _comment_end(sql, position)
        elif tag := matched["dollar"]:
            end = sql.find(tag, position)
            position = len(sql) if end < 0 else end + len(tag)
    statements.append(sql[begin:])
    return [trimmed for statement in statements if (trimmed := statement.strip())]


def _comment_end(sql: str, position: int) -> int:
    depth = 1
    for mark in re.compile(r"/\*|\*/").finditer(sql, position):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(sql)
