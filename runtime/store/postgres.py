"""The store over a direct connection, through asyncpg: the fast path."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import anyio
from asyncpg import exceptions as pg

from runtime.connection.addresses import DatabaseAddress
from runtime.connection.database import entry_of
from runtime.connection.pooler import is_transaction_pooled
from runtime.connection.project import is_on_this_machine
from runtime.encoding.json import decode
from runtime.errors import Refused, SettingsError, StoreError, StoreUnavailable, Unauthorized
from runtime.store import Store, persist
from runtime.store.functions import statement_of
from runtime.store.pool import Connection, Pool
from runtime.store.sqlstates import UNFIT, fault_of
from runtime.store.transaction import PostgresTransaction

_log = logging.getLogger("runtime.store")

_LOST_STATEMENTS = (pg.DuplicatePreparedStatementError, pg.InvalidSQLStatementNameError)
_AWAY = (OSError, TimeoutError, pg.InterfaceError, pg.InternalClientError)
_ROLE_CURE = "Use the role postgres or service_role in DATABASE_URL."
_RELEASE_SECONDS = 1.0
# As a statement: poolers refuse or ignore it among a connection's startup parameters.
_ISOLATION = "set default_transaction_isolation to 'read committed'"


class PostgresStore(Store):
    """Messages over a PostgreSQL connection pool.

    Args:
        url: a `postgresql://` URL; through a transaction pooler no prepared statements are used.
        connections: how many connections at most.
        request_seconds: how long one request may take.
        source: the variable that names the database, with its source, for errors.

    Raises:
        SettingsError: `url` is no PostgreSQL URL.
    """

    def __init__(
        self, url: str, *, connections: int = 4, request_seconds: float = 15, source: str | None = None
    ) -> None:
        self._source = source
        self._address = DatabaseAddress.parse(url)
        self._connections = connections
        self._request_seconds = request_seconds
        self._pool: Pool | None = None
        self._retired: Pool | None = None
        self._opening = anyio.Lock()
        self._prepares = True
        if self._address.names_pooler:
            self._stop_preparing("the URL says so")

    def __repr__(self) -> str:
        return f"<PostgresStore at {self.place}>"

    @property
    def place(self) -> str:
        """The database's host and port."""
        return self._address.place

    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        """Call one SQL function once; see `Store.call`."""
        statement = statement_of(function, tuple(arguments))
        pool = self._pool or await self._open()
        try:
            return decode(await self._fetch(pool, statement, arguments))
        except StoreError as error:
            if not isinstance(error.__cause__, _LOST_STATEMENTS):
                raise
        # Nothing was executed: a transaction pooler was put in between later, or was not detected.
        self._stop_preparing("it lost a prepared statement")
        if self._pool is pool:
            # Not closed yet: other requests may still use or await its connections.
            self._pool, self._retired = None, pool
        return decode(await self._fetch(await self._open(), statement, arguments))

    async def begin(self, *, idle_seconds: float) -> PostgresTransaction:
        """Begin a transaction for statements of the caller's own.

        Args:
            idle_seconds: so long it may stand still; then the database ends it, as for a process that is frozen.

        Raises:
            StoreUnavailable: the database was not reached.
            StoreError: each connection was in use for too long.
            Unauthorized: the database refused the connection.
        """
        return await persist(lambda: self._begin(idle_seconds), repeatable=True, random=self._random)

    async def _begin(self, idle_seconds: float) -> PostgresTransaction:
        pool = self._pool or await self._open()
        try:
            with self._entry_errors():
                connection = await pool.acquire(seconds=self._request_seconds)
        except StoreUnavailable as error:
            if not pool.is_exhausted:
                raise
            raise StoreError(
                f"All {self._connections} connections for transactions were in use for {self._request_seconds:g} s: "
                "keep what does not belong into a transaction out of it, such as calls of other programs.",
                nature="slow",
            ) from error
        begun = PostgresTransaction(connection, pool, self._request_seconds, keeps_session=self._prepares)
        try:
            await begun.begin(idle_seconds)
        except (pg.PostgresError, *_AWAY) as error:
            begun.drop()
            self._complain(error)
        except BaseException:
            begun.drop()
            raise
        return begun

    def complain(self, error: Exception) -> NoReturn:
        """Raise the error of a statement of the runtime's own in such a transaction as the store's own.

        Raises:
            StoreError: always.
        """
        self._complain(error)

    async def close(self) -> None:
        """Close the pool, at once if it does not close by itself within a second."""
        pools, self._pool, self._retired = (self._pool, self._retired), None, None
        with anyio.CancelScope(shield=True):
            for pool in filter(None, pools):
                await pool.close(seconds=_RELEASE_SECONDS)

    async def _fetch(self, pool: Pool, statement: str, arguments: Mapping[str, Any]) -> str:
        connection = pool.acquire_idle()
        if connection is None:
            with self._entry_errors():
                connection = await pool.acquire(seconds=self._request_seconds)
        is_fit = False
        try:
            answer = await self._ask(connection, statement, arguments.values())
            is_fit = True
            # SQL's null counts as JSON's null, as in PostgREST.
            return "null" if answer is None else answer
        except BaseException as error:
            is_fit = await self._recover(connection, error)
            raise
        finally:
            pool.give_back(connection, is_fit=is_fit)

    async def _ask(self, connection: Connection, statement: str, arguments: Iterable[Any]) -> str | None:
        answer: str | None
        try:
            if self._prepares:
                return await connection.fetchval(statement, *arguments, timeout=self._request_seconds)  # type: ignore[no-any-return]
            # asyncpg sends even an unnamed statement in two parts; a transaction keeps them together.
            with anyio.fail_after(self._request_seconds):
                # Overrides the default of the role or the database.
                await connection.execute("begin isolation level read committed")
                answer = await connection.fetchval(statement, *arguments)
                await connection.execute("commit")
                return answer
        except (pg.PostgresError, *_AWAY) as error:
            self._complain(error)

    async def _recover(self, connection: Connection, error: BaseException) -> bool:
        """Return whether a connection can be reused after a failed or cancelled request."""
        cause = error.__cause__ if isinstance(error, StoreError) else error
        has_answered = isinstance(cause, pg.PostgresError)
        if (getattr(cause, "sqlstate", None) or "").startswith(UNFIT):
            # The server changed its role or is shutting down: another connection finds its successor.
            return False
        if has_answered and self._prepares:
            return True
        if has_answered or isinstance(cause, (TimeoutError, anyio.get_cancelled_exc_class())):
            # asyncpg is cancelling the query on the server, and this statement waits until it has.
            with anyio.move_on_after(_RELEASE_SECONDS, shield=True), suppress(*_AWAY, pg.PostgresError):
                await connection.execute("select" if self._prepares else "rollback")
                return True
        return False

    async def _open(self) -> Pool:
        async with self._opening:
            if self._pool is None:
                if self._prepares:
                    with self._entry_errors():
                        is_pooled = await is_transaction_pooled(
                            self._address.url, connect_seconds=self._request_seconds
                        )
                    if is_pooled:
                        self._stop_preparing("two connections met in one server process")
                self._pool = Pool(
                    self._address.url,
                    limit=self._connections,
                    first=_ISOLATION if self._prepares else None,
                    statement_cache_size=100 if self._prepares else 0,
                    server_settings={"application_name": "agent-runtime"},
                )
            return self._pool

    def _stop_preparing(self, why: str) -> None:
        if self._prepares:
            self._prepares = False
            _log.info(
                "%s is a transaction pooler (%s): working without prepared statements and without NOTIFY. A direct "
                "connection or a session pooler (port 5432 at Supabase) is faster.",
                self.place,
                why,
            )

    @contextmanager
    def _entry_errors(self) -> Iterator[None]:
        """Map errors of opening a connection: no request was sent yet."""
        try:
            yield
        except (pg.PostgresError, *_AWAY) as error:
            code = getattr(error, "sqlstate", None)
            text = _text_of(error)
            if isinstance(error, pg.ClientConfigurationError):
                raise SettingsError(
                    f"The driver cannot use DATABASE_URL, or a variable PG… beside it: {text}."
                ) from None
            if entry_of(code, text) == "credentials":
                raise Unauthorized(
                    f"{self._name} refused the connection: {text}. Check the user (postgres.<ref> through Supabase's "
                    "pooler), the password and the database name in DATABASE_URL, and whether the server accepts this "
                    "machine's address, and only over SSL.",
                    code=code,
                ) from error
            raise StoreUnavailable(
                f"{self._name} could not be reached: {text}.{self._hint(error)}",
                code=code,
                maybe_applied=False,
            ) from error

    def _complain(self, error: Exception) -> NoReturn:
        """Map an error of a request that may have reached the database."""
        if isinstance(error, pg.DataError) and getattr(error, "severity", None) is None:
            # asyncpg's own error, before anything was sent; its text repeats the value.
            raise Refused("An argument does not fit its type: a number too large?") from None
        if isinstance(error, pg.PostgresError) and not isinstance(error, pg.PostgresConnectionError):
            code = error.sqlstate or "XX000"
            raise fault_of(code, _text_of(error), place=self._name, cure=_ROLE_CURE) from error
        raise StoreUnavailable(
            f"{self._name} did not answer: {_text_of(error)}. Whether the request took effect is not known.",
            code=getattr(error, "sqlstate", None),
            nature="slow" if isinstance(error, TimeoutError) else "garbled",
        ) from error

    @property
    def _name(self) -> str:
        return f"The database at {self.place}"

    def _hint(self, error: BaseException) -> str:
        if isinstance(error, OSError) and self.place.endswith(".supabase.co:5432"):
            return (
                " Direct connections need IPv6, and a paused project has none: use the session pooler's URL, or resume "
                "the project in the dashboard."
            )
        said = f" The address comes from {self._source}." if self._source else ""
        if isinstance(error, OSError) and is_on_this_machine(f"postgresql://{self.place}"):
            return (
                " Nothing listens there: start the local stack with `runtime local start`, or correct DATABASE_URL."
                f"{said}"
            )
        if isinstance(error, OSError):
            return f" Is it running, and is DATABASE_URL right?{said}"
        return said


def _text_of(error: BaseException) -> str:
    """Return the text of the database or the driver, with its hint."""
    text = str(error.args[0] if isinstance(error, pg.PostgresError) and error.args else error).rstrip(".")
    hint = getattr(error, "hint", None)
    return f"{text or type(error).__name__}. {hint}".rstrip(".") if hint else text or type(error).__name__
