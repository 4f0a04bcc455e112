"""What a worker answers at its port for metrics, and whether the Grafana dashboard asks for nothing else."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime import Agent, Context
from runtime.local.ports import free_port
from tests.faulty_proxy import faulty_proxy
from tests.integration.conftest import running, until
from tests.worker.test_worker import direct, ready, send, through

pytestmark = pytest.mark.anyio
DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"


def shop() -> Agent:
    agent = Agent("shop")

    @agent.on("order.placed", emits="order.packed")
    async def pack(number: int, context: Context) -> int:
        context.usage(tokens_in=7, cost=0.25, model="big")
        if number < 0:
            raise ValueError("no such order")
        return number

    return agent


async def ask(port: int, path: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://127.0.0.1:{port}{path}", timeout=60)


async def scrape(port: int) -> dict[tuple[str, ...], float]:
    """Every sample: its name and its labels' values, with its value."""
    text = (await ask(port, "/metrics")).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_the_port_tells_what_ran_what_waits_and_that_the_worker_is_ready(database: str) -> None:
    port = free_port()
    async with running([shop()], direct(database, metrics_port=port)) as worker:
        await ready(database, "shop.pack")
        await send(database, "order.placed", 1, 2, 3)
        await until(lambda: worker.counts.get("done", 0) == 3)
        found = await scrape(port)
        assert found["runtime_attempts_total", "shop.pack", "done"] == 3
        assert found["runtime_attempt_seconds_count", "shop.pack"] == 3
        assert found["runtime_emitted_messages_total", "shop.pack"] == 3
        assert found["runtime_deliveries_done_total",] == 3
        assert found["runtime_usage_tokens_total", "shop", "input", "shop.pack", "big"] == 21
        assert found["runtime_usage_cost_usd_total", "shop", "shop.pack", "big"] == 0.75
        assert (found["runtime_live",], found["runtime_path_live", "notify"]) == (1, 1)
        assert found["runtime_backlog", "waiting", "shop.pack"] == 0
        assert found["runtime_workers", "shop.pack"] == 1
        assert found["process_resident_memory_bytes",] > 0
        assert ((await ask(port, "/healthz")).status_code, (await ask(port, "/other")).status_code) == (
            200,
            404,
        )
        answer = await ask(port, "/readyz")
        assert (answer.status_code, answer.json()) == (
            200, {"subscribed": True, "started": True, "stopping": False, "database": True},
        )  # fmt: skip


async def test_without_its_database_a_worker_is_alive_and_not_ready(database: str) -> None:
    port = free_port()
    async with faulty_proxy(urlsplit(database).port or 5432) as way:
        settings = direct(through(database, way), metrics_port=port, request_seconds=1)
        async with running([shop()], settings):
            assert (await ask(port, "/readyz")).status_code == 200
            await way.cut_off()
            answer = await ask(port, "/readyz")
            assert (answer.status_code, answer.json()["database"]) == (503, False)
            assert (await ask(port, "/healthz")).status_code == 200
            assert ("runtime_exchanges_total",) in await scrape(port)
            way.mend()

            async def is_ready() -> bool:
                return (await ask(port, "/readyz")).status_code == 200

            await until(is_ready)


async def test_a_worker_is_ready_when_its_agents_have_started(database: str) -> None:
    port, opening = free_port(), anyio.Event()
    agent = shop()

    @agent.lifespan
    async def opened() -> AsyncIterator[None]:
        await opening.wait()
        yield

    async with running([agent], direct(database, metrics_port=port)):
        answer = await ask(port, "/readyz")
        assert (answer.status_code, answer.json()["started"]) == (503, False)
        opening.set()

        async def is_ready() -> bool:
            return (await ask(port, "/readyz")).status_code == 200

        await until(is_ready)


async def test_a_handler_that_blocks_its_loop_does_not_make_the_process_look_dead(database: str) -> None:
    port = free_port()
    agent = Agent("blocker")

    @agent.on("block")
    async def block(value: int) -> None:
        # From within the blocked loop: only another thread can answer.
        command = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=60).status)"
        run = subprocess.run(  # noqa: ASYNC221 - blocking is the point
            [sys.executable, "-c", command, f"http://127.0.0.1:{port}/healthz"],
            capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        answers.append(run.stdout.strip())

    answers: list[str] = []
    async with running([agent], direct(database, metrics_port=port)) as worker:
        await ready(database, "blocker.block")
        await send(database, "block", 1)
        await until(lambda: worker.counts.get("done", 0) == 1)
    assert answers == ["200"]


async def test_a_port_that_is_taken_is_had_when_it_is_free(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with running([shop()], direct(database, metrics_port=port)):
            await until(lambda: "another process has it" in caplog.text)
            taken.close()

            async def answers() -> bool:
                try:
                    return (await ask(port, "/healthz")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(answers)


async def test_each_metric_of_the_grafana_dashboard_is_exported(database: str) -> None:
    port = free_port()
    async with running([shop()], direct(database, metrics_port=port)) as worker:
        await ready(database, "shop.pack")
        await send(database, "order.placed", 1)
        await until(lambda: worker.counts.get("done", 0) == 1)
        exported = {name for name, *_ in await scrape(port)}
    dashboard: Any = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for expression in asked for name in re.findall(r"\b(?:runtime|process)_\w+", expression)}
    assert len(named) > 15
    assert named - exported == set()


async def test_nothing_listens_and_nothing_is_loaded_where_nobody_asked() -> None:
    script = (
        "import sys, runtime.worker.worker, runtime.client.stream, runtime.cli.run\n"
        "heavy = {'prometheus_client', 'opentelemetry', 'runtime.worker.metrics', 'runtime.client.telemetry'}\n"
        "print(heavy & set(sys.modules))"
    )
    run = await anyio.run_process([sys.executable, "-c", script])
    assert run.stdout.decode().strip() == "set()"
