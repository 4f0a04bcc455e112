"""A long road to a port of 127.0.0.1: what enters at one end leaves at the other after a fixed time, in order.

    python -m tests.bench.road PORT SECONDS

Prints the port that it listens on. The road has no jitter, no loss and no bound of bandwidth: only its length counts.
"""

import contextlib
import math
import sys
from functools import partial

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


async def serve(target: int, seconds: float) -> None:
    """Carry every connection to the port there, each way in so many seconds, until killed."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        print(listener.extra(SocketAttribute.local_port), flush=True)
        await listener.serve(partial(_connect, target, seconds))


async def _connect(target: int, seconds: float, client: SocketStream) -> None:
    with contextlib.suppress(*_GONE):
        async with (
            client,
            await anyio.connect_tcp("127.0.0.1", target) as server,
            anyio.create_task_group() as tasks,
        ):
            for source, sink in ((client, server), (server, client)):
                enter, leave = anyio.create_memory_object_stream[tuple[float, bytes]](math.inf)
                tasks.start_soon(_enter, source, enter, seconds)
                tasks.start_soon(_leave, leave, sink, tasks.cancel_scope)


async def _enter(
    source: SocketStream, way: MemoryObjectSendStream[tuple[float, bytes]], seconds: float
) -> None:
    async with way:
        with contextlib.suppress(*_GONE):
            while True:
                data = await source.receive()
                way.send_nowait((anyio.current_time() + seconds, data))


async def _leave(
    way: MemoryObjectReceiveStream[tuple[float, bytes]], sink: SocketStream, connection: anyio.CancelScope
) -> None:
    async with way:
        with contextlib.suppress(*_GONE):
            async for due, data in way:
                await anyio.sleep_until(due)
                await sink.send(data)
    # One end has closed, and all it had written has come.
    connection.cancel()


if __name__ == "__main__":
    anyio.run(serve, int(sys.argv[1]), float(sys.argv[2]), backend_options={"use_uvloop": True})
