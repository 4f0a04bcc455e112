"""What does the gateway answer at /rest/v1? RPC, and simple requests on tables, as PostgREST does."""

import json
from collections.abc import Sequence
from typing import Any

import asyncpg
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from runtime.local.gateway.catalog import Catalog, quoted
from runtime.local.gateway.problems import Problem, database_away, database_problem
from runtime.local.gateway.query import parse_query
from runtime.local.gateway.settings import GatewaySettings
from runtime.local.gateway.tokens import Claims, TokenError, TokenExpired, Tokens

_JSON = "application/json; charset=utf-8"
_ONE_ROW = "application/vnd.pgrst.object+json"
_SCHEMAS = ("public", "graphql_public")
_AWAY = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.TooManyConnectionsError,
)


class Rest:
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
            Route("/rest/v1/{name}", self._answer_table, methods=["GET", "HEAD", "POST", "PATCH", "DELETE"]),
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
            _check_profile(request)
            body = (await request.body()).decode()
            answer: Response = await serve(request, claims, body)
            return answer
        except Problem as problem:
            return problem.response()
        except _AWAY:
            return database_away()
        except asyncpg.PostgresError as error:
            return database_problem(error, role)
        except UnicodeDecodeError:
            return Problem(400, "PGRST102", "Empty or invalid json").response()

    def _claims(self, request: Request) -> Claims:
        """Whose request this is: the bearer's, or else the key's."""
        key = request.headers.get("apikey") or request.query_params.get("apikey")
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        token = bearer if scheme.lower() == "bearer" and bearer else key
        if not key and not token:
            raise _Refused(
                "No API key found in request", "No `apikey` request header or url param was found."
            )
        if key:
            try:
                self._tokens.verify(key)
            except TokenError:
                raise _Refused(
                    "Invalid API key", "Double check your Supabase `anon` or `service_role` API key."
                ) from None
        try:
            return self._tokens.verify(token or "")
        except TokenExpired:
            raise Problem(401, "PGRST303", "JWT expired") from None
        except TokenError:
            raise Problem(401, "PGRST301", "No suitable key or wrong key type") from None

    async def _rpc(self, request: Request, claims: Claims, body: str) -> Response:
        name = request.path_params["name"]
        if request.method == "GET":
            body = json.dumps({k: v for k, v in request.query_params.items() if k != "apikey"})
        given = _argument_names(body)
        function = (await self._known()).function(name, given)
        if function is None:
            function = (await self._known(anew=True)).function(name, given)
        if function is None:
            raise _no_function(name, given)
        text = await self._run(
            claims, request, function.statement(given), body or "{}", read_only=request.method == "GET"
        )
        if function.shape == "void":
            return Response(status_code=204)
        return Response(text if text is not None else "null", media_type=_JSON)

    async def _table(self, request: Request, claims: Claims, body: str) -> Response:
        name = request.path_params["name"]
        columns = (await self._known()).tables.get(name) or (await self._known(anew=True)).tables.get(name)
        if columns is None:
            raise Problem(404, "PGRST205", f"Could not find the table 'public.{name}' in the schema cache")
        if request.method == "POST":
            return await self._insert(request, claims, name, columns, body)
        has_body = request.method == "PATCH"
        pairs = [(key, value) for key, value in request.query_params.multi_items() if key != "apikey"]
        query = parse_query(pairs, name, columns, first=2 if has_body else 1)
        table = f"public.{quoted(name)}"
        if request.method in ("GET", "HEAD"):
            rows = f"select {query.selected} from {table}{query.where}{query.tail}"
            statement = f"select coalesce(json_agg(r), '[]')::text from ({rows}) r"
            text = await self._run(claims, request, statement, *query.values, read_only=True)
            return await self._rows(request, text, 200)
        if has_body:
            sets = _fields(body, name, columns)
            if not sets:
                return await self._rows(request, "[]", 200)
            changes = ", ".join(f"{quoted(each)} = _.{quoted(each)}" for each in sets)
            change = (
                f"update {table} set {changes} from json_populate_record(null::{table}, $1::json) _"
                f"{_qualified(query.where, table)}"
                f" returning {table}.*"
            )
            values: list[str] = [body, *query.values]
        else:
            change = f"delete from {table}{query.where} returning *"
            values = query.values
        text = await self._run(
            claims, request, f"with r as ({change}) select coalesce(json_agg(r), '[]')::text from r", *values
        )
        return await self._rows(request, text, 200, is_write=True)

    async def _insert(
        self, request: Request, claims: Claims, name: str, columns: dict[str, str], body: str
    ) -> Response:
        fields = _fields(body, name, columns)
        table = f"public.{quoted(name)}"
        rows = body if body.lstrip().startswith("[") else f"[{body}]"
        listed = ", ".join(map(quoted, fields))
        source = f"select {listed} from json_populate_recordset(null::{table}, $1::json) _"
        # Without a wish to see the rows nothing is returned, so that INSERT alone is enough of a privilege.
        wants_rows = "return=representation" in request.headers.get("prefer", "")
        insert = f"insert into {table} ({listed}) {source}"
        if wants_rows:
            statement = f"with r as ({insert} returning *) select coalesce(json_agg(r), '[]')::text from r"
        else:
            statement = f"with r as ({insert} returning 1) select '[]'::text from r limit 1"
        text = await self._run(claims, request, statement, rows)
        return await self._rows(request, text, 201, is_write=True)

    async def _rows(
        self, request: Request, text: str | None, status: int, *, is_write: bool = False
    ) -> Response:
        """Rows as the request wants them: all, one, or none."""
        prefer = request.headers.get("prefer", "")
        if is_write and "return=representation" not in prefer:
            return Response(status_code=status if status == 201 else 204)
        if _ONE_ROW in request.headers.get("accept", ""):
            rows = json.loads(text or "[]")
            if len(rows) != 1:
                raise Problem(
                    406,
                    "PGRST116",
                    "Cannot coerce the result to a single JSON object",
                    details=f"The result contains {len(rows)} rows",
                )
            text = (text or "[]").strip()[1:-1]
            return Response(text, status, media_type=f"{_ONE_ROW}; charset=utf-8")
        return Response(text or "[]", status, media_type=_JSON)

    async def _run(
        self, claims: Claims, request: Request, statement: str, *values: str, read_only: bool = False
    ) -> str | None:
        """Run one statement in a transaction of its own as the caller's role, and return its one text."""
        context = {
            "role": claims["role"],
            "request.jwt.claims": json.dumps(claims),
            "request.method": request.method,
            "request.path": request.url.path,
        }
        settings = ", ".join(
            f"set_config('{name}', {_literal(value)}, true)" for name, value in context.items()
        )
        async with (await self._open()).acquire() as connection:
            # Begin and settings in one message: every round trip is paid by every request.
            await connection.execute(f"begin{' read only' if read_only else ''}; select {settings}")
            try:
                text: str | None = await connection.fetchval(statement, *values)
            except BaseException:
                if not connection.is_closed():
                    await connection.execute("rollback")
                raise
            await connection.execute("commit")
            return text

    async def _known(self, *, anew: bool = False) -> Catalog:
        if self._catalog is None or anew:
            async with (await self._open()).acquire() as connection:
                self._catalog = await Catalog.read(connection)
        return self._catalog


