"""How much one attempt may emit: what is too much is refused where it is emitted, before anything is held up by it."""

from typing import Any

import pytest

from runtime.agent.batch import BatchContext
from runtime.agent.context import MAX_EMITS, Context
from runtime.errors import InvalidValue
from runtime.message import Message

TEN = "x" * 10_000_000
MESSAGES: tuple[Message[Any], ...] = tuple(Message(number, "a.b", number) for number in range(1, 11))


def single() -> Context:
    return Context(MESSAGES[0], "agent.handler")


def batch() -> BatchContext:
    return BatchContext(MESSAGES[0], "agent.handler", messages=MESSAGES)


def emit_all(context: Context, value: object, count: int) -> None:
    for _ in range(count):
        context.emit("c.d", value)


def emit_for_each(context: BatchContext) -> None:
    for message in MESSAGES[1:]:
        context.emit("c.d", TEN, cause=message)


def test_r4_one_value_of_the_largest_size_is_emitted_and_no_more_beside_it() -> None:
    context = single()
    context.emit("c.d", "x" * (16 * 2**20 - 2), headers={"h": "x" * 60_000})
    with pytest.raises(InvalidValue, match=r"agent\.handler emits 25\.\d MB in one attempt; at most 16 MB"):
        context.emit("c.d", TEN)
    assert len(context.emitted) == 1


@pytest.mark.parametrize("size", [1_000, 100_000, 10_000_000])
def test_r4_many_together_are_refused_as_one_is(size: int) -> None:
    context, value = single(), "x" * size
    with pytest.raises(InvalidValue, match="at most 16 MB are written at once"):
        emit_all(context, value, 300_000_000 // size)
    assert 7_000_000 < sum(len(each.json) for each in context.emitted) <= 17 * 2**20


def test_r4_very_many_small_ones_are_refused() -> None:
    context = single()
    with pytest.raises(InvalidValue, match="has emitted 50,000 messages in one attempt"):
        emit_all(context, None, MAX_EMITS + 1)
    assert len(context.emitted) == MAX_EMITS


def test_r4_a_batch_may_emit_as_much_for_each_message_within_a_bound_for_the_call() -> None:
    context = batch()
    context.emit("c.d", TEN, cause=MESSAGES[0])
    with pytest.raises(InvalidValue, match="at most 16 MB"):
        context.emit("c.d", TEN, cause=MESSAGES[0])
    with pytest.raises(InvalidValue, match=r"emits 7\d\.\d MB in one attempt"):
        emit_for_each(context)
    assert 6 <= len(context.emitted) <= 7


@pytest.mark.parametrize(
    "told", [{"tokens_in": -1}, {"tokens_out": 1.5}, {"cost": float("nan")}, {"cost": "dear"}, {"model": 4}]
)
def test_usage_that_cannot_be_summed_is_refused_where_it_is_told(told: dict[str, Any]) -> None:
    context = single()
    with pytest.raises(InvalidValue, match=rf"context\.usage\({next(iter(told))}=…\) needs"):
        context.usage(**told)
    assert context.used is None
