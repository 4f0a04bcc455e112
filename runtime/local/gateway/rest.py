"""The routes at /rest/v1: RPC, and simple requests on tables, as in PostgREST."""

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import asyncpg
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from runtime.local.gateway import tables
from runtime.local.gateway.catalog import Catalog, literal
from runtime.local.gateway.postgrest_errors import Problem, Unserved, database_away, database_problem
from runtime.local.gateway.preferences import Preferences
from runtime.local.gateway.query import parse_query
from runtime.local.gateway.session_role import lower
from runtime.local.gateway.settings import GatewaySettings
from runtime.local.gateway.tables import MAX_ROWS, Statement
from runtime.local.gateway.tokens import Claims, TokenError, TokenExpired, Tokens
from runtime.local.keys import API_USER

_JSON = "application/json; charset=utf-8"
_ONE_ROW = "application/vnd.pgrst.object+json; charset=utf-8"
_SCHEMAS = ("public", "graphql_public")
Row: TypeAlias = Any
"""One row of a statement: its JSON text, and how many rows it holds."""

# Sets what PostgREST sets for a transaction, and calls a function in it: in one round trip instead of three. Private to
# a connection, so the database looks as it would without us.
_MAKE_ANSWER = """
create function pg_temp.answer(
    statement text, argument json, names text[], settings text[], out body text, out rows bigint
) language plpgsql as $$
begin
    perform set_config(s.name, s.value, true) from unnest(names, settings) as s (name, value);
    execute statement into body, rows using argument;
end
$$
"""
_ANSWER = "select body, rows from pg_temp.answer($1, $2::json, $3, $4)"
_AWAY = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InternalClientError,
)


