"""A local stack opens to nobody but its developer: neither to other users of the machine nor to pages of the web."""

import json
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import httpx
import jwt
import pytest
import websockets

from runtime.local import keys
from runtime.local.stack import LocalStack
from tests.integration.conftest import connected

pytestmark = pytest.mark.anyio

EVIL = "https://evil.example"


@pytest.fixture
async def own() -> Any:
    """A whole stack of the test's own, running."""
    with LocalStack.temporary() as stack:
        await anyio.to_thread.run_sync(stack.start)
        yield stack


def with_published_password(url: str) -> str:
    """The URL of the superuser, as whoever knows the published passwords tries it."""
    _, _, place = url.rpartition("@")
    return f"postgresql://{keys.SUPERUSER}:{keys.DB_PASSWORD}@{place}"


async def test_s5_no_published_password_runs_programs_as_the_developer(own: Any) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(with_published_password(own.admin_url))
    (file,) = [path for path in cluster_folder(own).iterdir() if path.name.startswith("superuser")]
    assert file.stat().st_mode & 0o077 == 0
    assert file.read_text() in own.admin_url
    assert file.read_text() not in json.dumps(dict((await anyio.to_thread.run_sync(own.status)).values))
    async with connected(own.admin_url) as connection:
        logins = [
            row["rolname"] for row in await connection.fetch("select rolname from pg_roles where rolcanlogin")
        ]
    for role in set(logins) - {keys.SUPERUSER}:
        async with connected(own.db_url.replace("//postgres:", f"//{role}:")) as connection:
            for statement in (
                "copy (select 1) to program 'true'",
                "create table public.out (line text); copy public.out from program 'id'",
                "grant pg_execute_server_program to current_user",
                f"set role {keys.SUPERUSER}",
                f"alter role {keys.SUPERUSER} password 'x'",
                "select pg_read_file('postgresql.conf')",
            ):
                with pytest.raises(asyncpg.PostgresError):
                    await connection.execute(statement)


def cluster_folder(stack: LocalStack) -> Path:
    state = json.loads((stack.folder / "stack.json").read_text())
    return Path(state["cluster"])


async def test_s5_a_cluster_of_an_earlier_release_gets_a_password_of_its_own(own: Any) -> None:
    async with connected(own.admin_url) as connection:
        await connection.execute(f"alter role {keys.SUPERUSER} password '{keys.DB_PASSWORD}'")
    (cluster_folder(own) / "superuser.password").unlink()
    async with connected(with_published_password(own.admin_url)) as connection:
        assert await connection.fetchval("select current_user") == keys.SUPERUSER
    await anyio.to_thread.run_sync(own.stop)
    await anyio.to_thread.run_sync(own.start)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(with_published_password(own.admin_url))
    async with connected(own.admin_url) as connection:
        assert await connection.fetchval("select 1") == 1


async def test_s5_the_gateway_logs_in_as_the_roles_of_a_project(own: Any) -> None:
    async with httpx.AsyncClient(base_url=own.api_url, headers={"apikey": own.secret_key}) as http:
        assert (await http.get("/rest/v1/consciousness_stream")).status_code == 200
    async with connected(own.admin_url) as connection:
        rows = await connection.fetch(
            "select distinct usename from pg_stat_activity where application_name like 'agent-runtime gateway%'"
        )
    assert {row["usename"] for row in rows} <= {"authenticator", "supabase_realtime_admin"}


ROLES = {
    "none": 401, "NONE": 401, "nobody": 401, "": 401, "supabase_admin": 403, "postgres": 403,
    "supabase_realtime_admin": 403, "pg_execute_server_program": 403, 'x"; reset role; --': 401,
}  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
async def test_s5_a_token_becomes_no_role_but_those_of_the_api(stack: Any, role: str) -> None:
    token = jwt.encode({"role": role, "exp": 4_000_000_000}, stack.jwt_secret, "HS256")
    headers = {"apikey": stack.publishable_key, "authorization": f"Bearer {token}"}
    async with connected(stack.admin_url) as connection:
        await connection.execute(
            "create function public.whoami() returns text language sql as 'select current_user::text'; "
            "create table public.secrets (id int primary key); insert into public.secrets values (1); "
            "alter publication supabase_realtime add table public.secrets"
        )
    async with httpx.AsyncClient(base_url=stack.api_url, headers=headers) as http:
        for path in ("/rest/v1/rpc/whoami", "/rest/v1/secrets"):
            answer = await http.get(path)
            assert answer.status_code == ROLES[role], answer.text
            assert answer.json()["code"] in ("22023", "42501", "PGRST301")
    if role in ("none", keys.SUPERUSER):
        await hears_nothing(stack, token)