async def _leave_as_it_is(_: object) -> None:
    """Reset nothing."""


class _Refused(Problem):
    """What the API gateway in front of PostgREST says to a stranger."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(401, "", message, hint=hint)

    def response(self) -> JSONResponse:
        return JSONResponse({"message": self.body["message"], "hint": self.body["hint"]}, self.status)


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


def _argument_names(body: str) -> frozenset[str]:
    """The names in the outermost object, found without keeping what may be megabytes of values."""
    if not body.strip():
        return frozenset()
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "PGRST102", "Empty or invalid json") from None
    if not isinstance(given, dict):
        raise Problem(400, "PGRST102", "All object keys must match")
    return frozenset(given)


def _fields(body: str, table: str, columns: dict[str, str]) -> list[str]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "PGRST102", "Empty or invalid json") from None
    first = given[0] if isinstance(given, list) and given else given
    if not isinstance(first, dict):
        raise Problem(400, "PGRST102", "Empty or invalid json")
    if isinstance(given, list) and any(row.keys() != first.keys() for row in given):
        raise Problem(400, "PGRST102", "All object keys must match")
    for name in first:
        if name not in columns:
            raise Problem(
                400, "PGRST204", f"Could not find the '{name}' column of '{table}' in the schema cache"
            )
    return list(first)


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


def _qualified(where: str, table: str) -> str:
    """The conditions with their columns named as the table's."""
    return where.replace(' where "', f' where {table}."').replace(' and "', f' and {table}."')


def _literal(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