class RestApi:
    """The REST side of the gateway: put `routes()` into the application and close it in the end.

    Args:
        settings: where the database is.
        tokens: who may come in.
    """

    def __init__(self, settings: GatewaySettings, tokens: Tokens) -> None:
        self._settings = settings
        self._tokens = tokens
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._catalog: Catalog | None = None

    def routes(self) -> Sequence[BaseRoute]:
        """RPC and tables."""
        return [
            Route("/rest/v1/rpc/{name}", self._answer_rpc, methods=["POST", "GET"]),
            Route("/rest/v1/{name}", self._answer_table, methods=["GET", "POST", "PATCH", "DELETE", "PUT"]),
        ]

    async def is_up(self) -> bool:
        """Whether the database answers."""
        try:
            async with (await self._open()).acquire() as connection:
                await connection.fetchval("select 1")
        except (*_AWAY, asyncpg.PostgresError):
            return False
        return True

    def close(self) -> None:
        """Drop all connections at once."""
        if self._pool is not None:
            self._pool.terminate()

    async def _open(self) -> "asyncpg.Pool[asyncpg.Record]":
        if self._pool is None:
            self._pool = asyncpg.create_pool(
                self._settings.database_url.get_secret_value(),
                min_size=0,
                max_size=self._settings.connections,
                max_inactive_connection_lifetime=0,
                timeout=10,
                # Everything is set for one transaction only, so there is nothing to reset after it.
                reset=_leave_as_it_is,
                init=_make_ready,
                server_settings={"application_name": "agent-runtime gateway, rest"},
            )
        pool = await self._pool
        assert pool is not None
        return pool

    async def _answer_rpc(self, request: Request) -> Response:
        return await self._answer(request, self._rpc)

    async def _answer_table(self, request: Request) -> Response:
        return await self._answer(request, self._table)

    async def _answer(self, request: Request, serve: Any) -> Response:
        """Let the caller in, serve it in one transaction as its role, and put errors into PostgREST's words."""
        role = "anon"
        try:
            claims = self._claims(request)
            role = str(claims["role"])
            if role == "none":
                # PostgreSQL's word for giving a role up, and no role.
                raise Problem(401, "22023", 'role "none" does not exist')
            _check_profile(request)
            body = _decoded(await request.body())
            answer: Response = await serve(request, claims, body)
            return answer
        except Problem as problem:
            return problem.response()
        except ValueError as error:
            # No possible value of PostgreSQL: asyncpg raises before it sends anything.
            return Problem(400, "22023", f"invalid value: {error}").response()
        except _AWAY:
            return database_away()
        except asyncpg.PostgresError as error:
            return database_problem(error, role)

    def _claims(self, request: Request) -> Claims:
        """Whose request this is: the bearer's, or else the key's."""
        key = request.headers.get("apikey") or request.query_params.get("apikey")
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        token = bearer if scheme.lower() == "bearer" and bearer else key
        if not key and not token:
            raise _GatewayRefused(
                "No API key found in request", "No `apikey` request header or url param was found."
            )
        if key:
            try:
                self._tokens.verify(key)
            except TokenError:
                raise _GatewayRefused(
                    "Invalid API key", "Double check your Supabase `anon` or `service_role` API key."
                ) from None
        try:
            return self._tokens.verify(token or "")
        except TokenExpired:
            raise Problem(401, "PGRST303", "JWT expired") from None
        except TokenError:
            raise Problem(401, "PGRST301", "No suitable key or wrong key type") from None

    async def _rpc(self, request: Request, claims: Claims, body: str) -> Response:
        name, preferences = request.path_params["name"], Preferences.read(request.headers)
        if preferences.wants_count:
            raise Unserved("counting a function's rows")
        pairs, is_read = _pairs(request), request.method != "POST"
        if is_read:
            body = json.dumps(dict(pairs))
        elif pairs:
            raise Unserved("a filter, order, limit or select on a function's rows")
        given = _argument_names(body)
        function = (await self._known()).function(name, given)
        if function is None:
            function = (await self._known(anew=True)).function(name, given)
        if function is None:
            raise _no_function(name, given)
        statement = Statement(function.statement(given, MAX_ROWS), [body or "{}"])
        if preferences.wants_one:
            row = await self._run(claims, request, statement, preferences, read_only=is_read)
        else:
            row = await self._run_at_once(claims, request, statement, read_only=is_read)
        if function.shape == "void":
            return Response(status_code=204)
        text = "null" if row["body"] is None else row["body"]
        if preferences.wants_one and function.shape == "rows":
            text = text.strip()[1:-1]
        return Response(text, media_type=_ONE_ROW if preferences.wants_one else _JSON)

    async def _table(self, request: Request, claims: Claims, body: str) -> Response:
        name, preferences = request.path_params["name"], Preferences.read(request.headers)
        table = (await self._known()).tables.get(name) or (await self._known(anew=True)).tables.get(name)
        if table is None:
            raise Problem(404, "PGRST205", f"Could not find the table 'public.{name}' in the schema cache")
        pairs, method = _pairs(request), request.method
        if method in ("GET", "HEAD"):
            query = parse_query(pairs, table)
            row = await self._run(
                claims, request, tables.select(query, table, preferences), preferences, read_only=True
            )
            return _page(row, query.offset, preferences)
        if method == "POST":
            statement = tables.insert(pairs, table, body, preferences)
        elif method == "PATCH":
            statement = tables.update(pairs, table, body, preferences)
        elif method == "DELETE":
            statement = tables.delete(pairs, table, preferences)
        else:
            raise Unserved("PUT")
        row = await self._run(claims, request, statement, preferences)
        return _written(row, method, preferences)

    async def _run(
        self,
        claims: Claims,
        request: Request,
        statement: Statement,
        preferences: Preferences,
        *,
        read_only: bool = False,
    ) -> Row:
        """Run one statement in a transaction of its own as the caller's role, and return its one row."""
        context = _context(claims, request)
        settings = ", ".join(
            f"set_config('{name}', {literal(value)}, true)" for name, value in context.items()
        )
        async with (await self._open()).acquire() as connection:
            # Begin and settings in one message: every round trip is paid by every request.
            await connection.execute(f"begin{' read only' if read_only else ''}; select {settings}")
            try:
                row: Row = await connection.fetchrow(statement.sql, *statement.values)
                if preferences.wants_one and row["rows"] != 1 and (read_only or preferences.wants_rows):
                    raise _not_one(row["rows"])
                await connection.execute("commit")
            except _AWAY as error:
                raise _lost() from error
            except BaseException:
                if not connection.is_closed():
                    await connection.execute("rollback")
                raise
            return row

    async def _run_at_once(
        self, claims: Claims, request: Request, statement: Statement, *, read_only: bool
    ) -> Row:
        """The same in one round trip: for a statement with one value that nothing is to be asked of but its row."""
        context = _context(claims, request) | ({"transaction_read_only": "on"} if read_only else {})
        async with (await self._open()).acquire() as connection:
            try:
                return await connection.fetchrow(
                    _ANSWER, statement.sql, *statement.values, list(context), list(context.values())
                )
            except _AWAY as error:
                raise _lost() from error

    async def _known(self, *, anew: bool = False) -> Catalog:
        if self._catalog is None or anew:
            async with (await self._open()).acquire() as connection:
                self._catalog = await Catalog.read(connection)
        return self._catalog


