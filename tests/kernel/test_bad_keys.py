"""A bad key is refused where it comes in, in words that say what a key looks like; SQL and Python have one rule."""

from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import keys
from runtime.errors import InvalidKey
from tests.kernel.driver import Worker, insert, send
from tests.kernel.schedule import transaction

pytestmark = pytest.mark.anyio

BAD_KEYS = [
    "",
    " ",
    ".",
    "a.",
    ".a",
    "a..b",
    "a b",
    "a.*",
    ">",
    "ä",
    "a/b",
    "a\n",
    "a.b.c.d.e.f.g.h.i",
    "a" * 256,
]
# One database serves all examples of a property: none of them leaves anything behind.
one_database = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

segments = st.text("ab", min_size=1, max_size=2)
valid_keys = st.lists(segments, min_size=1, max_size=8).map(".".join)
few_keys = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map(".".join)
few_patterns = st.builds(
    lambda head, tail: ".".join([*head, *tail]),
    st.lists(st.sampled_from("ab*"), min_size=0, max_size=4),
    st.sampled_from([[">"], ["a"], ["*"]]),
)
odd_names = st.one_of(
    st.text("aZ0_:-.*> \n\t", max_size=12),
    st.lists(st.sampled_from(["a", "Zz_9:-", "*", ">", "", "é", "b" * 60]), max_size=10).map(".".join),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4),
    st.integers(250, 260).map("k".__mul__),
)


def accepted(check: Any, name: str) -> bool:
    """Whether Python's check lets the name pass."""
    try:
        check(name)
    except InvalidKey:
        return False
    return True


@pytest.mark.parametrize("way", ["insert", "send", "many"])
async def test_a_bad_key_is_refused_at_the_insert_and_told_what_a_key_looks_like(db: Any, way: str) -> None:
    tries = {
        "insert": lambda bad: insert(db, bad, 1),
        "send": lambda bad: send(db, ("task.output", 1), (bad, 2)),
        "many": lambda bad: db.execute(
            "insert into consciousness_stream (key) select unnest(array['task.output', $1, 'task.x'])", bad
        ),
    }
    for bad in BAD_KEYS:
        with pytest.raises(asyncpg.PostgresError, match="is not a key") as caught:
            await tries[way](bad)
        assert caught.value.sqlstate == "22023"
        assert "task.output: 1 to 8 segments joined by dots" in str(caught.value.hint)
        assert "a" * 100 not in str(caught.value)
    assert await db.fetchval("select count(*) from consciousness_stream") == 0


async def test_a_missing_or_misshapen_message_is_refused_with_an_example(db: Any) -> None:
    for bad, words in (
        ([{"value": 1}], "'' is not a key"),
        (["task.output"], "array of objects"),
        ("task.output", "messages must be an array of objects with a key and a value"),
    ):
        with pytest.raises(asyncpg.PostgresError, match=words) as caught:
            await db.fetchval("select stream_send($1)", bad)
        assert caught.value.sqlstate == "22023"
    # One object is a batch of one.
    assert len(await db.fetchval("select stream_send($1)", {"key": "task.output", "value": 1})) == 1


async def test_a_bad_pattern_or_name_of_a_subscription_is_refused(db: Any, worker: Worker) -> None:
    for pattern in ("", ">.a", "a.>.b", "a*", "a.b.c.d.e.f.g.h.>", "a b"):
        with pytest.raises(asyncpg.PostgresError, match="is not a pattern") as caught:
            await worker.subscribe({"name": "a.one", "patterns": ["task.output", pattern]}, settle=False)
        assert "task.*" in str(caught.value.hint)
    for name in ("", "a", "a.b.c", "a.", "ä.one"):
        with pytest.raises(asyncpg.PostgresError, match="is not a subscription name"):
            await worker.subscribe({"name": name, "agent": "a", "patterns": ["task.output"]}, settle=False)
    with pytest.raises(asyncpg.PostgresError, match="NULL is not a subscription name"):
        await db.fetchval(
            "select stream_subscribe($1, $2)", {"id": str(worker.id)}, [{"patterns": ["task.output"]}]
        )
    with pytest.raises(asyncpg.PostgresError, match=r"subscription a\.one has no patterns"):
        await worker.subscribe({"name": "a.one", "patterns": []}, settle=False)
    assert await db.fetchval("select count(*) from runtime.subscriptions") == 0


@pytest.fixture
async def checked(db: Any) -> Any:
    """A connection with a function that says whether a check lets a name pass."""
    await db.execute(
        "create function pg_temp.passes(check_name text, name text) returns boolean language plpgsql as $$ begin "
        "execute format('select runtime.%I($1)', check_name) using name; return true; "
        "exception when invalid_parameter_value then return false; end $$"
    )
    return db


@one_database
@given(names=st.lists(odd_names, min_size=1, max_size=30))
async def test_both_sides_take_the_same_names_for_keys_and_patterns(checked: Any, names: list[str]) -> None:
    passes = "select array(select pg_temp.passes($2, n) from unnest($1::text[]) with ordinality u (n, i) order by i)"
    assert await checked.fetchval(passes, names, "check_key") == [
        accepted(keys.check_key, each) for each in names
    ]
    assert await checked.fetchval(passes, names, "check_pattern") == [
        accepted(keys.check_pattern, each) for each in names
    ]


@one_database
@given(key=valid_keys)
async def test_both_sides_find_the_same_patterns_for_a_key(db: Any, key: str) -> None:
    found = await db.fetchval("select runtime.candidates($1)", key)
    assert len(found) == 2 ** (key.count(".") + 2) - 1
    assert sorted(found) == sorted(keys.candidates(key))


@one_database
@given(written=st.lists(few_keys, min_size=1, max_size=12), pattern=few_patterns, page=st.integers(1, 5))
async def test_reading_and_fan_out_match_as_python_does(
    db: Any, worker: Worker, written: list[str], pattern: str, page: int
) -> None:
    connection = worker.connection
    async with transaction(connection) as trial:
        await worker.subscribe(f"a.one={pattern}", settle=False)
        ids = await send(connection, *((key, None) for key in written))
        meant = [id_ for id_, key in zip(ids, written, strict=True) if keys.matches(pattern, key)]
        delivered = await connection.fetch("select message_id from runtime.deliveries order by message_id")
        assert [row["message_id"] for row in delivered] == meant

        onward: list[int] = []
        while rows := await connection.fetchval(
            "select stream_read($1, after => $2, max => $3)", pattern, onward[-1] if onward else 0, page
        ):
            onward += [row["id"] for row in rows]
        assert onward == meant

        newest = {key: id_ for id_, key in zip(ids, written, strict=True) if id_ in meant}
        latest = await connection.fetchval("select stream_read($1, latest => true)", pattern)
        assert [row["id"] for row in latest] == sorted(newest.values(), reverse=True)
        await trial.rollback()
