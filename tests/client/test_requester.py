"""Does whoever asks get what the handler returns or raises, once, and say clearly when nothing comes?"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from runtime import Agent, BatchContext, Context, Message, Reject, Retry, connect
from runtime.client.dead_letters import DeadLetterFilter
from runtime.client.stream import Stream
from runtime.errors import AskFailed, AskTimeout, InvalidValue, NobodyAnswers, RuntimeFault
from runtime.testing import Harness

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_suspended")]

SOON = Retry(attempts=3, first_seconds=0, cap_seconds=0)

shop = Agent("shop")
calls: list[tuple[str, Any]] = []


@shop.on("price.wanted", retry=SOON)
async def price(item: str, context: Context) -> dict[str, Any]:
    """Answer, at the second call where the item is rare; never for what is sold out."""
    calls.append((context.handler, item))
    if item == "rare" and len(calls) == 1:
        raise ConnectionError("the list is being fetched")
    if item == "sold out":
        raise Reject("none left")
    if item == "broken":
        raise ValueError("no such shelf")
    return {"item": item, "cents": 5}


@shop.on("stock.wanted")
def stock(item: str) -> None:
    """Return nothing, which is an answer too."""


@pytest.fixture(autouse=True)
def forget() -> None:
    """Nothing was called yet."""
    calls.clear()


@pytest.fixture
async def stream(harness: Harness) -> AsyncIterator[Stream]:
    """A script's stream, while the shop is open."""
    async with harness.running(shop), connect(harness.settings) as stream:
        yield stream


async def test_the_answer_is_what_the_handler_returns(stream: Stream, harness: Harness) -> None:
    assert await stream.ask("price.wanted", "pen") == {"item": "pen", "cents": 5}
    assert await stream.ask("stock.wanted", "pen") is None
    request, answer = await stream.read("price.wanted"), await stream.read("answer.>")
    assert (answer[0].parent_id, answer[0].agent) == (request[0].id, "shop")
    assert answer[0].correlation_id == str(request[0].id)
    assert answer[0].headers["handler"] == "shop.price"
    story = await stream.views.trace(request[0].id)
    assert [(each["id"], each["parent_id"]) for each in story["messages"]] == [
        (request[0].id, None), (answer[0].id, request[0].id),
    ]  # fmt: skip


async def test_an_answer_comes_after_a_retry_and_comes_once(stream: Stream, harness: Harness) -> None:
    assert (await stream.ask("price.wanted", "rare"))["cents"] == 5
    assert len(calls) == 2
    await stream.operations.replay("shop.price", pattern="price.wanted")
    await harness.drain()
    assert len(calls) == 3
    assert len(await stream.read("answer.>")) == 1


async def test_what_fails_for_good_is_raised_where_it_was_asked(stream: Stream) -> None:
    with pytest.raises(AskFailed, match="no such shelf") as failed:
        await stream.ask("price.wanted", "broken")
    assert (failed.value.handler, failed.value.reason) == ("shop.price", "failed")
    assert failed.value.error == "ValueError: no such shelf"
    assert calls == [("shop.price", "broken")] * 3
    with pytest.raises(AskFailed, match="none left") as rejected:
        await stream.ask("price.wanted", "sold out")
    assert rejected.value.reason == "rejected"
    with pytest.raises(AskFailed, match="valid string") as invalid:
        await stream.ask("price.wanted", 5)
    assert invalid.value.reason == "invalid"


async def test_a_redrive_brings_the_answer_to_whoever_asks_again(stream: Stream, harness: Harness) -> None:
    is_there = False
    other = Agent("other")

    @other.on("shelf.wanted", retry=Retry(attempts=1))
    async def shelf(item: str) -> str:
        if not is_there:
            raise ValueError("no such shelf")
        return "left"

    async with harness.running(other):
        with pytest.raises(AskFailed, match="no such shelf"):
            await stream.ask("shelf.wanted", "pen", dedup_key="where")
        is_there = True
        async for _ in stream.operations.redrive(DeadLetterFilter(subscription="other.shelf")):
            pass
        await harness.drain()
        assert await stream.ask("shelf.wanted", "pen", dedup_key="where") == "left"
        (only,) = await stream.ask_all("shelf.wanted", "pen", dedup_key="where")
        assert only.value == "left"
    assert len(await stream.read("answer.>")) == 2


async def test_a_request_nobody_listens_to_fails_at_once_and_says_so(stream: Stream) -> None:
    with anyio.fail_after(60), pytest.raises(NobodyAnswers, match="no handler listens to that key") as nobody:
        await stream.ask("prise.wanted", "pen")
    assert nobody.value.request is not None
    assert await stream.ask_all("prise.wanted", "pen") == []


