"""Messages and drafts: what JSON can hold is stored as it is, what it cannot is refused, the place named."""

import dataclasses
import json
import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from runtime import Context, Message, Priority
from runtime.errors import InvalidKey, InvalidPayload, InvalidValue
from runtime.message import Draft, check_dedup_key, decode, encode
from runtime.store import Delivery

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
finite = st.floats(allow_nan=False, allow_infinity=False)
leaves = st.one_of(st.none(), st.booleans(), st.integers(), finite, text)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(text, inner, max_size=4)),
    max_leaves=20,
)


class Colour(Enum):
    RED = "red"


class Article(BaseModel):
    title: str
    score: float = 0.0


@dataclasses.dataclass
class Point:
    x: float


@given(values)
def test_json_data_comes_back_as_it_was(value: Any) -> None:
    assert decode(encode(value)) == value


@given(values)
def test_what_is_encoded_is_json_to_any_reader(value: Any) -> None:
    assert json.loads(encode(value)) == value


def test_big_numbers_keep_all_their_digits() -> None:
    assert encode({"n": 2**70, "m": -(10**400)}) == f'{{"n":{2**70},"m":-1{"0" * 400}}}'
    assert decode(str(2**70)) == 2**70
    assert decode(str(10**400)) == 10**400


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (Article(title="Hé", score=1.5), {"title": "Hé", "score": 1.5}),
        (Point(2), {"x": 2}),
        (datetime(2024, 5, 1, tzinfo=UTC), "2024-05-01T00:00:00Z"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        (Priority.HIGH, 1),
        (Decimal("1.10"), "1.10"),
        ((1, 2), [1, 2]),
        ({3}, [3]),
        (b"bytes", "bytes"),
        ({1: "a", 2.5: "b", None: "c"}, {"1": "a", "2.5": "b", "None": "c"}),
        ([Article(title="a"), timedelta(seconds=90)], [{"title": "a", "score": 0.0}, "PT1M30S"]),
    ],
)
def test_typed_values_are_written_as_pydantic_writes_them(value: object, stored: object) -> None:
    assert json.loads(encode(value)) == stored


CIRCLE: list[object] = [1]
CIRCLE.append({"back": CIRCLE})


@pytest.mark.parametrize(
    ("value", "where_and_why"),
    [
        (math.nan, "it is nan"),
        ({"a": [1, {"b": math.inf}]}, r"value['a'][1]['b'] is inf"),
        (Article(title="x", score=-math.inf), "value.score is -inf"),
        ([Point(math.nan)], "value[0].x is nan"),
        ({"a": "secret\0"}, "value['a'] holds a NUL character"),
        ({"a\0": 1}, r"it has the key 'a\x00', which holds a NUL character"),
        (["secret\ud800"], "value[0] holds a lone surrogate"),
        ({"\udfff": 1}, r"it has the key '\udfff', which holds a lone surrogate"),
        ({"ok": 1, "bad": object()}, "value['bad'] is of the type object, which has no JSON form"),
        ([b"\xff"], "value[0] is bytes that are not UTF-8"),
        ({"n": 10**5000}, "value['n'] is a number with too many digits"),
        ({(): 1, frozenset([object()]): 2}, "has the key"),
        (CIRCLE, "value[1]['back'] holds itself (a circular reference)"),
    ],
)
def test_what_json_cannot_hold_is_refused_naming_the_place_not_the_content(
    value: object, where_and_why: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        encode(value)
    assert where_and_why in str(caught.value)
    assert "secret" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "written",
    ["NaN", "-Infinity", "1" * 9999, "\\u0000", "\\\\u0000", "a\\u0000b", "\\", "\u2028", "\x7f", "\x01"],
)
def test_text_that_only_looks_like_a_fault_is_stored(written: str) -> None:
    assert decode(encode([written, {written: 1}])) == [written, {written: 1}]


@pytest.mark.parametrize("written", ["\\\0", "\\\\\0", "\0\\u0000"])
def test_a_nul_after_backslashes_is_still_found(written: str) -> None:
    with pytest.raises(InvalidValue, match="NUL"):
        encode(written)


def _nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [101, 150, 260, 5000])
def test_a_hundred_levels_are_taken_and_more_are_refused(levels: int) -> None:
    assert decode(encode(_nested(100))) == _nested(100)
    with pytest.raises(InvalidValue, match="more than 100 levels"):
        encode(_nested(levels))


@pytest.mark.parametrize("shallow", [["[{"] * 999, [{'"]}': "\\"}] * 999, [[[1], {}], {"a": {"b": []}}] * 99])
def test_many_brackets_are_not_many_levels(shallow: object) -> None:
    assert decode(encode(shallow)) == shallow


