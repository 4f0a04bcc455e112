"""Values in frames are written as `to_jsonb` writes them; PostgreSQL itself is the judge."""

from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.local.gateway.encoding import TypeName, json_object, json_value, parse_array

VALUES = [
    ("int8", "9223372036854775807"),
    ("numeric", "123456789012345678901234567890.1234567890"),
    ("numeric", "0.000000000000000000000000000001"),
    ("float8", "1e+300"),
    ("float8", "1.5e-07"),
    ("float4", "1.1"),
    ("bool", "t"),
    ("text", 'uni ✓ 🎉 \\ " \t \n \x01 \x7f end'),
    ("uuid", "b8e803d6-5cff-406d-899c-ec13e80bd09a"),
    ("timestamptz", "2026-01-02 01:04:05.678901+00"),
    ("timestamptz", "infinity"),
    ("timestamp", "2026-01-02 03:04:05"),
    ("date", "2026-01-02"),
    ("time", "03:04:05"),
    ("interval", "1 day 02:00:00"),
    ("json", '{"zz": [1, 2.50, {"b": null, "a": "ü"}], "a": 9007199254740993, "n": 1e3}'),
    ("jsonb", '{"a": 1.10, "zz": [1, 2]}'),
    ("int4range", "[1,5)"),
    ("_text", '{a,"b,c","\\"q\\"",NULL,"NULL",""," x "}'),
    ("_int4", "{{1,2},{3,NULL}}"),
    ("_int4", "{}"),
    ("_int4", "[2:3]={1,2}"),
    ("_timestamptz", '{"2026-01-02 01:04:05+00"}'),
    ("_box", "{(1,1),(0,0);(2,2),(1,1)}"),
]


@pytest.mark.anyio
async def test_postgres_agrees(database: str) -> None:
    connection = await asyncpg.connect(database, server_settings={"timezone": "UTC"})
    try:
        for name, text in VALUES:
            element = name.removeprefix("_") if name.startswith("_") else None
            kind = TypeName(name, element, ";" if name == "_box" else ",")
            expected: Any = await connection.fetchval(f"select to_jsonb($1::text::{name})::text", text)
            assert json_value(text, kind) == expected, (name, text)
    finally:
        await connection.close()


@pytest.mark.parametrize(("name", "text"), [("float8", "NaN"), ("float4", "-Infinity"), ("numeric", "NaN")])
def test_what_json_has_no_number_for_is_null(name: str, text: str) -> None:
    assert json_value(text, TypeName(name)) == "null"


def test_bytea_loses_its_prefix() -> None:
    assert json_value("\\xdeadbeef", TypeName("bytea")) == '"deadbeef"'


def test_keys_stand_in_the_order_of_jsonb() -> None:
    assert json_object({"bb": "1", "ä": "2", "a": "3", "c": "4"}) == '{"a": 3, "c": 4, "bb": 1, "ä": 2}'


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner, min_size=1, max_size=4)))
def test_array_literals_are_read_back(items: Any) -> None:
    items = items if isinstance(items, list) else [items]

    def literal(level: list[Any]) -> str:
        return (
            "{" + ",".join(literal(item) if isinstance(item, list) else element(item) for item in level) + "}"
        )

    def element(item: str | None) -> str:
        return "NULL" if item is None else '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"'

    assert parse_array(literal(items)) == items


@pytest.mark.parametrize("text", ["", "a", "{a", '{"a'])
def test_what_is_no_array_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="array"):
        parse_array(text)


@pytest.mark.parametrize(
    "text", ["[" * 5_000 + "]" * 5_000, "1e999999999", '{"a": [1e-999999999]}', "1" * 200_000]
)
def test_r1_json_beyond_what_python_or_jsonb_holds_is_written_as_it_stands(text: str) -> None:
    assert json_value(text, TypeName("json")) == text
