"""What comes of a handler that gets many messages at once? Gathering alone, and the runner on a loop of its own."""

import asyncio
from typing import Any

import anyio
import pytest

from runtime import Agent, BatchContext, Context, Message, Reject, Retry, RetryLater
from runtime.errors import DeclarationError, InvalidValue
from runtime.store import Delivery, Report
from runtime.worker.execution.batching import PendingBatch
from tests.worker.execution.test_executor import stage

pytestmark = pytest.mark.anyio


def delivery(number: int, crashes: int = 0) -> Delivery:
    return Delivery(1, Message(id=number, key="a.b", value=number), f"lease {number}", crashes)


def ids(deliveries: list[Delivery]) -> list[int]:
    return [each.place[0] for each in deliveries]


def by_message(reports: list[Report]) -> dict[int, Report]:
    return {report.delivery.place[0]: report for report in reports}


# Gathering


def test_a_batch_is_ready_when_it_is_full_or_when_the_first_has_waited_long_enough() -> None:
    gathering = PendingBatch(3, 0.5)
    assert gathering.ready_in(0) is None
    gathering.add(delivery(1), now=10.0)
    gathering.add(delivery(2), now=10.4)
    assert gathering.ready_in(10.4) == pytest.approx(0.1)
    assert gathering.ready_in(10.6) == 0
    gathering.add(delivery(3), now=10.45)
    assert gathering.ready_in(10.45) == 0
    gathering.add(delivery(4), now=10.46)
    assert ids(gathering.take()) == [1, 2, 3]
    assert gathering.ready_in(10.46) == pytest.approx(0.5)


def test_without_a_time_whatever_is_there_is_ready() -> None:
    gathering = PendingBatch(100, 0.0)
    gathering.add(delivery(1), now=10.0)
    assert gathering.ready_in(10.0) == 0


def test_k8_what_may_have_crashed_its_worker_is_a_batch_of_its_own_and_waits_for_nobody() -> None:
    gathering = PendingBatch(10, 60)
    gathering.add(delivery(1), now=0)
    gathering.add(delivery(2, crashes=2), now=0)
    gathering.add(delivery(3), now=0)
    assert ids(gathering.take()) == [1]
    assert gathering.ready_in(0) == 0
    assert ids(gathering.take()) == [2]
    assert ids(gathering.take()) == [3]


def test_who_does_not_wait_any_more_is_in_no_batch() -> None:
    gathering = PendingBatch(10, 60)
    one, two = delivery(1), delivery(2)
    gathering.add(one, now=0)
    gathering.add(two, now=0)
    assert gathering.remove(one)
    assert not gathering.remove(one)
    assert ids(gathering.take()) == [2]


# The runner


async def test_a_full_batch_comes_as_messages_with_their_values_validated() -> None:
    seen: list[list[Message[int]]] = []

    async def work(messages: list[Message[int]], context: BatchContext) -> None:
        assert context.messages == tuple(messages)
        seen.append(messages)

    async with stage(work, batch=3, within=60).open() as it:
        it.give("work", 1, 2, 3)
        reports = await it.reported(3)
    assert [[message.value for message in batch] for batch in seen] == [[1, 2, 3]]
    assert [report.outcome for report in reports] == [None] * 3


async def test_an_unfinished_batch_runs_when_its_first_message_has_waited_long_enough() -> None:
    seen: list[list[int]] = []

    def work(values: list[int]) -> None:
        seen.append(values)

    async with stage(work, batch=100, within=0.05).open() as it:
        it.give("work", 1, 2)
        await it.reported(2)
    assert seen == [[1, 2]]


async def test_what_waits_while_a_batch_runs_is_the_next_batch() -> None:
    seen: list[list[int]] = []
    go = anyio.Event()

    async def work(values: list[int]) -> None:
        seen.append(values)
        await go.wait()

    async with stage(work, batch=100, limits={"a.work": 1}).open() as it:
        it.give("work", 1)
        await anyio.wait_all_tasks_blocked()
        it.give("work", 2, 3)
        await anyio.wait_all_tasks_blocked()
        go.set()
        await it.reported(3)
    assert seen == [[1], [2, 3]]


