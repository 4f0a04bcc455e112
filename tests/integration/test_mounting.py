"""Does the application work where others host it? In FastAPI, in Starlette, and by itself under uvicorn."""

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import connected, settled, until
from tests.integration.test_webhooks_in import SECRET, SOURCE, WAKING, count, serving, signed, started

pytestmark = pytest.mark.anyio

HOSTS = {
    "fastapi": """
from fastapi import FastAPI
from hooks import shop, till
from runtime.asgi import WebhookApp

webhooks = WebhookApp([till], [shop])
app = FastAPI(lifespan=webhooks.lifespan)
app.mount("/in", webhooks)

@app.get("/own")
def own() -> str:
    return "the host's own"
""",
    "starlette": """
from hooks import shop, till
from runtime.asgi import WebhookApp
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

async def own(request):
    return JSONResponse("the host's own")

webhooks = WebhookApp([till], [shop])
app = Starlette(routes=[Route("/own", own), Mount("/in", webhooks)], lifespan=webhooks.lifespan)
""",
}
UVICORN = [sys.executable, "-m", "uvicorn", "--no-access-log"]


@pytest.mark.parametrize("host", HOSTS)
async def test_mounted_in_a_host_it_takes_webhooks_and_runs_agents(
    host: str, stack: Any, tmp_path: Path
) -> None:
    (tmp_path / "hooks.py").write_text(SOURCE)
    (tmp_path / "host.py").write_text(HOSTS[host])
    async with (
        started([*UVICORN, "host:app"], stack, tmp_path, "Uvicorn running") as server,
        connected(stack.db_url) as connection,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        assert (await client.get("/own")).json() == "the host's own"
        await until(lambda: settled(connection, "till.book"))
        answer = await client.post(
            "/in/webhooks/shop", **signed("msg_1", {"type": "order.paid", "number": 1})
        )
        assert answer.status_code == 200

        async def booked() -> bool:
            return await count(connection, "till.booked") == 1

        await until(booked)

        async def is_ready() -> bool:
            ready = await client.get("/in/readyz")
            return ready.status_code == 200 and ready.json()["worker"] in ("live", "polling")

        await until(is_ready)
        headers = {"x-webhook-secret": WAKING}
        assert (await client.post("/in/drain", headers=headers)).status_code == 409
        server.process.terminate()
        await until(lambda: server.process.returncode is not None)
        assert "Traceback" not in server.log.read_text()


async def test_without_its_lifespan_it_takes_webhooks_and_says_that_no_worker_runs(
    stack: Any, tmp_path: Path
) -> None:
    (tmp_path / "hooks.py").write_text(SOURCE)
    (tmp_path / "host.py").write_text(HOSTS["starlette"].replace(", lifespan=webhooks.lifespan", ""))
    async with (
        started([*UVICORN, "host:app"], stack, tmp_path, "Uvicorn running") as server,
        connected(stack.db_url) as connection,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        answer = await client.post(
            "/in/webhooks/shop", **signed("msg_1", {"type": "order.paid", "number": 1})
        )
        assert answer.status_code == 200
        assert await count(connection, "shop.order.paid") == 1
        assert (
            await client.post("/in/wake", json={}, headers={"x-webhook-secret": WAKING})
        ).status_code == 503
        ready = await client.get("/in/readyz")
        assert (ready.status_code, ready.json()) == (503, {"database": True, "worker": "stopped"})


async def test_the_environment_describes_an_application_of_its_own(stack: Any, tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(SOURCE.replace('till.on("shop', 'till.on("desk.push", "shop'))
    sources = '[{"name": "desk", "key": "desk.{event}", "secret": "SHOP_WEBHOOK_SECRET"}]'
    more = {"RUNTIME_AGENTS": "hooks.py", "RUNTIME_SOURCES": sources, "RUNTIME_SERVERLESS": "true"}
    async with (
        started([*UVICORN, "runtime.asgi:app"], stack, tmp_path, "Uvicorn running", **more) as server,
        connected(stack.db_url) as connection,
        httpx.AsyncClient(base_url=server.url, headers={"authorization": f"Bearer {WAKING}"}) as client,
    ):
        assert (await client.post("/drain")).json()["left"] == 0
        for number, name in enumerate(("desk", "shop")):
            event = {"type": "push" if name == "desk" else "order.paid", "number": number}
            assert (await client.post(f"/webhooks/{name}", **signed("msg_1", event))).status_code == 200
        assert (await client.post("/drain")).json()["handled"] == 2
        assert await count(connection, "till.booked") == 2
        assert (await client.get("/readyz")).json() == {"database": True}


@pytest.mark.parametrize(
    ("more", "cure"),
    [
        ({"SHOP_WEBHOOK_SECRET": ""}, "SHOP_WEBHOOK_SECRET is not set"),
        ({"SHOP_WEBHOOK_SECRET": "hunter2"}, "SHOP_WEBHOOK_SECRET: A secret of Standard Webhooks"),
        ({"RUNTIME_WEBHOOK_SECRET": "", "RUNTIME_SERVERLESS": "true"}, "Set RUNTIME_WEBHOOK_SECRET"),
        ({"RUNTIME_SOURCES": "github"}, "RUNTIME_SOURCES is a JSON list"),
        ({"RUNTIME_SOURCES": '[{"nam": "github"}]'}, "RUNTIME_SOURCES is a JSON list"),
        ({"RUNTIME_SOURCES": '[{"name": "shop", "key": "a"}]'}, "Two sources are called 'shop'"),
    ],
)
async def test_what_cannot_be_served_is_refused_at_the_start(
    more: dict[str, str], cure: str, tmp_path: Path
) -> None:
    class Nowhere:
        api_url, service_role_key = "http://127.0.0.1:9", "a.b.c"

    with pytest.raises(AssertionError) as caught:
        async with serving(Nowhere, tmp_path, **more):
            pass
    # The log goes into a pipe as JSON lines, and the error is one of them.
    assert f'{{"error": "{cure}' in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert SECRET not in str(caught.value)