async def _make_ready(connection: Any) -> None:
    """Remove a connection's superuser rights, and prepare its function calls."""
    await lower(connection, API_USER)
    await connection.execute(_MAKE_ANSWER)


async def _leave_as_it_is(_: object) -> None:
    """Reset nothing."""


class _GatewayRefused(Problem):
    """The refusal by the API gateway in front of PostgREST."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(401, "", message, hint=hint)

    def response(self) -> JSONResponse:
        return JSONResponse({"message": self.body["message"], "hint": self.body["hint"]}, self.status)


def _context(claims: Claims, request: Request) -> dict[str, str]:
    """Return the settings of PostgREST for the transaction of a request."""
    return {
        "role": str(claims["role"]),
        "request.jwt.claims": json.dumps(claims),
        "request.method": request.method,
        "request.path": request.url.path,
    }


def _lost() -> Problem:
    """Return the answer for a lost connection; it must not deny that the request was committed."""
    return Problem(503, "PGRST001", "Database client error. Retrying the connection.")


def _check_profile(request: Request) -> None:
    name = "accept-profile" if request.method in ("GET", "HEAD") else "content-profile"
    schema = request.headers.get(name, "public")
    if schema not in _SCHEMAS:
        raise Problem(
            406,
            "PGRST106",
            f"Invalid schema: {schema}",
            hint=f"Only the following schemas are exposed: {', '.join(_SCHEMAS)}",
        )
    if schema != "public":
        raise Unserved(f"the schema {schema}")


def _decoded(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise Problem(400, "PGRST102", "Empty or invalid json") from None


def _argument_names(body: str) -> frozenset[str]:
    """Return the names in the outermost object, without keeping its values, which may be megabytes."""
    if not body.strip():
        return frozenset()
    try:
        # Numbers stay text: Python refuses more than 4,300 digits, and their values are not needed.
        given = json.loads(body, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        raise Problem(400, "PGRST102", "Empty or invalid json") from None
    if not isinstance(given, dict):
        raise Problem(400, "PGRST102", "All object keys must match")
    return frozenset(given)


def _no_function(name: str, given: frozenset[str]) -> Problem:
    names = ", ".join(sorted(given))
    what = (
        f"with parameters {names}"
        if len(given) > 1
        else f"with parameter {names}"
        if given
        else "without parameters"
    )
    call = f"public.{name}({names})" if given else f"public.{name}"
    return Problem(
        404,
        "PGRST202",
        f"Could not find the function {call} {'' if given else 'without parameters '}in the schema cache",
        details=f"Searched for the function public.{name} {what}, but no matches were found in the schema cache.",
    )


def _pairs(request: Request) -> list[tuple[str, str]]:
    return [(name, value) for name, value in request.query_params.multi_items() if name != "apikey"]


def _page(row: Row, offset: int, preferences: Preferences) -> Response:
    """The answer to a read: which rows these are, of how many."""
    rows, total = row["rows"], row["total"]
    if total is not None and offset > total:
        raise Problem(
            416,
            "PGRST103",
            "Requested range not satisfiable",
            details=f"An offset of {offset} was requested, but there are only {total} rows.",
        )
    shown = f"{offset}-{offset + rows - 1}" if rows else "*"
    status = 206 if total is not None and rows < total else 200
    return _rows(row["body"], status, shown, total, preferences)


def _written(row: Row, method: str, preferences: Preferences) -> Response:
    """The answer to a write, with its rows where they are wanted."""
    shown = f"0-{row['rows'] - 1}" if method == "PATCH" and row["rows"] else "*"
    if preferences.wants_rows:
        status = 201 if method == "POST" else 200
        return _rows(row["body"], status, shown, row["total"], preferences)
    headers = _headers(shown, row["total"], preferences)
    return Response(status_code=201 if method == "POST" else 204, headers=headers)


def _rows(body: str, status: int, shown: str, total: int | None, preferences: Preferences) -> Response:
    headers = _headers(shown, total, preferences)
    if preferences.wants_one:
        return Response(body.strip()[1:-1], status, headers, media_type=_ONE_ROW)
    return Response(body, status, headers, media_type=_JSON)


def _headers(shown: str, total: int | None, preferences: Preferences) -> dict[str, str]:
    headers = {"content-range": f"{shown}/{'*' if total is None else total}"}
    if preferences.applied:
        headers["preference-applied"] = ", ".join(preferences.applied)
    return headers


def _not_one(rows: int) -> Problem:
    details = f"The result contains {rows} rows"
    return Problem(406, "PGRST116", "Cannot coerce the result to a single JSON object", details=details)
