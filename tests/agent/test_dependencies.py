"""Where do a handler's other arguments come from, when are they made and unmade, and what is refused at import?"""

import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NewType

import anyio
import pytest

from runtime import Agent, Context, Message, Reject
from runtime.errors import DeclarationError
from tests.worker.execution.test_executor import Stage

pytestmark = pytest.mark.anyio


@dataclass
class Pool:
    """What an agent opens once."""

    name: str


@dataclass
class Connection:
    """What an attempt has for itself."""

    pool: Pool
    message_id: int


class Mail:
    """What needs a connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection


Address = NewType("Address", str)
Replica = Annotated[Pool, "the replica"]


def shop(events: list[Any]) -> Agent:
    """An agent with providers of every kind; none of its handlers yet."""
    agent = Agent("shop")

    @agent.lifespan
    async def opened() -> AsyncIterator[Pool]:
        yield Pool("never entered on a runner without a worker")

    @agent.provide
    async def connect(pool: Pool, context: Context) -> AsyncIterator[Connection]:
        events.append(f"connect {context.message.id}")
        try:
            yield Connection(pool, context.message.id)
            events.append("commit")
        except Exception as error:  # noqa: BLE001 - what it makes of it must not matter
            events.append(f"roll back for {type(error).__name__}")

    @agent.provide
    def mail(connection: Connection, message: Message[int]) -> Iterator[Mail]:
        events.append(f"mail for {message.value}")
        yield Mail(connection)
        events.append("sent")

    @agent.provide
    async def replica() -> Replica:
        return Pool("replica")

    @agent.provide
    def address() -> Address:
        return Address("7 Quay Street")

    return agent


async def test_what_is_needed_is_made_once_in_order_and_unmade_in_reverse() -> None:
    events: list[Any] = []
    agent = shop(events)

    @agent.on("a.b", emits="a.c")
    async def work(
        value: int, mail: Mail, connection: Connection, replica: Replica, pool: Pool, address: Address
    ) -> str:
        assert mail.connection is connection
        assert (pool.name, replica.name) == ("main", "replica")
        events.append("work")
        return f"{connection.message_id} {address}"

    async with Stage(agent, {}, states={"shop": Pool("main")}).open() as it:
        it.give("work", 41)
        [report] = await it.reported()
    assert report.error is None
    assert '"1 7 Quay Street"' in report.emits[0]
    assert events == ["connect 1", "mail for 41", "work", "sent", "commit"]


async def test_nobody_makes_what_is_not_needed_and_the_next_attempt_gets_its_own() -> None:
    events: list[Any] = []
    agent, seen = shop(events), set()

    @agent.on("a.b")
    async def work(value: int, connection: Connection) -> None:
        seen.add(id(connection))
        kept.append(connection)

    kept: list[Connection] = []
    async with Stage(agent, {"shop.work": 1}, states={"shop": Pool("main")}).open() as it:
        it.give("work", 1, 2)
        await it.reported(2)
    assert events == ["connect 1", "commit", "connect 2", "commit"]
    assert len(seen) == 2


async def test_a_plain_handler_has_plain_providers_in_its_own_thread_and_async_ones_on_the_loop() -> None:
    agent, threads = Agent("a"), {}

    class Settings: ...

    class Service: ...

    @agent.provide
    def archive() -> Iterator[sqlite3.Connection]:
        # SQLite refuses to be used, and to be closed, in another thread.
        connection = sqlite3.connect(":memory:")
        yield connection
        connection.close()
        threads["archive"] = threading.current_thread()

    @agent.provide
    def settings() -> Settings:
        threads["settings"] = threading.current_thread()
        return Settings()

    @agent.provide
    async def service(settings: Settings) -> Service:
        return Service()

    @agent.on("a.b", emits="a.c")
    def work(value: int, archive: sqlite3.Connection, service: Service, context: Context) -> Any:
        threads["work"] = threading.current_thread()
        return archive.execute("select ?", [value]).fetchone()[0]

    async with Stage(agent, {}).open() as it:
        it.give("work", 7)
        [report] = await it.reported()
    assert report.error is None
    assert report.emits[0].endswith('"value":7}')
    assert threads["archive"] is threads["work"] is not threading.main_thread()
    # An async provider cannot wait for a thread.
    assert threads["settings"] is threading.main_thread()


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_provider_is_told_of_an_error_and_cannot_make_it_none(kind: str) -> None:
    events: list[Any] = []
    agent = shop(events)

    class Lock: ...

    @agent.provide
    def lock() -> Iterator[Lock]:
        try:
            yield Lock()
        except ValueError:
            events.append("unlock")

    if kind == "async":

        @agent.on("a.b", name="work")
        async def work(value: int, connection: Connection, lock: Lock) -> None:
            raise ValueError("no")
    else:

        @agent.on("a.b", name="work")
        def work_in_thread(value: int, connection: Connection, lock: Lock) -> None:
            raise ValueError("no")

    async with Stage(agent, {}, states={"shop": Pool("main")}).open() as it:
        it.give("work", 1)
        [report] = await it.reported()
    assert (report.outcome, report.error) == ("failed", "ValueError: no")
    assert events == ["connect 1", "unlock", "roll back for ValueError"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_provider_that_fails_fails_the_attempt(when: str, kind: str) -> None:
    agent, ran = Agent("a"), []

    class Lock: ...

    def held() -> Iterator[Lock]:
        if when == "before":
            raise Reject("it is locked for good")
        yield Lock()
        raise Reject("it is locked for good")

    async def held_on_loop() -> AsyncIterator[Lock]:
        for lock in held():
            yield lock

    agent.provide(held if kind == "plain" else held_on_loop)

    @agent.on("a.b", emits="a.c")
    def work(value: int, lock: Lock) -> int:
        ran.append(value)
        return value

    async with Stage(agent, {}).open() as it:
        it.give("work", 1)
        [report] = await it.reported()
    assert (report.outcome, report.error, report.emits) == ("dead", "Reject: it is locked for good", ())
    assert ran == [1] * (when == "after")


async def test_the_timeout_covers_providers_and_a_middleware_stands_around_them() -> None:
    events: list[Any] = []
    agent = Agent("a")

    class Lock: ...

    @agent.middleware
    async def tell(context: Context, call_next: Any) -> Any:
        events.append("around")
        return await call_next()

    @agent.provide
    async def lock() -> AsyncIterator[Lock]:
        events.append("locking")
        try:
            await anyio.sleep_forever()
            yield Lock()
        finally:
            events.append("unlocked")

    @agent.on("a.b", timeout=0.05)
    async def work(value: int, lock: Lock) -> None: ...

    async with Stage(agent, {}).open() as it:
        it.give("work", 1)
        [report] = await it.reported()
    assert report.error == "TimeoutError"
    assert events == ["around", "locking", "unlocked"]


async def test_a_batch_has_one_for_all_its_messages() -> None:
    agent, made = Agent("a"), []

    class Lock: ...

    @agent.provide
    def lock() -> Lock:
        made.append(Lock())
        return made[-1]

    @agent.on("a.b", batch=3, emits="a.c")
    async def work(messages: list[Message[int]], lock: Lock) -> list[int]:
        assert lock is made[-1]
        return [message.value for message in messages]

    async with Stage(agent, {}).open() as it:
        it.give("work", 1, 2, "three")
        reports = await it.reported(3)
    assert sorted(str(report.outcome) for report in reports) == ["None", "None", "dead"]
    assert len(made) == 1


class Unknown: ...


def takes_value(value: int) -> Pool: ...
def takes_anything(value) -> Pool: ...  # type: ignore[no-untyped-def]
def needs_unknown(unknown: Unknown) -> Pool: ...
def needs_itself(pool: Pool) -> Pool: ...
def says_nothing(): ...  # type: ignore[no-untyped-def]
def says_none() -> None: ...
def says_text() -> str: ...
def says_list() -> list[int]: ...
def says_either() -> Pool | None: ...
def says_any() -> Any: ...
def says_context() -> Context: ...
def says_message() -> Message[int]: ...
def yields_nothing_known():  # type: ignore[no-untyped-def]
    yield Pool("")


def yields_a_pool() -> Pool:  # type: ignore[misc]
    yield Pool("")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (takes_value, "'value' cannot be filled: no provider above gives <class 'int'>"),
        (takes_anything, "'value' cannot be filled: it has no annotation"),
        (needs_unknown, r"no provider above gives .*Unknown.*providers above it give"),
        (
            needs_itself,
            r"no provider above gives .*Pool.*Two providers that need each other cannot be filled",
        ),
        (says_nothing, "say what it provides, as `-> Connection`"),
        (says_none, "say what it provides"),
        (says_text, "<class 'str'> cannot be provided, since a message's value may be of that type"),
        (says_list, "cannot be provided"),
        (says_either, "cannot be provided"),
        (says_any, "cannot be provided"),
        (says_context, "cannot be provided"),
        (says_message, "cannot be provided"),
        (yields_nothing_known, r"say what it provides, as `-> AsyncIterator\[Connection\]`"),
        (yields_a_pool, "say what it provides"),
        (7, "goes above a bare function"),
    ],
)
def test_a_provider_that_makes_no_sense_is_refused_with_the_cure(function: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        Agent("a").provide(function)


def test_two_providers_of_one_type_are_refused() -> None:
    agent = Agent("a")

    @agent.provide
    def first() -> Pool:
        return Pool("first")

    with pytest.raises(
        DeclarationError, match=r'Pool is provided already.*Annotated\[Pool, "the other one"\]'
    ):
        agent.provide(first)


def test_a_provider_below_the_handler_that_needs_it_is_refused() -> None:
    agent = Agent("a")

    @agent.on("a.b")
    async def work(pool: Pool) -> None: ...

    with pytest.raises(DeclarationError, match=r"a\.work has a parameter of .*Pool.* above"):

        @agent.provide
        def first() -> Pool:
            return Pool("first")


def test_a_handler_whose_parameter_nobody_provides_is_told_how() -> None:
    agent = Agent("a")

    async def two(value: int, pool: Pool) -> None: ...
    async def lock(lock: threading.Event) -> None: ...

    with pytest.raises(DeclarationError, match=r"A provider, @agent\.provide, is declared above"):
        agent.on("a.b")(two)
    with pytest.raises(DeclarationError, match="declare its provider above"):
        agent.on("a.b")(lock)


def test_a_batch_cannot_need_what_needs_the_message() -> None:
    agent = Agent("a")

    @agent.provide
    def of_message(message: Message[int]) -> Pool:
        return Pool(str(message.value))

    @agent.provide
    def connection(pool: Pool) -> Connection:
        return Connection(pool, 0)

    async def work(messages: list[Message[int]], connection: Connection) -> None: ...

    with pytest.raises(DeclarationError, match="takes the message, and a batch has many"):
        agent.on("a.b", batch=3)(work)