def test_sixteen_megabytes_are_taken_and_more_are_refused() -> None:
    limit = 16 * 1024 * 1024
    assert len(encode("x" * (limit - 2))) == limit
    with pytest.raises(InvalidValue, match="at most 16 MB"):
        encode("x" * (limit - 1))
    with pytest.raises(InvalidValue, match="at most 16 MB"):
        encode("é" * (limit // 2))


def test_deep_json_of_other_writers_is_read_and_what_is_no_json_is_named() -> None:
    assert decode("[" * 200 + "]" * 200) == _nested(200)
    for no_json in ["{", "'", "1" * 5000 + ",", "[" * 5000]:
        with pytest.raises(InvalidPayload, match="cannot be read"):
            decode(no_json)


def test_a_row_becomes_a_message() -> None:
    row = {
        "id": 7, "key": "task.output", "value": {"n": 2**70}, "agent": "writer", "processed": False,
        "created_at": "2024-05-01T10:00:00.12345+02:00", "deliver_at": None, "expires_at": "infinity",
        "priority": 1, "dedup_key": "d", "correlation_id": "c", "parent_id": 3, "headers": {"h": 1},
    }  # fmt: skip
    message: Message[dict[str, int]] = Message.from_row(row, attempt=2)
    assert (message.id, message.key, message.value["n"], message.agent) == (7, "task.output", 2**70, "writer")
    assert message.created_at == datetime(2024, 5, 1, 8, 0, 0, 123450, tzinfo=UTC)
    assert message.deliver_at is None
    assert message.expires_at == datetime.max.replace(tzinfo=UTC)
    assert (message.priority, message.attempt, message.parent_id) == (Priority.HIGH, 2, 3)
    assert (message.dedup_key, message.correlation_id, message.headers) == ("d", "c", {"h": 1})


def test_a_message_cannot_be_changed_and_its_repr_keeps_the_value_to_itself() -> None:
    message = Message(1, "a", {"password": "secret"}, headers={"token": "secret"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.key = "b"  # type: ignore[misc]
    assert "secret" not in repr(message)
    assert "secret" not in repr(Context(message, "writer.draft"))
    assert "secret" not in repr(Draft("a", "secret", headers={"token": "secret"}))


def test_a_draft_says_only_what_was_set() -> None:
    assert Draft("a", None).as_dict() == {"key": "a", "value": None}
    draft = Draft(
        "a.b", [1], agent="w", delay=1.5, expires_in=60, priority=Priority.LOW, dedup_key="once",
        correlation_id="c", parent_id=4, headers={"trace": "t"},
    )  # fmt: skip
    assert draft.as_dict() == json.loads(draft.json) == {
        "key": "a.b", "value": [1], "agent": "w", "delay": 1.5, "expires_in": 60, "priority": -1,
        "dedup_key": "once", "correlation_id": "c", "parent_id": 4, "headers": {"trace": "t"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delay": -1}, "delay must lie between"),
        ({"delay": math.nan}, "delay must be a number of seconds"),
        ({"expires_in": 1e300}, "expires_in must lie between"),
        ({"expires_in": "5"}, "expires_in must be a number"),
        ({"priority": 2}, "A priority is -1, 0 or 1"),
        ({"dedup_key": ""}, "1 to 255 characters"),
        ({"dedup_key": "x" * 256}, "1 to 255 characters"),
        ({"dedup_key": "x\0"}, r"value\['dedup_key'\] holds a NUL"),
        ({"agent": "\ud800"}, r"value\['agent'\] holds a lone surrogate"),
        ({"headers": {"a": math.nan}}, r"value\['headers'\]\['a'\] is nan"),
    ],
)
def test_a_draft_refuses_options_the_database_would_refuse(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        Draft("a", 1, **options)


def test_what_is_emitted_is_gathered_under_the_agent_and_its_parent() -> None:
    message: Message[Any] = Message(7, "task.input", {}, correlation_id="order-9", attempt=3)
    context = Context(message, "writer.draft", "worker-1")
    context.emit("task.output", {"n": 1}, priority=Priority.HIGH, dedup_key="once")
    (draft,) = context.emitted
    assert (draft.agent, draft.parent_id, draft.correlation_id) == ("writer", 7, "order-9")
    assert (draft.priority, draft.dedup_key) == (Priority.HIGH, "once")
    assert (context.agent, context.attempt) == ("writer", 3)


def test_the_first_message_of_a_chain_gives_its_id_as_the_correlation() -> None:
    context = Context(Message(7, "task.input", {}), "writer.draft")
    context.emit("a", 1)
    context.emit("a", 1, correlation_id="own")
    assert [draft.correlation_id for draft in context.emitted] == ["7", "own"]


def test_a_wrong_emit_is_refused_at_once_and_leaves_the_others() -> None:
    context = Context(Message(1, "a", {}), "writer.draft")
    context.emit("a", 1)
    with pytest.raises(InvalidKey):
        context.emit("task.*", 1)
    with pytest.raises(InvalidValue):
        context.emit("a", math.nan)
    assert len(context.emitted) == 1


def test_an_emitted_value_does_not_follow_later_changes() -> None:
    context = Context(Message(1, "a", {}), "writer.draft")
    basket = ["apple"]
    context.emit("basket.filled", basket)
    basket.append("pear")
    assert context.emitted[0].as_dict()["value"] == ["apple"]


def test_the_log_of_a_handler_says_which_message_and_attempt(caplog: pytest.LogCaptureFixture) -> None:
    Context(Message(7, "a", {}, attempt=2), "writer.draft", "worker-1").log.warning("hm")
    (record,) = caplog.records
    assert record.name == "runtime.handlers.writer.draft"
    assert {"message_id": 7, "attempt": 2, "worker": "worker-1"}.items() <= vars(record).items()


def test_a_message_that_was_taken_is_as_one_that_was_made() -> None:
    row = {
        "id": 7, "key": "task.a", "value": [1], "agent": "a", "created_at": "2026-01-02T03:04:05.6+00:00",
        "correlation_id": "c", "parent_id": 6, "headers": {"h": 1}, "priority": 1, "dedup_key": "d",
        "deliver_at": "2026-01-02T00:00:00+00:00", "expires_at": "2026-02-02T00:00:00+00:00",
    }  # fmt: skip
    made = Message[Any].from_row(row, attempt=4)
    taken = Delivery.from_wire([3, 2, 1, *row.values(), "lease", None]).message
    assert taken == made
    with pytest.raises(dataclasses.FrozenInstanceError):
        taken.key = "task.b"  # type: ignore[misc]
    assert {each.name: getattr(taken, each.name) for each in dataclasses.fields(taken)} == {
        each.name: getattr(made, each.name) for each in dataclasses.fields(made)
    }


@pytest.mark.parametrize(
    "reply_to",
    ["payment.approved", "answer", "answers.x", "Answer.x", " answer.x", "answer.", "answer.>", 5, None, []],
)
def test_s2_only_a_key_below_answer_is_answered(reply_to: Any) -> None:
    assert Message(1, "question.asked", None, headers={"reply_to": reply_to}).reply_to is None
    assert Message(1, "question.asked", None, headers={"reply_to": "answer.me"}).reply_to == "answer.me"


@pytest.mark.parametrize(
    "dedup_key", ["tick a.b x", "answer 1 1", "failed 1 1", "ask me", "webhook shop msg_1"]
)
def test_s3_a_key_of_the_runtime_is_nobody_else_s(dedup_key: str) -> None:
    with pytest.raises(InvalidValue, match="dedup_key"):
        check_dedup_key(dedup_key)
    with pytest.raises(InvalidValue, match="dedup_key"):
        Context(Message(1, "k", None), "a.b").emit("k", 1, dedup_key=dedup_key)
    for other in (None, "", "ticket 7", "webhook:shop:1", "my answer 1 1"):
        assert check_dedup_key(other) == other


def test_l13_an_idempotency_key_is_the_same_for_a_replay_and_another_for_an_id_that_comes_again() -> None:
    row = {"id": 7, "key": "a.b", "value": 1, "created_at": "2026-12-01T10:00:00.000001+00:00"}
    first, replayed = Message[Any].from_row(row), Message[Any].from_row(row, attempt=3)
    # As another session's time zone shows the same moment.
    elsewhere = Message[Any].from_row({**row, "created_at": "2026-12-01T12:00:00.000001+02:00"})
    again = Message[Any].from_row({**row, "created_at": "2026-12-01T10:00:00.000002+00:00"})
    other = Message[Any].from_row({**row, "id": 8})
    assert first.idempotency_key == replayed.idempotency_key == elsewhere.idempotency_key
    assert len({each.idempotency_key for each in (first, again, other)}) == 3
    keys = [Context(each, "a.handle").idempotency_key for each in (first, replayed)]
    assert len({*keys, Context(first, "a.other").idempotency_key}) == 2
