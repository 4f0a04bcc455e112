"""Bindings are read by the server's grammar, and refused in its words."""

from typing import Any

import pytest

from runtime.local.gateway.bindings import (
    BindingRefused,
    Condition,
    binding_id,
    inspect,
    inspect_list,
    read_binding,
)

TABLE = {"event": "INSERT", "schema": "public", "table": "t"}


@pytest.mark.parametrize(
    ("filter_", "conditions"),
    [
        ("", []),
        ("key=eq.task.output", [("key", "eq", "task.output", False)]),
        ("key=in.(a,b)", [("key", "in", "{a,b}", False)]),
        ('tags=in.("a,b",c)', [("tags", "in", '{"a,b",c}', False)]),
        ("key=eq.a, agent=eq.B", [("key", "eq", "a", False), ("agent", "eq", "B", False)]),
        ("status=not.in.(a,b)", [("status", "in", "{a,b}", True)]),
        ("status=not.eq.a", [("status", "eq", "a", True)]),
        ("status=neq.a", [("status", "neq", "a", False)]),
        ("n=lt.1,n=not.gte.2", [("n", "lt", "1", False), ("n", "gte", "2", True)]),
        ('name=eq."a,b"', [("name", "eq", "a,b", False)]),
        ('path=eq."C:\\\\tmp"', [("path", "eq", "C:\\tmp", False)]),
        ('name=eq.""', [("name", "eq", "", False)]),
        ('name=eq."a"b', [("name", "eq", '"a"b', False)]),
        ("a=eq.b=c", [("a", "eq", "b=c", False)]),
    ],
)
def test_filters(filter_: str, conditions: list[tuple[str, str, str, bool]]) -> None:
    assert read_binding({**TABLE, "filter": filter_}).conditions == tuple(Condition(*c) for c in conditions)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"filter": "undefined"}, 'Error parsing `filter` params: ["undefined"]'),
        ({"filter": "key=zz.1"}, 'Error parsing `filter` params: ["zz", "1"]'),
        ({"filter": "key=foo"}, 'Error parsing `filter` params: ["foo"]'),
        (
            {"filter": "key=in.a"},
            "Error parsing `filter` params: `in` filter value must be wrapped by parentheses",
        ),
        ({"filter": "a=eq.b,"}, "must not contain empty segments (check for extra commas)"),
        ({"select": "id"}, "Error parsing `select` params: expected a list of column name strings"),
        ({"table": "*", "select": ["id"]}, "Column selection is not supported for wildcard subscriptions."),
        (
            {"schema": None, "table": None},
            "Please provide at least a `schema` or `table` to subscribe to: %{",
        ),
    ],
)
def test_refusals(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(BindingRefused) as refused:
        read_binding({**TABLE, **entry})
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("event", "meant"),
    [("INSERT", "INSERT"), ("insert", "*"), ("UPSERT", "*"), (None, "*"), ("DELETE", "DELETE")],
)
def test_unknown_events_are_all_events(event: Any, meant: str) -> None:
    assert read_binding({**TABLE, "event": event}).event == meant


def test_a_missing_name_is_any_table_or_the_public_schema() -> None:
    assert (read_binding({"schema": "s"}).schema, read_binding({"schema": "s"}).table) == ("s", "*")
    assert read_binding({"table": "t"}).schema == "public"


def test_ids_follow_the_contents_alone() -> None:
    assert binding_id(TABLE) == binding_id(dict(reversed(TABLE.items()))) < 2**27
    assert binding_id(TABLE) != binding_id({**TABLE, "filter": ""})


def test_values_as_elixir_prints_them() -> None:
    assert inspect({"b": None, "a": [True, 1, 'x"\n']}) == '%{"a" => [true, 1, "x\\"\\n"], "b" => nil}'
    long = "{" + ",".join(f"v{n}" for n in range(30)) + "}"
    assert inspect_list([("key", "in", long, False)]) == f'[\n  {{"key", "in",\n   "{long}",\n   false}}\n]'
