"""Do real processes post to targets, signed, once in the stream, and leave a target that fails alone for a while?"""

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import anyio
import httpx
import pytest
from standardwebhooks import Webhook

from runtime import connect
from runtime.client.dead_letters import DeadLetterFilter
from runtime.local.ports import free_port
from runtime.message import Draft
from runtime.webhooks.signatures import new_secret, read_secret, sign
from tests.document import blocks
from tests.integration.conftest import connected, settings_of, until
from tests.integration.test_supervision import supervised
from tests.node import installed
from tests.receiver import Answering, Received, receiving

pytestmark = pytest.mark.anyio

SOURCE = """
import os
from runtime import Agent, Retry

shop = Agent("shop")
shop.post("order.*", to=os.environ["TARGET"], secret="SHOP_SECRET", emits="booking.made", concurrency=4,
          retry=Retry(attempts=3, first_seconds=0.05, cap_seconds=0.1))
"""
QUICK = "update runtime.policy set webhook_rest_seconds = 0.4, webhook_longest_rest_seconds = 1"


def environment(stack: Any, url: str, **more: str) -> dict[str, str]:
    """Of processes that post to this machine."""
    return {
        "SUPABASE_URL": stack.api_url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key, "TARGET": url,
        "RUNTIME_WEBHOOKS_ALLOW": "127.0.0.0/8", **more,
    }  # fmt: skip


def admin(stack: Any) -> str:
    """The URL of the superuser, who sees the runtime's own tables."""
    return str(stack.admin_url)


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_g4_answers_are_written_once_though_processes_are_killed_while_they_wait_for_them(
    store: str, stack: Any, tmp_path: Path
) -> None:
    secret, released = new_secret(), Event()
    begun: Counter[str] = Counter()

    def answer(request: Received) -> Answering:
        # The published package, as a receiver uses it.
        Webhook(secret).verify(request.body, dict(request.headers))
        begun[request.webhook_id] += 1
        released.wait(20)
        return Answering(200, {"booked": request.value})

    with receiving() as target:
        target.answer = answer
        more = environment(stack, target.url, SHOP_SECRET=secret)
        url = stack.db_url if store == "direct" else ""
        async with (
            supervised(url, tmp_path, "--processes", "2", source=SOURCE, **more) as run,
            connect(settings_of(stack)) as stream,
        ):
            async with connected(admin(stack)) as connection:
                await until(lambda: _serves(connection, "shop.post", 2))
            for number in range(6):
                await stream.send("order.new", number)
            await until(lambda: len(begun) >= 2)
            for child in run.children:
                child.kill()
            released.set()

            async def booked() -> list[Any]:
                found = await stream.read("booking.made")
                return sorted(message.value["booked"] for message in found)

            async def is_done() -> bool:
                return len(await booked()) >= 6

            await until(is_done)
            assert await booked() == list(range(6))
            assert await stream.operations.dead_letters(DeadLetterFilter()) == []
    by_id = defaultdict(set)
    for request in target.received:
        by_id[request.webhook_id].add(request.value)
    # As many ids as messages, and each stands for one of them, however often it was posted.
    assert sorted(by_id.values(), key=min) == [{number} for number in range(6)]
    assert max(begun.values()) > 1


async def test_while_a_target_is_down_messages_wait_without_spending_attempts(
    stack: Any, tmp_path: Path
) -> None:
    secret = new_secret()
    with receiving() as target:
        target.answer = lambda _: Answering(503)
        more = environment(stack, target.url, SHOP_SECRET=secret)
        async with (
            connected(admin(stack)) as connection,
            supervised("", tmp_path, "--processes", "2", source=SOURCE, **more),
            connect(settings_of(stack)) as stream,
        ):
            await connection.execute(QUICK)
            await until(lambda: _serves(connection, "shop.post", 2))
            for number in range(40):
                await stream.send("order.new", number)

            async def rests() -> int:
                return int(await connection.fetchval("select rests from runtime.webhooks"))

            async def has_rested_thrice() -> bool:
                return await rests() >= 3

            await until(has_rested_thrice)
            [row] = await stream.operations.webhooks()
            assert row["state"] in ("resting", "probing")
            assert row["last_status"] == 503
            while_down = len(target.received)
            target.answer = lambda request: Answering(200, {"booked": request.value})

            async def is_done() -> bool:
                return len(await stream.read("booking.made")) >= 40

            await until(is_done)
            spent = await connection.fetchval(
                "select count(*) from runtime.runs where outcome in ('failed', 'dead')"
            )
            assert await stream.operations.dead_letters(DeadLetterFilter()) == []
            [row] = await stream.operations.webhooks()
            assert row["state"] == "well"
    # Those that made the target rest, and what was under way then; the probes cost nothing.
    assert spent <= 5
    assert while_down < 40