async def test_g5_a_value_that_does_not_validate_is_dead_alone() -> None:
    seen: list[list[int]] = []

    async def work(values: list[int]) -> None:
        seen.append(values)

    async with stage(work, batch=3, within=60).open() as it:
        it.give("work", 1, "seven", 3)
        reports = by_message(await it.reported(3))
    assert seen == [[1, 3]]
    assert (reports[2].outcome, reports[2].reason) == ("dead", "invalid")
    assert [reports[1].outcome, reports[3].outcome] == [None, None]


async def test_g5_of_a_batch_without_a_valid_value_nothing_runs() -> None:
    async def work(values: list[int]) -> None:
        raise AssertionError("called without a message")

    async with stage(work, batch=2, within=60).open() as it:
        it.give("work", "one", "two")
        reports = await it.reported(2)
    assert [report.reason for report in reports] == ["invalid", "invalid"]


async def test_g5_single_messages_fail_are_rejected_or_put_off_and_the_others_are_done() -> None:
    async def work(messages: list[Message[int]], context: BatchContext) -> None:
        for message in messages:
            context.emit("x.y", message.value, cause=message)
        context.fail(messages[0], ValueError("no"))
        context.fail(messages[1], Reject("never"))
        context.fail(messages[2], RetryLater(7))

    async with stage(work, batch=4, within=60).open() as it:
        it.give("work", 1, 2, 3, 4)
        reports = by_message(await it.reported(4))
    assert [reports[number].outcome for number in (1, 2, 3, 4)] == ["failed", "dead", "later", None]
    assert reports[1].error == "ValueError: no"
    assert reports[2].reason == "rejected"
    assert reports[3].delay == 7
    # What was emitted because of one that failed is not written.
    assert [len(reports[number].emits) for number in (1, 2, 3, 4)] == [0, 0, 0, 1]
    assert '"parent_id":4' in reports[4].emits[0]


async def test_g5_a_batch_that_raises_fails_whole_and_each_keeps_its_own_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work(messages: list[Message[int]], context: BatchContext) -> None:
        context.fail(messages[2], Reject("never"))
        raise OSError("the disk is full")

    async with stage(work, batch=3, within=60, retry=Retry(attempts=2)).open() as it:
        it.give("work", 1)
        it.give("work", 2, attempt=2)
        it.give("work", 3)
        reports = by_message(await it.reported(3))
    assert [reports[number].outcome for number in (1, 2, 3)] == ["failed", "dead", "dead"]
    assert [reports[number].reason for number in (2, 3)] == ["failed", "rejected"]
    assert sum("the disk is full" in record.getMessage() for record in caplog.records) == 1


async def test_what_is_returned_is_emitted_each_because_of_its_own_message() -> None:
    async def work(messages: list[Message[int]]) -> list[int | None]:
        return [None if message.value == 2 else 10 * message.value for message in messages]

    async with stage(work, batch=4, within=60, emits="a.c").open() as it:
        it.give("work", 1, 2, "no", 3)
        reports = by_message(await it.reported(4))
    assert [len(reports[number].emits) for number in (1, 2, 3, 4)] == [1, 0, 0, 1]
    assert '"value":30' in reports[4].emits[0]
    assert '"parent_id":4' in reports[4].emits[0]


@pytest.mark.parametrize("result", [[1], 7, [1, 2, 3]])
async def test_a_batch_that_does_not_return_one_for_each_has_failed_with_the_cure(result: Any) -> None:
    async def work(values: list[int]) -> Any:
        return result

    async with stage(work, batch=2, within=60, emits="a.c").open() as it:
        it.give("work", 1, 2)
        reports = await it.reported(2)
    assert {report.outcome for report in reports} == {"failed"}
    assert "must return a list of 2" in str(reports[0].error)
    assert not any(report.emits for report in reports)


