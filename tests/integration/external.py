"""Which stack do these tests run against? Their own, or the one on this machine that the environment names.

SUPABASE_URL, SUPABASE_SERVICE_ROLE_KEY and DATABASE_URL (as the role postgres) name it, with every migration applied;
ANON_KEY, PUBLISHABLE_KEY, SECRET_KEY and JWT_SECRET, where they are not the CLI's own. **Its stream is emptied.**
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest

from runtime.local import keys

_NAMES: Final = ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "DATABASE_URL")
_HERE: Final = ("127.0.0.1", "localhost", "::1")
# The kernel's own rows stay: a table of one row (with the column `only_row`) is written by the migrations, and without
# its row in `runtime.routing` nothing is ever fanned out again.
_EMPTY: Final = """
do $$
begin
    perform set_config('lock_timeout', '30s', true);
    execute (
        select 'truncate ' || string_agg(c.oid::regclass::text, ', ') from pg_class c
        where c.relkind = 'r'
          and (c.relnamespace = 'runtime'::regnamespace or c.oid = 'public.consciousness_stream'::regclass)
          and not exists (
              select from pg_attribute a where a.attrelid = c.oid and a.attname = 'only_row' and not a.attisdropped
          )
    );
end
$$
"""
# A test may hurry the kernel on; whose stack it is wants its own values back.
_RESTORE: Final = """
with gone as (delete from runtime.policy returning 1)
insert into runtime.policy select p.* from gone, jsonb_populate_record(null::runtime.policy, $1::text::jsonb) p
"""


@dataclass(frozen=True)
class ExternalStack:
    """A stack that somebody else runs; it has what the tests' own has, but for what starts and stops it."""

    api_url: str
    service_role_key: str
    db_url: str
    anon_key: str = keys.ANON_KEY
    publishable_key: str = keys.PUBLISHABLE_KEY
    secret_key: str = keys.SECRET_KEY
    jwt_secret: str = keys.JWT_SECRET

    @classmethod
    def named_by(cls, environment: Mapping[str, str] = os.environ) -> Self | None:
        """The stack that the environment names, or None."""
        given = [environment.get(name) for name in _NAMES]
        if not all(given):
            return None
        for name in ("SUPABASE_URL", "DATABASE_URL"):
            if (host := urlsplit(environment[name]).hostname) not in _HERE:
                raise pytest.UsageError(
                    f"{name} names {host}, and these tests empty the stream: unset it, or name a stack on this machine."
                )
        fields = ("anon_key", "publishable_key", "secret_key", "jwt_secret")
        more = {name: environment[name.upper()] for name in fields if environment.get(name.upper())}
        return cls(*(environment[name] for name in _NAMES), **more)

    @property
    def admin_url(self) -> str:
        """The role postgres owns everything of the runtime; none of these tests needs more."""
        return self.db_url

    def empty(self) -> None:
        """Leave no message, subscription or run of an earlier test."""
        anyio.run(self._execute, _EMPTY)

    @contextmanager
    def lent(self) -> Iterator[Self]:
        """Lend the stack to one test: empty before and afterwards, and its policy as the test found it."""
        self.empty()
        (policy,) = anyio.run(self._execute, "select to_jsonb(p)::text as row from runtime.policy p")
        try:
            yield self
        finally:
            self.empty()
            anyio.run(self._execute, _RESTORE, policy["row"])

    async def _execute(self, sql: str, *values: str) -> "list[asyncpg.Record]":
        connection = await asyncpg.connect(self.db_url)
        try:
            return await connection.fetch(sql, *values)
        finally:
            await connection.close()
