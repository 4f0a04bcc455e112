"""One contestant, one command: `python -m tests.bench.program NAME COMMAND …`, by the Python that has it installed.

install URL             make its tables
send URL COUNT BATCH    send so many, in batches (1: one by one); prints the seconds it took
pace URL COUNT GAP LOAD send one every GAP seconds beside LOAD others a second; prints the moments of each
work URL STARTS         handle messages for ever
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable

from tests.bench.contestants import Sender, contestant
from tests.bench.starts import NUMBERED, Starts

_WARM = 50
_LOAD_SECONDS = 0.01


async def send(name: str, url: str, count: int, batch: int) -> None:
    """Send messages as fast as one connection can."""
    async with contestant(name).sender(url) as sender:
        if batch == 1:
            for _ in range(min(_WARM, count // 10)):
                await sender.one(NUMBERED)
        began = time.perf_counter()
        if batch == 1:
            for number in range(count):
                await sender.one(number)
        else:
            for first in range(0, count, batch):
                await sender.many(range(first, min(count, first + batch)))
        print(json.dumps({"seconds": time.perf_counter() - began}))


async def pace(name: str, url: str, count: int, gap: float, load: float) -> None:
    """Send messages at a pace a worker keeps up with; prints when each call began and when it had committed."""
    moments = []
    async with contestant(name).sender(url) as sender, contestant(name).sender(url) as beside:
        loading = asyncio.create_task(_load(beside, load))
        for _ in range(5):
            await sender.one(NUMBERED)
            await asyncio.sleep(gap)
        await asyncio.sleep(0.5)
        due = time.monotonic()
        for number in range(count):
            began = time.monotonic_ns()
            await sender.one(number)
            moments.append((began, time.monotonic_ns()))
            due += gap
            await asyncio.sleep(max(0, due - time.monotonic()))
        loading.cancel()
    print(json.dumps(moments))


async def _load(sender: Sender, rate: float) -> None:
    batch = round(rate * _LOAD_SECONDS)
    due = time.monotonic()
    while batch:
        await sender.many([NUMBERED] * batch)
        due += _LOAD_SECONDS
        await asyncio.sleep(max(0, due - time.monotonic()))


def _command(name: str, command: str, arguments: list[str]) -> Awaitable[None]:
    match command, arguments:
        case "install", [url]:
            return contestant(name).install(url)
        case "send", [url, count, batch]:
            return send(name, url, int(count), int(batch))
        case "pace", [url, count, gap, load]:
            return pace(name, url, int(count), float(gap), float(load))
        case "work", [url, path]:
            return contestant(name).work(url, Starts(path))
    raise SystemExit(__doc__)


async def _main(name: str, command: str, *arguments: str) -> None:
    await _command(name, command, list(arguments))


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(*sys.argv[1:]))