async def test_what_is_added_while_workers_run_is_posted_signed_rotated_and_removed(
    stack: Any, tmp_path: Path
) -> None:
    with receiving() as target:
        target.answer = lambda request: Answering(200, {"seen": request.value})
        more = environment(stack, target.url, SHOP_SECRET=new_secret())
        async with (
            connected(admin(stack)) as connection,
            supervised("", tmp_path, "--processes", "2", "--webhooks", source=SOURCE, **more) as run,
            connect(settings_of(stack)) as stream,
        ):
            operations = stream.operations
            added = await operations.add_webhook(
                "crm.contact", f"{target.url}?token=hush", "person.>", emits="crm.noted"
            )
            # Before anybody serves it.
            await stream.send("person.met", "Ada")

            async def noted(count: int) -> bool:
                return len(await stream.read("crm.noted")) >= count

            await until(lambda: noted(1))
            [message] = await stream.read("crm.noted")
            assert (message.agent, message.value) == ("crm", {"seen": "Ada"})
            [first] = target.received
            Webhook(added["secret"]).verify(first.body, dict(first.headers))
            assert first.path == "/hook?token=hush"
            assert json.loads(first.body)["type"] == "person.met"

            rotated = await operations.rotate_webhook("crm.contact", keep_seconds=3)
            assert rotated["secret"] != added["secret"]
            await until(lambda: _posts_with(stream, target, rotated["secret"], added["secret"]))
            until_time = datetime.fromisoformat(rotated["old_until"])
            await until(lambda: datetime.now(UTC) > until_time)
            await until(lambda: _posts_with(stream, target, rotated["secret"]))

            assert "hush" not in json.dumps(await operations.webhooks())
            assert added["secret"] not in json.dumps(await operations.webhooks())
            await operations.remove_webhook("crm.contact")
            await until(lambda: run.said("posting for no webhook"))
            log = run.log.read_text()
            assert "hush" not in log
            assert added["secret"] not in log
            names = await connection.fetch("select name from runtime.subscriptions")
            assert [row["name"] for row in names] == ["shop.post"]


async def _posts_with(stream: Any, target: Any, *secrets: str) -> bool:
    """Whether what is written now arrives with exactly these signatures."""
    seen = len(target.received)
    await stream.send("person.met", "Grace")
    with anyio.fail_after(60):
        while len(target.received) == seen:
            await anyio.sleep(0.01)
    request = target.received[-1]
    signatures = request.headers["webhook-signature"].split(" ")
    if len(signatures) != len(secrets):
        return False
    for secret, signature in zip(secrets, signatures, strict=True):
        Webhook(secret).verify(request.body, {**request.headers, "webhook-signature": signature})
    return True


async def _serves(connection: Any, name: str, count: int) -> bool:
    return bool(
        await connection.fetchval(
            "select count(*) >= $2 from runtime.workers w join runtime.subscriptions s on s.id = any (w.subscriptions) "
            "where s.name = $1 and s.settled and not (w.details ->> 'is_quarantine')::boolean",
            name, count,
        )
    )  # fmt: skip


@asynccontextmanager
async def node(folder: Path, secret: str, port: int) -> AsyncIterator[None]:
    """The agent in Node that the documentation shows, with the published package."""
    page = Path(__file__).parents[2] / "docs" / "how-to" / "webhooks-out.md"
    [source] = [block.text for block in blocks(page) if block.language == "js"]
    (folder / "counter.mjs").write_text(source.replace("8765", str(port)))
    (folder / "node_modules").symlink_to(installed() / "node_modules")
    environment = {**os.environ, "COUNTER_SECRET": secret}
    async with await anyio.open_process(["node", "counter.mjs"], cwd=folder, env=environment) as process:
        assert process.stdout is not None
        with anyio.fail_after(60):
            assert b"listens" in await process.stdout.receive()
        try:
            yield
        finally:
            process.terminate()


async def test_an_agent_in_node_verifies_and_answers_for_two_processes(stack: Any, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    async with connect(settings_of(stack)) as stream:
        added = await stream.operations.add_webhook(
            "counter.count", url, "text.written", emits="text.counted"
        )
        texts = [" ".join(["word"] * (number + 1)) for number in range(20)]
        await stream.send_all([Draft("text.written", text) for text in texts])
        more = environment(stack, url, SHOP_SECRET=new_secret())
        async with (
            node(tmp_path, added["secret"], port),
            supervised("", tmp_path, "--processes", "2", "--webhooks", source=SOURCE, **more),
        ):

            async def counted() -> list[int]:
                return sorted(message.value["words"] for message in await stream.read("text.counted"))

            async def are_all() -> bool:
                return len(await counted()) >= len(texts)

            await until(are_all)
            assert await counted() == [number + 1 for number in range(20)]
            async with httpx.AsyncClient() as client:
                forged = sign([read_secret(new_secret())], "msg_1", int(time.time()), b'{"data": "x"}')
                answer = await client.post(url, content=b'{"data": "x"}', headers=forged)
                assert answer.status_code == 401
