"""Does it slow down as the tables grow? The same drain behind finished messages, and before a long queue."""

from collections.abc import AsyncIterator

from tests.bench.measures import Scale
from tests.bench.measures.drain import cpu_of, drained
from tests.bench.sample import Sample
from tests.bench.server import Server, Shape, call


async def growth(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """Empty, and behind each number of finished messages."""
    for history in (0, scale.history):
        shape = Shape(queued=scale.messages, history=history)
        sample = await drained(server, scale, name, shape, f"growth/{_behind(history)}")
        yield sample
        yield cpu_of(sample)


async def huge(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """Behind ten million, in one database that is not copied but filled again; the empty one beside it is, too."""
    for history in (0, scale.huge):
        shape = Shape(history=history)
        database = await server.kept(name, shape)
        await call(name, "send", database.url, scale.messages, 1000)
        queued = Shape(queued=scale.messages, history=history)
        sample = await drained(server, scale, name, queued, f"huge/{_behind(history)}", database=database)
        yield sample
        yield cpu_of(sample)


async def backlog(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """The first of a queue of a million, beside a queue that holds no more than those."""
    for queued in (scale.messages, scale.backlog):
        yield await drained(
            server, scale, name, Shape(queued=queued), f"backlog/{queued:,}", deliveries=scale.messages
        )


def _behind(history: int) -> str:
    return f"behind {history:,} finished" if history else "empty"
