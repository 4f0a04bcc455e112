"""Which migrations are there, and which of them has a database? Applied and recorded as the Supabase CLI does."""

from pathlib import Path

import asyncpg

from runtime.errors import LocalStackError

_LOCAL = Path(__file__).parent


def migrations_folder() -> Path:
    """Return where the migrations are: beside the package in a checkout, inside it in an installed wheel.

    Raises:
        LocalStackError: there are none; the installation is broken.
    """
    for folder in (_LOCAL.parents[1] / "supabase" / "migrations", _LOCAL.parent / "migrations"):
        if any(folder.glob("*.sql")):
            return folder
    raise LocalStackError("The package has lost its migrations: install it again.")


async def bootstrap(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Make a database look as a Supabase database does before any migration. Harmless when it does already.

    Args:
        connection: as a superuser.
    """
    # Two stacks on one server may get here at once, and roles belong to the server.
    await connection.execute("select pg_advisory_lock(hashtext('agent-runtime bootstrap'))")
    try:
        for name in ("roles.sql", "bootstrap.sql"):
            await connection.execute((_LOCAL / name).read_text())
    finally:
        await connection.execute("select pg_advisory_unlock(hashtext('agent-runtime bootstrap'))")


async def migrate(connection: "asyncpg.Connection[asyncpg.Record]") -> list[str]:
    """Apply what is missing, each migration in a transaction of its own, and return the versions applied.

    Args:
        connection: as the role that is to own everything: `postgres`.

    Raises:
        LocalStackError: a migration failed; the database holds those before it.
    """
    done = {
        row["version"]
        for row in await connection.fetch("select version from supabase_migrations.schema_migrations")
    }
    applied: list[str] = []
    for file in sorted(migrations_folder().glob("*.sql")):
        version, _, name = file.stem.partition("_")
        if version in done:
            continue
        text = file.read_text()
        try:
            async with connection.transaction():
                await connection.execute(text)
                await connection.execute(
                    "insert into supabase_migrations.schema_migrations (version, statements, name) "
                    "values ($1, $2, $3)",
                    version,
                    [text],
                    name,
                )
        except asyncpg.PostgresError as error:
            raise LocalStackError(f"Migration {file.name} failed: {error}") from error
        applied.append(version)
    return applied
