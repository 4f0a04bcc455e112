"""Is a Database Webhook one more hint, and nothing more than a hint?"""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from runtime import Agent
from runtime.errors import SettingsError
from runtime.local.ports import free_port
from runtime.wakeups.database_webhook import WebhookWakeups
from tests.integration.conftest import connected, running, settings_of, settled, until

pytestmark = pytest.mark.anyio

SECRET = "a secret that only the webhook knows"


class Heard:
    """A listener that notes what it is told."""

    def __init__(self) -> None:
        self.wakes: list[tuple[str, int | None]] = []
        self.others: list[str] = []

    def wake(self, why: str, message: int | None = None) -> None:
        self.wakes.append((why, message))

    def live(self, path: str) -> None:
        self.others.append(f"live {path}")

    def gap(self, path: str, why: str) -> None:
        self.others.append(f"gap {path}")

    def lost(self, path: str, why: str) -> None:
        self.others.append(f"lost {path}")

    def prove(self, nonce: str) -> None:
        self.others.append("prove")


def posted(number: int, key: str = "task.output", **changes: Any) -> dict[str, Any]:
    """What `supabase_functions.http_request` posts for an INSERT."""
    record = {
        "id": number, "key": key, "value": {"title": "Hello"}, "agent": None, "processed": False,
        "created_at": "2026-11-24T06:00:00.000000+00:00", "headers": None,
    }  # fmt: skip
    return {
        "type": "INSERT", "table": "consciousness_stream", "schema": "public", "record": record, "old_record": None,
        **changes,
    }  # fmt: skip


@asynccontextmanager
async def listening(
    heard: Heard, *, secret: str | None = SECRET, patterns: tuple[str, ...] = ("task.*",)
) -> AsyncIterator[httpx.AsyncClient]:
    """A webhook that listens, and a client that knows where."""
    port = free_port()
    webhook = WebhookWakeups(f"127.0.0.1:{port}", secret, patterns=patterns)
    async with (
        anyio.create_task_group() as tasks,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        tasks.start_soon(webhook.run, heard)
        await until(lambda: is_open(port))
        yield client
        tasks.cancel_scope.cancel()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {SECRET}"},
        {"x-webhook-secret": SECRET},
        {"Authorization": f"bearer {SECRET}"},
    ],
)
async def test_an_insert_with_the_secret_is_a_hint(headers: dict[str, str]) -> None:
    heard = Heard()
    async with listening(heard) as client:
        answer = await client.post("/", json=posted(7), headers=headers)
        assert (answer.status_code, heard.wakes) == (202, [("webhook", 7)])
        # Its other duties it has none of: it is no path, so polling goes on.
        assert (heard.others, WebhookWakeups.paths) == ([], ())


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": SECRET},
        {"authorization": f"Basic {SECRET}"},
        {"x-webhook-secret": SECRET[:-1]},
        {"x-webhook-secret": ""},
    ],
)
async def test_without_the_secret_nobody_is_woken(headers: dict[str, str]) -> None:
    heard = Heard()
    async with listening(heard) as client:
        answer = await client.post("/", json=posted(7), headers=headers)
        assert (answer.status_code, heard.wakes) == (401, [])
        assert SECRET not in answer.text


@pytest.mark.parametrize(
    ("body", "cure"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[]", "INSERT"),
        (json.dumps(posted(7, type="UPDATE")).encode(), "Insert alone"),
        (json.dumps(posted(7, table="orders")).encode(), "consciousness_stream"),
        (json.dumps(posted(7, schema="private")).encode(), "consciousness_stream"),
        (json.dumps(posted(7, record=None)).encode(), "id and key"),
        (json.dumps(posted(7, record={"id": "7", "key": "task.output"})).encode(), "id and key"),
        (json.dumps(posted(7, record={"id": True, "key": "task.output"})).encode(), "id and key"),
    ],
)
async def test_anything_but_an_insert_into_the_stream_is_refused(body: bytes, cure: str) -> None:
    heard = Heard()
    async with listening(heard) as client:
        answer = await client.post("/", content=body, headers={"x-webhook-secret": SECRET})
        assert (answer.status_code, heard.wakes) == (400, [])
        assert cure in answer.text
        assert (
            await client.post("/", json=posted(8), headers={"x-webhook-secret": SECRET})
        ).status_code == 202


async def test_a_message_nobody_here_wants_wakes_nobody() -> None:
    heard = Heard()
    async with listening(heard) as client:
        for key in ("task.output", "site.published", "not a key", "task.a.b"):
            answer = await client.post(
                "/hooks/stream", json=posted(7, key), headers={"x-webhook-secret": SECRET}
            )
            assert answer.status_code == 202
        assert heard.wakes == [("webhook", 7)]


