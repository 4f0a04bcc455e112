"""Which stack do these tests run against? Their own, or the one on this machine that the environment names.

SUPABASE_URL, SUPABASE_SERVICE_ROLE_KEY and DATABASE_URL (as the role postgres) name it, with every migration applied;
ANON_KEY, PUBLISHABLE_KEY, SECRET_KEY and JWT_SECRET, where they are not the CLI's own. **Its stream is emptied.**
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest

from runtime.local import keys

_NAMES: Final = ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "DATABASE_URL")
_HERE: Final = ("127.0.0.1", "localhost", "::1")
_EMPTY: Final = """
do $$
begin
    execute (
        select 'truncate ' || string_agg(c.oid::regclass::text, ', ') from pg_class c
        where c.relkind = 'r' and c.oid <> 'runtime.policy'::regclass
          and (c.relnamespace = 'runtime'::regnamespace or c.oid = 'public.consciousness_stream'::regclass)
    );
end
$$
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
        anyio.run(self._empty)

    async def _empty(self) -> None:
        connection = await asyncpg.connect(self.db_url)
        try:
            await connection.execute(_EMPTY)
        finally:
            await connection.close()
