"""Access to private topics, found by trying the policies on `realtime.messages`.

As the real server does: rows of that topic are inserted as the owner and looked for as the joining role
(listen), or inserted as that role (send), and everything is rolled back.
"""

import json
from typing import Any, Final

import asyncpg

from runtime.local.gateway.database import Database
from runtime.local.gateway.session_role import MAY_BECOME
from runtime.local.gateway.subscriptions import Identity

_INSERT: Final = "insert into realtime.messages (topic, extension) values ($1, 'broadcast')"
_PROBE: Final = f"{_INSERT}, ($1, 'presence') returning id"
_SEEN: Final = "select true from realtime.messages where id = any ($1) and extension = 'broadcast'"
_SETTINGS: Final = """
select set_config('role', $1, true), set_config('realtime.topic', $2, true),
       set_config('request.jwt.claims', $3, true), set_config('request.jwt.claim.sub', $4, true),
       set_config('request.jwt.claim.role', $1, true), set_config('request.headers', '{}', true)
"""


class MissingPartition(Exception):
    """There is no partition of `realtime.messages` for today, so nothing can be probed or sent."""


class TopicPolicies:
    """The policies of one database.

    Args:
        database: connections of a role that owns `realtime.messages` or is a superuser.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def may_listen(self, topic: str, identity: Identity) -> bool:
        """Whether the identity may receive the broadcasts of this private topic.

        Raises:
            MissingPartition: `realtime.messages` lacks today's partition.
            OSError, asyncpg.PostgresError: the database could not be asked.
        """
        return await self._try(topic, identity, listens=True)

    async def may_send(self, topic: str, identity: Identity) -> bool:
        """Whether the identity may broadcast to this private topic. Raises as `may_listen` does."""
        return await self._try(topic, identity, listens=False)

    async def _try(self, topic: str, identity: Identity, *, listens: bool) -> bool:
        async with self._database.connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                if not await connection.fetchval(MAY_BECOME, identity.role):
                    return False
                ids = [row["id"] for row in await connection.fetch(_PROBE, topic)] if listens else []
                subject = str(json.loads(identity.claims).get("sub") or "")
                await connection.execute(_SETTINGS, identity.role, topic, identity.claims, subject)
                if listens:
                    return bool(await connection.fetchval(_SEEN, ids))
                await connection.execute(_INSERT, topic)
            except asyncpg.CheckViolationError as error:
                raise MissingPartition(str(error)) from error
            except (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidParameterValueError):
                # A policy refuses, the role has no grant, or there is no such role.
                return False
            finally:
                await transaction.rollback()
        return True


def identity_of(claims: dict[str, Any]) -> Identity:
    """Return the identity of the bearer of these claims."""
    return Identity(str(claims["role"]), json.dumps(claims, sort_keys=True, ensure_ascii=False))
