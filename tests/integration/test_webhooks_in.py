"""Do webhooks become messages, once each, whatever server takes them? With real processes, over real HTTP."""

import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import Process

from runtime.local.ports import free_port
from runtime.webhooks.signatures import new_secret, read_secret, sign
from tests.integration.conftest import connected, settled, until

pytestmark = pytest.mark.anyio

SECRET = new_secret()
WAKING = "a secret that only the database knows"
SOURCE = """
from runtime import Agent, Source

shop = Source("shop", "shop.{event}", max_bytes=100_000)
till = Agent("till")

@till.on("shop.order.*", emits="till.booked")
async def book(order: dict) -> int:
    return order["number"]
"""


class Server:
    """`runtime serve` as a process."""

    def __init__(self, process: Process, url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    def said(self, text: str) -> bool:
        """Whether this was logged or printed."""
        return text in self.log.read_text()


@asynccontextmanager
async def serving(
    stack: Any, folder: Path, *options: str, source: str = SOURCE, **more: str
) -> AsyncIterator[Server]:
    """`runtime serve` that answers; whatever happens, it ends."""
    (folder / "hooks.py").write_text(source)
    command = [sys.executable, "-m", "runtime", "serve", str(folder / "hooks.py"), *options]
    async with started(command, stack, folder, "Serving at", **more) as server:
        yield server


@asynccontextmanager
async def started(
    command: list[str], stack: Any, folder: Path, sign: str, **more: str
) -> AsyncIterator[Server]:
    """A server with a port of its own that has printed the sign; whatever happens, it ends."""
    port = free_port()
    log = folder / f"serve-{port}.log"
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("RUNTIME_", "SUPABASE_"))}
    environment = {
        **kept,
        "SUPABASE_URL": stack.api_url,
        "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
        "SHOP_WEBHOOK_SECRET": SECRET,
        "RUNTIME_WEBHOOK_SECRET": WAKING,
        "RUNTIME_LEASE_SECONDS": "2",
        **more,
    }
    with log.open("ab") as output:
        process = await anyio.open_process(
            [*command, "--port", str(port)], stdout=output, stderr=output, env=environment, cwd=folder
        )
    try:
        await until(lambda: sign in log.read_text() or process.returncode is not None)
        assert process.returncode is None, log.read_text()
        yield Server(process, f"http://127.0.0.1:{port}", log)
    finally:
        if process.returncode is None:
            process.terminate()
            with anyio.CancelScope(shield=True), anyio.move_on_after(20):
                await process.wait()
        if process.returncode is None:
            process.kill()
        await process.aclose()


