"""A target as targets are: it loses answers, is away for a while, is slow; and a script that gives it work."""

import json
import os
import random
import time
from contextlib import ExitStack, suppress

import anyio
from standardwebhooks import Webhook

from runtime.client.stream import connect
from runtime.errors import StoreError
from tests.chaos.ledger import Entry, Ledger
from tests.chaos.stage import Stage
from tests.receiver import Answering, Received, receiving

PORT = "CHAOS_OUTGOING_PORT"
SECRET = "CHAOS_OUTGOING_SECRET"
REQUESTS = "outgoing requests"

_PAUSE_SECONDS = 0.05
_LOSES = 0.1
_FAILS = 0.02
_SLOW_SECONDS = 0.1
# So often and so long it is away for everybody: long enough to be left alone.
_AWAY_EVERY_SECONDS = 12.0
_AWAY_SECONDS = 1.0
_RESTS = "update runtime.policy set webhook_rest_seconds = 0.5, webhook_longest_rest_seconds = 2"

# Outlives the script: what is left after the last fault is posted when that has ended.
_server = ExitStack()
_ledgers: list[Ledger] = []


async def drive(stage: Stage, ledger: Ledger, until: float) -> None:
    """Write orders until the time is up, each until it is known to be stored."""
    if not _ledgers:
        target = _server.enter_context(receiving(port=int(os.environ[PORT])))
        _ledgers.append(ledger)
        target.answer = _answer
        stage.at_end.callback(close)
    with suppress(Exception):
        async with stage.connection() as connection:
            await connection.execute(_RESTS)
    number = len(ledger.driven["outgoing"])
    async with connect(stage.settings("rest")) as stream:
        while time.monotonic() < until:
            number += 1
            while True:
                try:
                    await stream.send("outgoing.order", {"number": number}, dedup_key=f"outgoing-{number}")
                    break
                except StoreError:
                    await anyio.sleep(_PAUSE_SECONDS)
            ledger.driven["outgoing"].append(number)
            await anyio.sleep(_PAUSE_SECONDS)


def _answer(request: Received) -> Answering:
    began = time.monotonic()
    if began % _AWAY_EVERY_SECONDS < _AWAY_SECONDS:
        return Answering(503)
    message = Webhook(os.environ[SECRET]).verify(request.body, dict(request.headers))
    body = json.loads(request.body)
    number = message["data"]["number"]
    [ledger] = _ledgers
    ledger.driven[REQUESTS].append((request.webhook_id, number))
    time.sleep(random.uniform(0, _SLOW_SECONDS))
    if random.random() < _FAILS:
        return Answering(500)
    ledger.entries.append(Entry("outbox.post", body["id"], number, body["attempt"], began, time.monotonic()))
    # What was done and is not told is asked for again.
    return Answering(None if random.random() < _LOSES else 200, {"number": number})


def close() -> None:
    """End the server, when all is judged."""
    _server.close()
    _ledgers.clear()