async def test_a_time_out_names_the_request_and_the_late_answer_is_kept(
    stream: Stream, harness: Harness
) -> None:
    go = anyio.Event()
    slow = Agent("slow")

    @slow.on("slow.wanted")
    async def late(item: str) -> str:
        await go.wait()
        return "at last"

    async with harness.running(slow):
        with pytest.raises(AskTimeout) as out:
            await stream.ask("slow.wanted", "pen", timeout=0.5)
        assert isinstance(out.value, TimeoutError)
        assert f"request {out.value.request} under slow.wanted" in str(out.value)
        assert "(1 of its handlers have not finished)" in str(out.value)
        assert out.value.reply_to in str(out.value)
        go.set()
        await harness.drain()
        (answer,) = await stream.read(out.value.reply_to)
    assert (answer.value, answer.parent_id) == ("at last", out.value.request)


async def test_several_answer_and_failures_are_among_them(stream: Stream, harness: Harness) -> None:
    more = Agent("more")
    go = anyio.Event()

    @more.on("price.wanted")
    async def guess(item: str) -> int:
        return 7

    @more.on("price.wanted", retry=Retry(attempts=1))
    async def fail(item: str) -> int:
        raise OSError("no idea")

    @more.on("price.wanted")
    async def wait(item: str) -> str:
        if item == "pen":
            await go.wait()
        return "late"

    @more.on("price.>")
    async def keep(item: str) -> str:
        return "kept"

    async with harness.running(more):
        two = await stream.ask_all("price.wanted", "pen", first=2)
        assert len(two) == 2
        some = await stream.ask_all("price.wanted", "pen", timeout=0.3)
        assert {answer.handler for answer in some} == {"shop.price", "more.guess", "more.fail"}
        (failed,) = (answer for answer in some if answer.error is not None)
        assert (failed.handler, failed.value) == ("more.fail", None)
        with pytest.raises(AskFailed, match="no idea"):
            failed.given()
        # Who only keeps a log of whatever is asked is not waited for; a failure is no answer while others may come.
        everybody = await stream.ask_all("price.wanted", "ink")
        assert {answer.handler: answer.value for answer in everybody} == {
            "shop.price": {"item": "ink", "cents": 5}, "more.guess": 7, "more.fail": None, "more.wait": "late",
        }  # fmt: skip
        assert await stream.ask("price.wanted", "sold out") in (7, "late")
        go.set()


async def test_where_only_patterns_listen_they_answer(harness: Harness) -> None:
    wild = Agent("wild")

    @wild.on("sum.*")
    async def add(numbers: list[int]) -> int | None:
        return sum(numbers) or None

    hasty = harness.settings.model_copy(update={"poll_slow_seconds": 0.1})
    async with harness.running(wild), connect(hasty) as stream:
        assert await stream.ask("sum.all", [1, 2]) == 3
        assert await stream.ask("sum.all", []) is None


async def test_many_ask_at_once_and_each_gets_its_own(stream: Stream) -> None:
    found: dict[int, Any] = {}

    async def ask(number: int) -> None:
        found[number] = (await stream.ask("price.wanted", str(number)))["item"]

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(ask, number)
    assert found == {number: str(number) for number in range(50)}


async def test_whoever_gives_up_leaves_nothing_behind(stream: Stream) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            lambda: stream.ask("price.wanted", "pen", timeout=None, expires_in=60, headers={"a": 1})
        )
        # Given up when it waits, however long a busy machine takes until then.
        with anyio.fail_after(60):
            while stream._requester is None or not stream._requester._waiting:
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    assert stream._requester._waiting == []
    for wrong in (0, -1, float("nan"), "soon"):
        with pytest.raises(InvalidValue, match="timeout="):
            await stream.ask("price.wanted", "pen", timeout=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="first="):
        await stream.ask_all("price.wanted", "pen", first=0)


async def test_a_handler_of_batches_answers_each(harness: Harness) -> None:
    many = Agent("many")

    @many.on("square.wanted", batch=10, within=0.05, retry=Retry(attempts=1))
    async def square(messages: list[Message[int]], context: BatchContext) -> None:
        for message in messages:
            if message.value == 3:
                context.fail(message, ValueError("not three"))
            elif message.value:
                context.answer(message, message.value**2)

    async with harness.running(many), connect(harness.settings) as stream:
        found: dict[int, Any] = {}

        async def ask(number: int) -> None:
            (answer,) = await stream.ask_all("square.wanted", number)
            found[number] = answer.value if answer.error is None else answer.error.error

        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(ask, number)
    assert found == {0: None, 1: 1, 2: 4, 3: "ValueError: not three", 4: 16}


# Handlers that ask