async def test_in_a_batch_an_emit_names_its_cause_and_a_failure_its_message() -> None:
    complaints: list[str] = []

    async def work(messages: list[Message[int]], context: BatchContext) -> None:
        stranger = Message(id=99, key="a.b", value=0)
        for attempt in (
            lambda: context.emit("x.y", 1),
            lambda: context.emit("x.y", 1, cause=stranger),
            lambda: context.fail(stranger, ValueError()),
            lambda: context.fail(messages[0], "no exception"),  # type: ignore[arg-type]
        ):
            try:
                attempt()
            except InvalidValue as error:
                complaints.append(str(error))

    async with stage(work, batch=1).open() as it:
        it.give("work", 1)
        [report] = await it.reported()
    assert report.outcome is None
    assert [part in complaint for part, complaint in zip(
        ["cause=message", "99 is not one of this batch", "99 is not one of this batch", "needs an exception"],
        complaints, strict=True)] == [True] * 4  # fmt: skip


async def test_the_timeout_is_for_the_batch() -> None:
    async def work(values: list[int]) -> None:
        await anyio.sleep_forever()

    async with stage(work, batch=2, within=60, timeout=0.05).open() as it:
        it.give("work", 1, 2)
        reports = await it.reported(2)
    assert [report.outcome for report in reports] == ["failed", "failed"]
    assert "TimeoutError" in str(reports[0].error)


