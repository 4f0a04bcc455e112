"""Is an argument that makes no sense refused with its name, before anything is requested?"""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest

from runtime.client.dead_letters import DeadLetterFilter
from runtime.client.stream import Stream, connect
from runtime.errors import InvalidKey, InvalidValue, StoreUnavailable
from runtime.settings import Settings
from runtime.store.arguments import checked

pytestmark = pytest.mark.anyio
Call = Callable[[Stream], Awaitable[Any]]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One loop for the module."""
    return "asyncio"


@pytest.fixture(scope="module")
async def stream(anyio_backend: str) -> AsyncIterator[Stream]:
    """A stream at which nothing answers."""
    settings = Settings.load(
        supabase_url=None, supabase_key=None, database_url="postgresql://nobody@127.0.0.1:1/none"
    )
    async with connect(settings) as stream:
        yield stream


async def _first_of_listen(stream: Stream, **options: Any) -> None:
    await anext(stream.listen("a.b", **options))


async def _redrive(stream: Stream, **which: Any) -> None:
    async for _ in stream.operations.redrive(DeadLetterFilter(**which)):
        pass


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda it: it.read("a.b", limit="x"), "limit must be a whole number, not 'x'"),
        (lambda it: it.read("a.b", limit=-1), "limit must be a whole number from 1 to 10,000, not -1"),
        (lambda it: it.read("a.b", limit=0), "limit must be a whole number from 1 to 10,000, not 0"),
        (lambda it: it.read("a.b", limit=True), "limit must be a whole number, not True"),
        (lambda it: it.read("a.b", limit=5.0), "limit must be a whole number, not 5.0"),
        (lambda it: it.read("a.b", limit=10_001), "from 1 to 10,000, not 10001"),
        (lambda it: it.read("a.b", limit=10**5000), "from 1 to 10,000, not int"),
        (lambda it: it.read("a.b", after="1"), "after must be a whole number, not '1'"),
        (lambda it: it.read("a.b", before=2**70), "before must be a whole number from -9,2"),
        (lambda it: it.read("a.b", since="yesterday"), "since must be a datetime, such as .*, not 'yesterday'"),
        (lambda it: it.read("a.b", until=date(2030, 1, 1)), "until must be a datetime, such as .*, not date"),
        (lambda it: it.read("a.b", correlation_id=7), "correlation_id must be a text, not 7"),
        (lambda it: it.read("a.b", correlation_id="a\0b"), "correlation_id has a NUL character"),
        (lambda it: it.latest("a.b", correlation_id="\ud800"), "correlation_id has a NUL character or half of"),
        (lambda it: it.latest_of_each("a.*", limit="5"), "limit must be"),
        (lambda it: it.get("7"), "message must be a whole number, not '7'"),
        (lambda it: it.get(None), "message must be a whole number, not NoneType"),
        (lambda it: _first_of_listen(it, since="7"), "since, the id of a message, must be a whole number, not '7'"),
        (lambda it: _first_of_listen(it, since=datetime.now(UTC)), "since, the id of a message, must be .*, not date"),
        (lambda it: it.views.page(limit=501), "limit must be a whole number from 1 to 500, not 501"),
        (lambda it: it.views.page(since="1h"), "since must be a datetime"),
        (lambda it: it.views.trace(None), "message must be a whole number, not NoneType"),
        (lambda it: it.views.conversation(7), "correlation must be a text, not 7"),
        (lambda it: it.views.handling("12"), "ids must be a list of whole numbers, not '12'"),
        (lambda it: it.views.activity(float("nan")), "seconds must be a number of seconds, 0 or more, not nan"),
        (lambda it: it.views.dead_groups(since=5), "since must be a datetime, such as .*, not 5"),
        (lambda it: it.operations.approvals(limit=-1), "limit must be a whole number from 1 to 10,000, not -1"),
        (lambda it: it.operations.dead_letters(DeadLetterFilter(), limit=0), "limit must be a whole number from 1 to"),
        (lambda it: it.operations.dead_letters(DeadLetterFilter(), before="x"), "before must be a whole number"),
        (lambda it: _redrive(it, ids="12"), "ids must be a list of whole numbers, not '12'"),
        (lambda it: _redrive(it, ids=["1"]), "ids must be a whole number, not '1'"),
        (lambda it: it.operations.replay("a.b", since="1h"), "since must be a datetime"),
        (lambda it: it.operations.replay(None), "subscription must be a text, not NoneType"),
        (lambda it: it.operations.replay("a.b", dry_run="no"), "dry_run must be True or False, not 'no'"),
        (lambda it: it.operations.decide(1, "no"), "approved must be True or False, not 'no'"),
        (lambda it: it.operations.prune("1d"), "older_than_seconds must be a number of seconds, 0 or more, not '1d'"),
        (lambda it: it.operations.prune(-1), "older_than_seconds must be a number of seconds, 0 or more, not -1"),
        (lambda it: it.operations.waits(limit=[]), "limit must be a whole number, not list"),
    ],
)  # fmt: skip
async def test_an_argument_that_makes_no_sense_is_refused_by_name(
    stream: Stream, call: Call, said: str
) -> None:
    with pytest.raises(InvalidValue, match=said):
        await call(stream)


@pytest.mark.parametrize(
    "call",
    [
        lambda it: it.read(5),
        lambda it: it.views.page(5),
        lambda it: it.operations.replay("a.b", pattern="a b"),
        lambda it: anext(it.listen(None)),
    ],
)
async def test_so_is_a_pattern_that_is_none(stream: Stream, call: Call) -> None:
    with pytest.raises(InvalidKey, match="is not a pattern"):
        await call(stream)


async def test_what_makes_sense_is_requested(stream: Stream) -> None:
    with pytest.raises(StoreUnavailable):
        await stream.views.trace(1)


def test_values_go_out_as_their_types_are_sent() -> None:
    class Whole:
        """As NumPy's."""

        def __index__(self) -> int:
            return 7

    naive = datetime(2030, 1, 1)
    given = {"ids": {Whole()}, "since": naive, "until": datetime.min, "subscription": "a.b", "pattern": None}
    sent = checked("stream_replay", given)
    assert sent.pop("until").tzinfo is not None
    assert sent == {"ids": [7], "since": naive.astimezone(), "subscription": "a.b"}