async def hears_nothing(stack: Any, token: str) -> None:
    """Neither a private topic nor rows are told to who bears this token."""
    url = f"{stack.api_url.replace('http', 'ws', 1)}/realtime/v1/websocket?apikey={stack.publishable_key}&vsn=2.0.0"
    async with websockets.connect(url) as socket:
        join = {"config": {"private": True}, "access_token": token}
        await socket.send(json.dumps(["1", "1", "realtime:runtime:x", "phx_join", join]))
        assert json.loads(await socket.recv())[4]["status"] == "error"
        rows = [{"event": "*", "schema": "public", "table": "secrets"}]
        join = {"config": {"postgres_changes": rows}, "access_token": token}
        await socket.send(json.dumps(["2", "2", "realtime:rows", "phx_join", join]))
        assert json.loads(await socket.recv())[4]["status"] == "ok"
        system = json.loads(await socket.recv())
        assert (system[3], system[4]["status"]) == ("system", "error")


ORIGINS = {
    None: 200, "null": 200, "http://localhost:3000": 200, "http://127.0.0.1:5173": 200, "https://app.localhost": 200,
    "http://[::1]:3000": 200, EVIL: 403, "http://localhost.evil.example": 403, "http://127.0.0.1.evil.example": 403,
    "http://evil.example/localhost": 403, "file://": 403, "http://localhost@evil.example": 403,
    "https://app.example": 200,
}  # fmt: skip


async def test_s5_pages_of_the_web_use_the_gateway_only_where_they_are_allowed(stack: Any) -> None:
    stack.gateway.serve(stack.admin_url, allowed_origins=["https://app.example"])
    await anyio.to_thread.run_sync(stack.stop_gateway)
    await anyio.to_thread.run_sync(stack.start_gateway)
    message = {"messages": [{"topic": "t", "event": "e", "payload": {}}]}
    async with httpx.AsyncClient(base_url=stack.api_url, headers={"apikey": stack.secret_key}) as http:
        for origin, status in ORIGINS.items():
            headers = {"origin": origin} if origin else {}
            read = await http.get("/rest/v1/consciousness_stream", headers=headers)
            assert (origin, read.status_code) == (origin, status)
            assert read.headers.get("access-control-allow-origin") == (origin if status == 200 else None)
            said = await http.post("/realtime/v1/api/broadcast", json=message, headers=headers)
            assert (origin, said.status_code) == (origin, 202 if status == 200 else 403)
            asked = {
                **headers,
                "access-control-request-method": "POST",
                "access-control-request-headers": "apikey",
            }
            preflight = await http.options("/rest/v1/rpc/x", headers=asked)
            assert (status == 200 and bool(origin)) == (preflight.status_code == 200)
            assert await can_join(stack, origin) is (status == 200)
        # A foreign name that was made to lead to this machine sends no origin with what its own page reads.
        for host, status in {
            "evil.example": 403,
            "evil.example:54321": 403,
            "localhost:1": 200,
            "app.example": 200,
        }.items():
            answer = await http.get("/rest/v1/consciousness_stream", headers={"host": host})
            assert (host, answer.status_code) == (host, status)


async def can_join(stack: Any, origin: str | None) -> bool:
    """Whether a page of this origin gets a socket."""
    url = (
        f"{stack.api_url.replace('http', 'ws', 1)}/realtime/v1/websocket?apikey={stack.secret_key}&vsn=2.0.0"
    )
    try:
        async with websockets.connect(url, additional_headers={"Origin": origin} if origin else {}):
            return True
    except websockets.InvalidStatus as refusal:
        return refusal.response.status_code != 403


async def test_s5_a_database_of_somebody_else_gets_keys_of_its_own(cluster: Any, tmp_path: Path) -> None:
    await anyio.to_thread.run_sync(cluster.execute, "create database somebodys")
    stack = LocalStack(tmp_path, api_port=0, database_url=cluster.url("somebodys", user=keys.SUPERUSER))
    try:
        await anyio.to_thread.run_sync(stack.start)
        drawn = dict(stack.status().values)
        published = keys.Keys()
        assert not {published.secret_key, published.service_role_key, published.jwt_secret} & set(
            drawn.values()
        )
        async with httpx.AsyncClient(base_url=stack.api_url) as http:
            for name, status in {
                "SECRET_KEY": 200,
                "SERVICE_ROLE_KEY": 200,
                "ANON_KEY": 401,
                "PUBLISHABLE_KEY": 401,
            }.items():
                answer = await http.get("/rest/v1/consciousness_stream", headers={"apikey": drawn[name]})
                assert (name, answer.status_code) == (name, status)
            forged = jwt.encode({"role": "service_role", "exp": 4_000_000_000}, published.jwt_secret, "HS256")
            for key in (published.secret_key, published.service_role_key, published.publishable_key, forged):
                assert (
                    await http.get("/rest/v1/consciousness_stream", headers={"apikey": key})
                ).status_code == 401
        await anyio.to_thread.run_sync(stack.stop)
        await anyio.to_thread.run_sync(stack.start)
        assert dict(stack.status().values) == drawn
        assert dict(LocalStack(tmp_path).status().values) == drawn
        assert (tmp_path / "stack.json").stat().st_mode & 0o077 == 0
    finally:
        await anyio.to_thread.run_sync(stack.stop)
        await anyio.to_thread.run_sync(cluster.drop_database, "somebodys")