async def test_g6_so_many_batches_run_at_once_as_handlers_may() -> None:
    running = most = 0
    go = anyio.Event()

    async def work(values: list[int]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1

    async with stage(work, batch=2, limits={"a.work": 2}).open() as it:
        it.give("work", *range(10))
        await anyio.wait_all_tasks_blocked()
        assert running == 2
        go.set()
        await it.reported(10)
    assert most == 2


async def test_g9_what_waits_for_a_batch_is_given_back_and_a_batch_that_runs_may_finish() -> None:
    go = anyio.Event()

    async def work(values: list[int]) -> None:
        await go.wait()

    async with stage(work, batch=2, within=60).open() as it:
        it.give("work", 1, 2, 3)
        await anyio.wait_all_tasks_blocked()
        it.runner.stop_waiting()
        [given_back] = await it.reported(1)
        assert (given_back.delivery.place[0], given_back.outcome) == (3, "released")
        go.set()
        reports = await it.reported(3)
    assert [report.outcome for report in reports[1:]] == [None, None]


async def test_g9_a_batch_that_is_cancelled_in_the_end_is_given_back() -> None:
    async def work(values: list[int]) -> None:
        await anyio.sleep_forever()

    async with stage(work, batch=2, within=60).open() as it:
        it.give("work", 1, 2)
        await anyio.wait_all_tasks_blocked()
        it.runner.stop_waiting()
        it.runner.cancel()
        reports = await it.reported(2)
    assert [report.outcome for report in reports] == ["released", "released"]


async def test_g3_a_batch_goes_on_without_a_lease_it_has_lost_and_ends_when_it_has_lost_all() -> None:
    go = anyio.Event()
    ended: list[str] = []

    async def work(messages: list[Message[int]]) -> None:
        try:
            await go.wait()
            ended.append("finished")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async with stage(work, batch=2, within=60).open() as it:
        held = [delivery(number) for number in (1, 2, 3, 4)]
        it.runner.hand_over(held)
        await anyio.wait_all_tasks_blocked()
        it.runner.revoke([held[0]])
        it.runner.revoke(held[2:])
        reports = by_message(await it.reported(2))
        assert [reports[number].outcome for number in (3, 4)] == ["released", "released"]
        go.set()
        await it.reported(4)
    assert ended == ["cancelled", "finished"]


async def test_a_lease_lost_while_its_delivery_waits_for_a_batch_is_given_back() -> None:
    async def work(values: list[int]) -> None: ...

    async with stage(work, batch=2, within=60).open() as it:
        one, two, three = (delivery(number) for number in (1, 2, 3))
        it.runner.hand_over([one])
        await anyio.wait_all_tasks_blocked()
        it.runner.revoke([one])
        await it.reported(1)
        it.runner.hand_over([two, three])
        reports = by_message(await it.reported(3))
    assert [reports[number].outcome for number in (1, 2, 3)] == ["released", None, None]


async def test_one_message_of_a_batch_is_called_off_alone_and_a_batch_of_which_all_are_is_cancelled() -> None:
    go = anyio.Event()
    ended: list[list[int]] = []

    async def work(values: list[int]) -> None:
        await go.wait()
        ended.append(values)

    async with stage(work, batch=2, within=60).open() as it:
        held = [delivery(number) for number in (1, 2, 3, 4, 5)]
        it.runner.hand_over(held)
        await anyio.wait_all_tasks_blocked()
        it.runner.call_off([held[0]])
        it.runner.call_off(held[2:])
        reports = by_message(await it.reported(3))
        assert [reports[number].outcome for number in (3, 4, 5)] == ["cancelled"] * 3
        go.set()
        reports = by_message(await it.reported(5))
    assert [reports[number].outcome for number in (1, 2)] == ["cancelled", None]
    assert ended == [[1, 2]]


# Declarations


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"batch": 0}, "from 1 to 1000"),
        ({"batch": True}, "from 1 to 1000"),
        ({"batch": 5000}, "from 1 to 1000"),
        ({"within": 1}, "needs batch="),
        ({"batch": 10, "within": -1}, "seconds from 0 to 60"),
        ({"batch": 10, "within": 3600}, r"@agent.every\(…\)"),
        ({"batch": 10, "within": float("nan")}, "seconds from 0 to 60"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused_with_its_cure(options: dict[str, Any], cure: str) -> None:
    with pytest.raises(DeclarationError, match=cure):
        Agent("a").on("a.b", **options)


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"rate": "fast"}, '"10/s", "600/m"'),
        ({"rate": 10}, '"10/s", "600/m"'),
        ({"rate": "0/s"}, '"10/s", "600/m"'),
        ({"rate": "10/w"}, '"10/s", "600/m"'),
        ({"concurrency_total": 0}, "1 or more"),
        ({"concurrency_total": True}, "1 or more"),
        ({"concurrency_total": 10, "batch": 100}, "say 100 or more"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_with_its_cure(options: dict[str, Any], cure: str) -> None:
    with pytest.raises(DeclarationError, match=cure):
        Agent("a").on("a.b", **options)


def test_a_rate_reads_as_it_was_declared() -> None:
    agent = Agent("a")

    @agent.on("a.b", rate="600/m", concurrency_total=5)
    def work() -> None: ...

    [handler] = agent.handlers
    assert handler.rate is not None
    assert (str(handler.rate), handler.rate.seconds, handler.concurrency_total) == ("600/m", 60, 5)


def test_a_parameter_that_does_not_fit_a_batch_is_refused_with_its_cure() -> None:
    async def single(message: Message[int]) -> None: ...

    async def many(messages: list[Message[int]]) -> None: ...

    async def speaks(value: int, context: BatchContext) -> None: ...

    with pytest.raises(DeclarationError, match=r"'message' must be a list: list\[Message\[Article\]\]"):
        Agent("a").on("a.b", batch=10)(single)
    with pytest.raises(DeclarationError, match="Declare a batch: batch=100"):
        Agent("a").on("a.b")(many)
    with pytest.raises(DeclarationError, match="annotate 'context' as Context"):
        Agent("a").on("a.b")(speaks)


async def test_a_list_is_still_one_value_where_no_batch_is_declared() -> None:
    seen: list[list[int]] = []

    async def work(values: list[int], context: Context) -> None:
        seen.append(values)
        with pytest.raises(InvalidValue, match="handles message 1"):
            context.emit("x.y", 1, cause=Message(id=2, key="a.b", value=0))

    async with stage(work).open() as it:
        it.give("work", [1, 2])
        [report] = await it.reported()
    assert seen == [[1, 2]]
    assert report.outcome is None
