"""A sender as senders are: it waits a second, and sends again until it is told 2xx. Its receiver is killed at times."""

import json
import random
import time
from contextlib import suppress

import anyio
import httpx
from anyio.abc import Process

from runtime.local.ports import free_port
from runtime.webhooks.signatures import new_secret, read_secret, sign
from tests.chaos.ledger import Ledger
from tests.chaos.stage import Stage

SENDERS = 3
LIVES_SECONDS = (0.5, 2.5)
_PATIENCE_SECONDS = 1.0
_PAUSE_SECONDS = 0.05
_SOURCES = json.dumps([{"name": "shop", "key": "incoming.{event}", "secret": "SHOP_SECRET"}])


async def drive(stage: Stage, ledger: Ledger, until: float) -> None:
    """Send webhooks until the time is up, and each of them until it is known to be stored."""
    secret, port = new_secret(), free_port()
    async with anyio.create_task_group() as receiving:
        receiving.start_soon(_receive, stage, secret, port, until)
        async with anyio.create_task_group() as sending:
            for _ in range(SENDERS):
                sending.start_soon(_send, ledger, secret, port, until)
        receiving.cancel_scope.cancel()


async def _send(ledger: Ledger, secret: str, port: int, until: float) -> None:
    url = f"http://127.0.0.1:{port}/webhooks/shop"
    async with httpx.AsyncClient(timeout=_PATIENCE_SECONDS) as client:
        while time.monotonic() < until:
            number = random.randrange(2**31)
            body = json.dumps({"type": "order.paid", "number": number}).encode()
            while True:
                headers = sign([read_secret(secret)], f"msg_{number}", int(time.time()), body)
                with suppress(httpx.HTTPError):
                    answer = await client.post(url, content=body, headers=headers)
                    if answer.is_success:
                        ledger.driven["incoming"].append((number, answer.json()["message"]))
                        break
                await anyio.sleep(_PAUSE_SECONDS)
            await anyio.sleep(_PAUSE_SECONDS)


async def _receive(stage: Stage, secret: str, port: int, until: float) -> None:
    """Have a server live for a moment, kill it, and have another; the last one lives until the senders are done."""
    while True:
        process = await stage.start_runtime(
            "serve", "--port", str(port),
            SHOP_SECRET=secret, RUNTIME_SOURCES=_SOURCES, RUNTIME_LOG_LEVEL="error", RUNTIME_REQUEST_SECONDS="3",
        )  # fmt: skip
        try:
            await _wait_for_port(process, port)
            if time.monotonic() >= until:
                await anyio.sleep_forever()
            await anyio.sleep(random.uniform(*LIVES_SECONDS))
        finally:
            with anyio.CancelScope(shield=True):
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                await process.aclose()


async def _wait_for_port(process: Process, port: int) -> None:
    while process.returncode is None:
        with suppress(OSError):
            async with await anyio.connect_tcp("127.0.0.1", port):
                return
        await anyio.sleep(0.05)
