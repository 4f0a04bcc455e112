"""What JSON can hold and Python cannot is replaced by a marker, in its own place; the rest is read as it is."""

import copy
import gc
import json
import pickle
import re
from typing import Any

import pytest

from runtime.agent.context import Context
from runtime.agent.signature import read_signature
from runtime.encoding.json import decode, encode, legible
from runtime.encoding.unreadable import LIVING, Unreadable, find_unreadable
from runtime.errors import InvalidPayload, InvalidValue
from runtime.message import Draft, Message
from runtime.store import Delivery, ExchangeAnswer

DEEP = "[" * 5_000 + "]" * 5_000
ODD = {
    "long": ("1" + "0" * 131_071, "a number of 131,072 digits"),
    "negative": ("-" + "7" * 4_301, "a number of 4,301 digits"),
    "overflowing": ("1" + "0" * 400 + ".5", "larger than any float"),
    "deep": (DEEP, "more than 200 levels"),
    "deep objects": ('{"a":' * 3_000 + "1" + "}" * 3_000, "more than 200 levels"),
}
TEXTS = [pytest.param(*texts, id=name) for name, texts in ODD.items()]


def _around(text: str) -> str:
    return f'[1,{{"before":"]}}\\"","it":{text},"after":[2.5,"é\\u00e9"]}},{{"deep":{DEEP}}}]'


@pytest.mark.parametrize("form", [str, str.encode])
@pytest.mark.parametrize(("text", "what"), TEXTS)
def test_r1_whatever_json_holds_is_read_and_a_mark_stands_for_what_python_cannot(
    text: str, what: str, form: Any
) -> None:
    value = decode(form(_around(text)))
    assert value[0] == 1
    assert (value[1]["before"], value[1]["after"]) == (']}"', [2.5, "éé"])
    found = find_unreadable("value", value[1])
    assert found is not None
    assert found[0].startswith("value['it']")
    assert what in found[1].what
    assert what in legible(value)
    assert json.loads(legible(value))[1]["after"] == [2.5, "éé"]


@pytest.mark.parametrize(
    "text",
    ["1e-16000", "0." + "0" * 16_000 + "1", "1" * 4_300, "-" + "9" * 4_300, "9" * 308 + ".5", '"' + "1" * 5_000 + '"',
     json.dumps({"n": "3" * 400}), "[" * 200 + "]" * 200],
)  # fmt: skip
def test_r1_what_python_can_hold_bears_no_mark(text: str) -> None:
    assert find_unreadable("value", decode(text)) is None
    assert decode(text) == json.loads(text)


@pytest.mark.parametrize("cells", range(31))
def test_r1_an_overflow_is_seen_wherever_it_stands(cells: int) -> None:
    value = decode("[" + "0," * cells + "9" * 309 + "." + "5" * 3 + ',"x"]')
    assert isinstance(value[cells], Unreadable)
    assert value[-1] == "x"


def test_r1_a_mark_can_be_shown_copied_and_looked_for_and_is_not_stored() -> None:
    value = decode(f'{{"a":[{"1" * 5_000}]}}')
    text = "<unreadable: a number of 5,000 digits>"
    assert repr(value) == f"{{'a': [{text}]}}"
    for copied in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert isinstance(copied["a"][0], Unreadable)
        assert copied == {"a": [text]}
    for refused in (
        lambda: encode(value),
        lambda: Draft("a.b", value),
        lambda: Draft("a.b", 1, headers=value),
    ):
        with pytest.raises(InvalidValue, match=r"\['a'\]\[0\] is a number of 5,000 digits"):
            refused()
    assert json.loads(legible(value)) == {"a": [text]}


def test_r1_a_search_for_marks_ends_in_a_value_that_holds_itself_or_one_part_often() -> None:
    circle: list[Any] = [1]
    circle.append({"back": circle})
    often: list[Any] = []
    for _ in range(100):
        often = [often, often]
    assert find_unreadable("value", [circle, often]) is None
    mark = Unreadable.because("a test")
    assert find_unreadable("value", [circle, often, mark]) == ("value[2]", mark)
    # As long as a mark exists anywhere, each value is searched.
    with pytest.raises(InvalidValue, match="holds itself"):
        encode(circle)


def test_r1_nobody_looks_for_marks_when_there_are_none() -> None:
    gc.collect()
    before = len(LIVING)
    value = decode(f"[{'1' * 5_000}]")
    assert len(LIVING) == before + 1
    del value
    gc.collect()
    assert len(LIVING) == before


def _plain(value: Any) -> None: ...
def _untyped(value) -> None: ...  # type: ignore[no-untyped-def]
def _text(value: str) -> None: ...
def _whole(message: Message[Any]) -> None: ...
def _typed(message: Message[dict[str, Any]]) -> None: ...
def _neither(context: Context) -> None: ...


@pytest.mark.parametrize("part", ["value", "headers"])
@pytest.mark.parametrize("function", [_plain, _untyped, _text, _whole, _typed, _neither])
def test_r1_no_handler_is_called_with_a_mark(function: Any, part: str) -> None:
    odd = decode(f'{{"n":{"1" * 5_000}}}')
    message: Message[Any] = Message(7, "a.b", **({"value": {}} | {part: odd}))
    signature = read_signature(function, names={})
    with pytest.raises(InvalidPayload, match=re.escape(f"{part}['n'] is a number of 5,000 digits")):
        signature.bind("agent.handler", message, Context(message, "agent.handler"))


def _row(**changed: Any) -> list[Any]:
    fields = {
        "subscription": 1, "attempts": 1, "crashes": 2, "id": 7, "key": "a.b", "value": {"n": 1}, "agent": None,
        "created_at": "2026-12-01T17:00:00+00:00", "correlation_id": None, "parent_id": None, "headers": None,
        "priority": 0, "dedup_key": None, "deliver_at": None, "expires_at": None, "lease": "x", "steps": None,
    }  # fmt: skip
    return list((fields | changed).values())


@pytest.mark.parametrize("headers", [[1], "x", 7, True, [], None, 0.5])
def test_r3_headers_that_are_no_object_are_none(headers: Any) -> None:
    message = Delivery.from_wire(_row(headers=headers)).message
    assert (message.headers, message.reply_to) == ({}, None)
    read: Message[Any] = Message.from_row({"id": 7, "key": "a.b", "value": 1, "headers": headers})
    assert read.headers == {}


@pytest.mark.parametrize(
    "written", ["infinity", "-infinity", "10000-01-01T00:00:00+00:00", "0044-03-15T00:00:00+00:00 BC"]
)
def test_r1_any_time_of_postgres_is_read(written: str) -> None:
    times = {"created_at": written, "deliver_at": written, "expires_at": written}
    assert Delivery.from_wire(_row(**times)).message.created_at.tzinfo is not None


@pytest.mark.parametrize(
    "changed", [{"priority": 5}, {"priority": None}, {"created_at": None}, {"deliver_at": 7}]
)  # fmt: skip
def test_r1_a_row_that_is_no_message_is_a_dead_letter_of_its_own(changed: dict[str, Any]) -> None:
    answer = ExchangeAnswer.from_wire({"taken": [_row(), _row(id=8, **changed), _row(id=9)]})
    good, bad, also_good = [delivery.message for delivery in answer.taken]
    assert (good.value, also_good.value) == ({"n": 1}, {"n": 1})
    assert (bad.id, bad.attempt) == (8, 4)
    with pytest.raises(InvalidPayload, match="a row whose columns are not those of a message"):
        read_signature(_plain, names={}).bind("agent.handler", bad, Context(bad, "agent.handler"))