async def test_a_handler_asks_and_a_retry_finds_the_same_answer(stream: Stream, harness: Harness) -> None:
    desk = Agent("desk")
    heard: list[Any] = []

    @desk.on("order.placed", retry=SOON, emits="order.priced")
    async def order(item: str, context: Context) -> int:
        first = await context.ask("price.wanted", item)
        again = await context.ask("price.wanted", item)
        heard.append((first, again))
        if context.attempt == 1:
            raise ConnectionError("the till is closed")
        return int(first["cents"])

    @desk.on("order.checked", emits="order.priced")
    def check(item: str, context: Context) -> int:
        return int(context.ask_blocking("price.wanted", item)["cents"])

    async with harness.running(desk):
        sent = await harness.send("order.placed", "pen")
        await harness.send("order.checked", "ink")
        await harness.drain()
        await harness.assert_emitted("order.priced", 5, times=2)
    assert heard == [({"item": "pen", "cents": 5},) * 2] * 2
    # The second question of an attempt is another one; those of the next attempt are the same two.
    assert calls.count(("shop.price", "pen")) == 2
    requests = [each for each in await stream.read("price.wanted") if each.value == "pen"]
    assert [(each.parent_id, each.agent, each.correlation_id) for each in requests] == [
        (sent.id, "desk", str(sent.id))
    ] * 2


async def test_a_handler_reads_the_stream(harness: Harness) -> None:
    desk = Agent("desk")
    shown: list[Any] = []

    def show(first: Any, family: list[Any], newest: Any, missing: Any) -> None:
        shown.append((first and first.value, [each.key for each in family], newest and newest.id, missing))

    @desk.on("bill.wanted")
    async def bill(message: Message[None], context: Context) -> None:
        own = message.correlation
        show(
            await context.get(int(own)),
            await context.read(correlation_id=own),
            await context.latest("bill.wanted", correlation_id=own),
            await context.latest("bill.missing"),
        )
        with pytest.raises(RuntimeFault, match=r"await context\.get"):
            context.get_blocking(1)

    @desk.on("sum.wanted")
    def add(message: Message[None], context: Context) -> None:
        own = message.correlation
        show(
            context.get_blocking(int(own)),
            context.read_blocking("*.wanted", correlation_id=own),
            context.latest_blocking("sum.wanted", correlation_id=own),
            context.latest_blocking("bill.missing"),
        )

    async with harness.running(desk):
        first = await harness.send("order.placed", "pen")
        ids = []
        for key in ("bill.wanted", "sum.wanted"):
            ids.append((await harness.send(key, correlation_id=str(first.id))).id)
            await harness.drain()
    assert shown == [
        ("pen", ["order.placed", "bill.wanted"], ids[0], None),
        ("pen", ["bill.wanted", "sum.wanted"], ids[1], None),
    ]


async def test_a_handler_gathers_answers_and_hears_of_failures(stream: Stream, harness: Harness) -> None:
    desk = Agent("desk")
    heard: list[Any] = []

    @desk.on("order.placed", retry=Retry(attempts=1))
    async def order(item: str, context: Context) -> None:
        heard.append([answer.handler for answer in await context.ask_all("price.wanted", "pen", first=1)])
        for key, value in (("price.wanted", item), ("prise.wanted", item)):
            try:
                await context.ask(key, value)
            except (AskFailed, NobodyAnswers) as error:
                heard.append(type(error))
        try:
            context.ask_blocking("price.wanted", "pen")
        except RuntimeFault as error:
            heard.append("await context.ask" in str(error))

    async with harness.running(desk):
        await harness.send("order.placed", "sold out")
        await harness.drain()
    assert heard == [["shop.price"], AskFailed, NobodyAnswers, True]


@pytest.mark.parametrize("limits", [{"ordered": True}, {"concurrency_total": 1}])
async def test_a_handler_that_would_wait_for_itself_is_refused(
    harness: Harness, limits: dict[str, Any]
) -> None:
    desk = Agent("desk")

    @desk.on("lane.1", **limits, retry=Retry(attempts=1))
    async def order(message: Message[int], context: Context) -> Any:
        return await context.ask("lane.1", message.value + 1)

    async with harness.running(desk), connect(harness.settings) as stream:
        with anyio.fail_after(60), pytest.raises(AskFailed, match="wait for this very attempt to end"):
            await stream.ask("lane.1", 1)


async def test_a_context_without_a_worker_says_what_to_do() -> None:
    context = Context(Message(1, "a.b", None), "a.b")
    with pytest.raises(RuntimeFault, match=r"harness\.running"):
        await context.ask("price.wanted")
    with pytest.raises(RuntimeFault, match=r"harness\.running"):
        await anyio.to_thread.run_sync(context.ask_blocking, "price.wanted")
    with pytest.raises(RuntimeFault, match=r"harness\.running"):
        await context.latest("price.wanted")


async def test_a_worker_that_stops_ends_the_questions_of_its_handlers(harness: Harness) -> None:
    desk, began = Agent("desk"), asyncio.Event()

    @desk.on("order.placed")
    async def order(item: str, context: Context) -> Any:
        began.set()
        return await context.ask("order.placed.again", item, timeout=None)

    quiet = Agent("quiet")

    @quiet.on("order.placed.again")
    async def never(item: str) -> None:
        await anyio.sleep_forever()

    with anyio.fail_after(60):
        async with harness.running(quiet, drain_seconds=0.1), harness.running(desk, drain_seconds=0.1):
            await harness.send("order.placed", "pen")
            await began.wait()