def signed(message_id: str, value: Any, *, ago: int = 0, secret: str = SECRET) -> dict[str, Any]:
    """What httpx sends of a webhook by Standard Webhooks."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    headers = sign([read_secret(secret)], message_id, int(time.time()) - ago, body)
    return {"content": body, "headers": {**headers, "content-type": "application/json"}}


async def count(connection: Any, key: str) -> int:
    """How many messages there are under a key."""
    found = await connection.fetchval("select count(*) from consciousness_stream where key = $1", key)
    return int(found)


async def test_g10_two_servers_store_a_repeated_webhook_once_and_its_agent_runs_once(
    stack: Any, tmp_path: Path
) -> None:
    async with (
        serving(stack, tmp_path) as one,
        serving(stack, tmp_path) as other,
        connected(stack.db_url) as connection,
        httpx.AsyncClient() as client,
    ):
        await until(lambda: settled(connection, "till.book"))
        for number in range(10):
            webhook = signed(f"msg_{number}", {"type": "order.paid", "number": number})
            answers: list[httpx.Response] = []

            async def post(server: Server, webhook: dict[str, Any] = webhook, into: Any = answers) -> None:
                into.append(await client.post(f"{server.url}/webhooks/shop", **webhook))

            async with anyio.create_task_group() as tasks:
                for server in (one, other, one):
                    tasks.start_soon(post, server)
            assert [answer.status_code for answer in answers] == [200, 200, 200]
            assert len({answer.json()["message"] for answer in answers}) == 1
            assert sorted(answer.json()["duplicate"] for answer in answers) == [False, True, True]
            # 2xx means committed: another connection sees it at once.
            assert await count(connection, "shop.order.paid") == number + 1

        async def booked() -> bool:
            return await count(connection, "till.booked") >= 10

        await until(booked)
        rows = await connection.fetch(
            "select value #>> '{}' as n from consciousness_stream where key = 'till.booked'"
        )
        assert sorted(int(row["n"]) for row in rows) == list(range(10))
        row = await connection.fetchrow(
            "select * from consciousness_stream where key = 'shop.order.paid' limit 1"
        )
        assert (row["agent"], row["dedup_key"]) == ("shop", "webhook shop msg_0")


async def test_what_is_not_proved_or_too_large_is_refused_and_leaves_no_trace(
    stack: Any, tmp_path: Path
) -> None:
    value = {"type": "order.paid", "number": 1}
    async with (
        serving(stack, tmp_path) as server,
        connected(stack.db_url) as connection,
        httpx.AsyncClient(base_url=server.url) as client,
    ):

        async def status(path: str, request: dict[str, Any]) -> int:
            return (await client.post(path, **request)).status_code

        good = signed("msg_1", value)
        assert await status("/webhooks/shop?token=in-a-query", {"content": good["content"]}) == 401
        assert await status("/webhooks/shop", signed("msg_1", value, secret=new_secret())) == 401
        assert await status("/webhooks/shop", {**good, "content": good["content"] + b" "}) == 401
        assert await status("/webhooks/shop", signed("msg_1", value, ago=400)) == 400
        assert await status("/webhooks/shop", signed("msg_1", value, ago=-400)) == 400
        assert await status("/webhooks/shop", signed("msg_1", b"{")) == 400
        assert await status("/webhooks/shop", signed("msg_1", b"x" * 100_001)) == 413
        assert await status("/webhooks/nobody", good) == 404
        assert await status("/webhooks/shop/more", good) == 404
        assert (await client.get("/webhooks/shop")).status_code == 405
        assert await connection.fetchval("select count(*) from consciousness_stream") == 0
        assert await status("/webhooks/shop", signed("msg_1", value)) == 200
        log = server.log.read_text()
        assert SECRET not in log
        assert WAKING not in log
        assert "in-a-query" not in log
        assert "POST /webhooks/shop 401" in log


async def test_a_body_over_the_limit_is_not_read_to_its_end(stack: Any, tmp_path: Path) -> None:
    async with serving(stack, tmp_path) as server:
        port = int(server.url.rpartition(":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            head = "POST /webhooks/shop HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            await stream.send(head.encode())
            answer, sent = b"", 0
            with anyio.fail_after(60):
                while b"\r\n\r\n" not in answer and sent < 50_000_000:
                    chunk = b"x" * 50_000
                    try:
                        await stream.send(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                        sent += len(chunk)
                        with anyio.move_on_after(0.01):
                            answer += await stream.receive()
                    except (anyio.BrokenResourceError, anyio.EndOfStream):
                        break
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert sent < 10_000_000


@pytest.mark.own_stack
async def test_g1_while_the_stream_is_away_a_sender_is_asked_to_come_again(
    stack: Any, tmp_path: Path
) -> None:
    source = 'from runtime import Source\nshop = Source("shop", "shop.{event}")\n'
    async with (
        serving(stack, tmp_path, source=source) as server,
        connected(stack.db_url) as connection,
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
    ):
        assert (await client.get("/readyz")).json() == {"database": True}
        await anyio.to_thread.run_sync(stack.stop_gateway)
        webhook = signed("msg_1", {"type": "order.paid"})
        answer = await client.post("/webhooks/shop", **webhook)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200
        await anyio.to_thread.run_sync(stack.start_gateway)
        answer = await client.post("/webhooks/shop", **webhook)
        assert (answer.status_code, answer.json()["duplicate"]) == (200, False)
        assert await count(connection, "shop.order.paid") == 1


async def test_g7_a_database_webhook_wakes_the_worker_of_the_server(stack: Any, tmp_path: Path) -> None:
    slow = {
        "RUNTIME_BROADCAST": "false",
        "RUNTIME_POSTGRES_CHANGES": "false",
        "RUNTIME_POLL_FAST_SECONDS": "90",
        "RUNTIME_POLL_SLOW_SECONDS": "90",
        "RUNTIME_SWEEP_SECONDS": "90",
    }
    async with (
        serving(stack, tmp_path, **slow) as server,
        connected(stack.db_url) as connection,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        await until(lambda: settled(connection, "till.book"))
        for number in range(3):
            message = await connection.fetchval(
                "insert into consciousness_stream (key, value) values ('shop.order.paid', $1) returning id",
                json.dumps({"number": number}),
            )
            payload = {
                "type": "INSERT",
                "table": "consciousness_stream",
                "schema": "public",
                "record": {"id": message, "key": "shop.order.paid"},
            }
            assert (await client.post("/wake", json=payload)).status_code == 401
            headers = {"x-webhook-secret": WAKING}
            assert (await client.post("/wake", json={}, headers=headers)).status_code == 400
            assert (await client.post("/wake", json=payload, headers=headers)).status_code == 202

            async def booked(so_many: int = number + 1) -> bool:
                return await count(connection, "till.booked") == so_many

            await until(booked)


async def test_g9_a_server_that_is_told_to_end_finishes_what_it_does(stack: Any, tmp_path: Path) -> None:
    source = SOURCE.replace("    return", "    import anyio; await anyio.sleep(1)\n    return")
    async with (
        serving(stack, tmp_path, source=source) as server,
        connected(stack.db_url) as connection,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        await until(lambda: settled(connection, "till.book"))
        assert (
            await client.post("/webhooks/shop", **signed("1", {"type": "order.paid", "number": 1}))
        ).is_success
        leased = "select exists (select from runtime.deliveries where lease is not null)"
        await until(lambda: _holds(stack, leased))
        server.process.terminate()
        with anyio.fail_after(60):
            assert await server.process.wait() == 0
        assert await count(connection, "till.booked") == 1


async def _holds(stack: Any, condition: str) -> bool:

    async with connected(stack.admin_url) as connection:
        return bool(await connection.fetchval(condition))