async def test_a_body_over_the_limit_is_not_read_and_is_still_a_hint() -> None:
    heard = Heard()
    async with listening(heard) as client:
        big = posted(7)
        big["record"]["value"] = "x" * 2_000_000
        assert (await client.post("/", json=big)).status_code == 401
        assert heard.wakes == []
        answer = await client.post("/", json=big, headers={"x-webhook-secret": SECRET})
        assert (answer.status_code, heard.wakes) == (413, [("webhook", None)])


async def test_a_client_that_hangs_up_and_one_that_talks_nonsense_harm_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard = Heard()
    async with listening(heard) as client:
        for nonsense in (
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
            b"\x16\x03\x01 no http at all\r\n\r\n",
            f"POST / HTTP/1.1\r\nhost: x\r\nx-webhook-secret: {SECRET}\r\ncontent-length: 50\r\n\r\n{{".encode(),
        ):
            async with await anyio.connect_tcp("127.0.0.1", client.base_url.port or 0) as stream:
                await stream.send(nonsense)
        answer = await client.post("/", json=posted(7), headers={"x-webhook-secret": SECRET})
        assert (answer.status_code, heard.wakes) == (202, [("webhook", 7)])
        assert (await client.get("/")).status_code == 405
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_port_that_is_taken_is_asked_for_until_it_is_free(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.http_server._RETRY_SECONDS", 0.05)
    heard = Heard()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(WebhookWakeups(f"127.0.0.1:{port}", SECRET, patterns=["task.*"]).run, heard)
            await until(lambda: "another process has it" in caplog.text)
            other.close()
            async with httpx.AsyncClient() as client:
                await until(lambda: is_open(port))
                answer = await client.post(
                    f"http://127.0.0.1:{port}/", json=posted(7), headers={"x-webhook-secret": SECRET}
                )
            assert (answer.status_code, heard.wakes) == (202, [("webhook", 7)])
            tasks.cancel_scope.cancel()
    await until(lambda: not is_open(port))
    assert SECRET not in caplog.text


@pytest.mark.parametrize("address", ["0.0.0.0:8787", "[::]:8787", "192.168.1.5:8787", "worker.example:8787"])
def test_an_address_others_can_reach_needs_a_secret(address: str) -> None:
    with pytest.raises(SettingsError, match="RUNTIME_WEBHOOK_SECRET"):
        WebhookWakeups(address, None, patterns=[])
    with pytest.raises(SettingsError, match="RUNTIME_WEBHOOK_SECRET"):
        WebhookWakeups(address, "", patterns=[])
    assert WebhookWakeups(address, SECRET, patterns=[]).port == 8787


@pytest.mark.parametrize(
    "address", ["", "8787", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", ":1"]
)
def test_an_address_that_is_none_is_refused_with_one_that_would_do(address: str) -> None:
    with pytest.raises(SettingsError, match=r"127\.0\.0\.1:8787"):
        WebhookWakeups(address, SECRET, patterns=[])


async def test_on_this_machine_alone_no_secret_is_needed() -> None:
    heard = Heard()
    async with listening(heard, secret=None) as client:
        assert (await client.post("/", json=posted(7))).status_code == 202
    assert heard.wakes == [("webhook", 7)]
    for address in ("localhost:1", "127.0.0.1:1", "[::1]:1"):
        WebhookWakeups(address, None, patterns=[])


async def test_g7_a_worker_is_woken_by_a_webhook_and_goes_on_polling(stack: Any, seen: list[Any]) -> None:
    agent = Agent("hooked")

    @agent.on("hooked.task")
    async def note(value: int) -> None:
        seen.append(value)

    port = free_port()
    settings = settings_of(
        stack,
        broadcast=False,
        postgres_changes=False,
        # So slow that within the test's deadline only the webhook can have woken it.
        poll_fast_seconds=90,
        poll_slow_seconds=90,
        sweep_seconds=90,
        webhook=f"127.0.0.1:{port}",
        webhook_secret=SECRET,
    )
    async with running([agent], settings, live=False) as worker, connected(stack.db_url) as connection:
        await until(lambda: settled(connection, "hooked.note"))
        await until(lambda: is_open(port))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for number in range(3):
                message = await connection.fetchval(
                    "insert into public.consciousness_stream (key, value) values ('hooked.task', $1) returning id",
                    str(number),
                )
                answer = await client.post(
                    "/", json=posted(message, "hooked.task"), headers={"authorization": f"Bearer {SECRET}"}
                )
                assert answer.status_code == 202
                await until(lambda count=number + 1: len(seen) == count)
        assert seen == [0, 1, 2]
        assert worker.state == "polling"
        assert worker.counts["wake-ups by webhook"] == 3


@pytest.fixture
def seen() -> list[Any]:
    """Where a handler notes what it got."""
    return []
