"""The table refuses what no worker could live with, in words that say what is allowed; what is stored is survived."""

from typing import Any

import asyncpg
import pytest

from runtime.errors import InvalidValue
from runtime.message import MAX_CHARACTERS, MAX_HEADERS_BYTES, Draft
from tests.kernel.driver import Worker, send
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio

LONG = "repeat('x', 256)"
REFUSED = [
    ("agent", LONG, "agent_has_at_most_255_characters"),
    ("agent", "repeat('x', 12000000)", "agent_has_at_most_255_characters"),
    ("correlation_id", LONG, "correlation_id_has_at_most_255_characters"),
    *(
        ("headers", f"'{headers}'::jsonb", "headers_are_an_object_of_at_most_64_kb")
        for headers in ("[1]", '"x"', "7", "true", "null", "[]")
    ),
    ("headers", "jsonb_build_object('h', repeat('x', 100000))", "headers_are_an_object_of_at_most_64_kb"),
    ("headers", "jsonb_build_object('h', 1e131071)", "headers_are_an_object_of_at_most_64_kb"),
    ("value", "to_jsonb(repeat('x', 26000000))", "value_takes_at_most_16_mb"),
    ("deliver_at", "'infinity'", "deliver_at_is_within_a_hundred_years"),
    ("deliver_at", "'-infinity'", "deliver_at_is_within_a_hundred_years"),
    ("deliver_at", "'9999-12-31'", "deliver_at_is_within_a_hundred_years"),
    ("deliver_at", "'200000-01-01'", "deliver_at_is_within_a_hundred_years"),
    ("created_at", "'infinity'", "created_at_is_finite_and_not_to_come"),
    ("created_at", "'-infinity'", "created_at_is_finite_and_not_to_come"),
    ("created_at", "now() + interval '1 day'", "created_at_is_finite_and_not_to_come"),
]
TAKEN = [
    ("agent", "repeat('é', 255)"),
    ("correlation_id", "repeat('é', 255)"),
    ("headers", "jsonb_build_object('h', repeat('x', 65000))"),
    ("headers", "'{}'"),
    ("value", "to_jsonb(repeat('x', 16777210))"),
    ("value", "(select jsonb_agg(0) from generate_series(1, 2000000))"),
    ("value", "'null'"),
    ("deliver_at", "now() + interval '36600 days'"),
    ("deliver_at", "'1900-01-01'"),
    ("created_at", "now() + interval '1 minute'"),
    ("created_at", "'1970-01-01'"),
    ("expires_at", "'infinity'"),
]


@pytest.mark.parametrize(("column", "sql", "constraint"), REFUSED)
async def test_r2_r3_o2_the_table_refuses_by_name(db: Any, column: str, sql: str, constraint: str) -> None:
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await db.execute(f"insert into consciousness_stream (key, {column}) values ('task.a', {sql})")
    assert refused.value.constraint_name == constraint
    assert constraint in str(refused.value)


@pytest.mark.parametrize(("column", "sql"), TAKEN)
async def test_r2_what_is_allowed_is_stored(db: Any, column: str, sql: str) -> None:
    await db.execute(f"insert into consciousness_stream (key, {column}) values ('task.a', {sql})")


async def test_r2_sending_refuses_in_the_same_words(db: Any) -> None:
    for draft in (
        {"agent": "x" * 256},
        {"headers": [1]},
        {"deliver_at": "infinity"},
        {"correlation_id": "x" * 256},
    ):
        with pytest.raises(asyncpg.CheckViolationError):
            await send(db, {"key": "task.a", **draft})


@pytest.mark.parametrize(
    "given",
    [
        {"agent": "x" * (MAX_CHARACTERS + 1)},
        {"correlation_id": "x" * (MAX_CHARACTERS + 1)},
        {"headers": {"h": "x" * MAX_HEADERS_BYTES}},
        {"headers": {"h": "é" * (MAX_HEADERS_BYTES // 2)}},
        {"headers": {str(n): n for n in range(10_000)}},
    ],
)
def test_r2_a_draft_refuses_before_it_is_sent(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match="at most"):
        Draft("task.a", 1, **given)


async def test_r2_what_a_draft_lets_pass_the_table_takes(db: Any) -> None:
    many = {str(n): [n, n] for n in range(3_500)}
    draft = Draft(
        "task.a", 1, agent="é" * 255, correlation_id="c" * 255, headers=many, delay=100 * 366 * 86_400
    )
    await send(db, draft.as_dict())


async def unlimited(db: Any) -> None:
    """As a table from before it had its limits."""
    for name in ("value_takes_at_most_16_mb", "headers_are_an_object_of_at_most_64_kb",
                 "agent_has_at_most_255_characters", "correlation_id_has_at_most_255_characters",
                 "created_at_is_finite_and_not_to_come", "deliver_at_is_within_a_hundred_years"):  # fmt: skip
        await db.execute(f"alter table consciousness_stream drop constraint {name}")


async def one_version_tells(db: Any) -> None:
    """What takes a gigabyte of memory is not done twice."""
    if await db.fetchval("select current_setting('server_version_num')::integer >= 160000"):
        pytest.skip("a gigabyte of text is made on the oldest version alone")


# Each of these prints 115 numbers of 131,072 digits from less than two thousand bytes.
BOMB = "(select jsonb_agg(1e131071) from generate_series(1, 115))"
MONSTROUS = "(select jsonb_agg(1e131071) from generate_series(1, 9000))"


@pytest.mark.timeout(600)
async def test_r2_an_answer_that_no_text_can_hold_is_taken_in_parts(db: Any, worker: Worker) -> None:
    await one_version_tells(db)
    numbers = await worker.subscribe("a.one=task.>")
    await db.execute(
        f"insert into consciousness_stream (key, value) select 'task.a', {BOMB} from generate_series(1, 80)"
    )
    with pytest.raises(
        (asyncpg.ProgramLimitExceededError, asyncpg.InternalServerError, asyncpg.OutOfMemoryError)
    ):
        await worker.exchange(want=100)
    rows = "select count(*) filter (where lease is not null) from runtime.deliveries"
    assert await db.fetchval(rows) == 0
    length = await worker.connection.fetchval(
        "select length(public.stream_exchange($1, $2, $3, want => $4, options => $5)::text)",
        worker.id, worker.pump, worker.n + 1, {str(numbers["a.one"]): 100}, {"max_bytes": 8_000_000},
    )  # fmt: skip
    assert 10_000_000 < length < 30_000_000
    assert await db.fetchval(rows) == 1


@pytest.mark.timeout(600)
async def test_r2_what_no_answer_can_hold_is_a_dead_letter_and_takes_nobody_with_it(
    db: Any, worker: Worker
) -> None:
    await one_version_tells(db)
    await worker.subscribe({"name": "b.row", "patterns": ["task.>"], "ordered": True})
    await db.execute(f"insert into consciousness_stream (key, value) values ('task.a', {MONSTROUS})")
    (small,) = await send(db, ("task.a", 1))
    assert (await worker.exchange(want=10, due=True, max_bytes=8_000_000)).taken == []
    assert [each.id for each in (await worker.exchange(want=10, due=True)).taken] == [small]
    letters = await db.fetch("select subscription_name, reason, error from runtime.dead_letters order by 1")
    assert [tuple(each)[:2] for each in letters] == [("b.row", "invalid")]
    assert all("more bytes as JSON text than any answer can hold" in each["error"] for each in letters)
    assert await db.fetchval("select count(*) from runtime.runs where outcome = 'dead'") == 1


async def test_r2_headers_and_agents_are_weighed_too(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.>")
    headers = {"h": "x" * 3000}
    await send(db, *[{"key": "task.a", "value": 1, "headers": headers} for _ in range(4)])
    assert len(await worker.take(10, max_bytes=7000)) == 2
    await unlimited(db)
    await db.execute(
        "insert into consciousness_stream (key, agent) select 'task.b', repeat('x', 3000) from generate_series(1, 4)"
    )
    await worker.take(10)
    await db.execute("update runtime.deliveries set lease = null, visible_at = null")
    await db.execute("delete from consciousness_stream where key = 'task.a'")
    taken = [each.key for each in await worker.take(10, max_bytes=7000)]
    assert taken == ["task.b", "task.b"]


async def test_r2_a_dead_letter_of_an_older_row_can_be_redriven_and_amended(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.>")
    limits = await db.fetch("select conname, pg_get_constraintdef(oid) as rule from pg_constraint where contype = 'c' "
                            "and conrelid = 'consciousness_stream'::regclass")  # fmt: skip
    await unlimited(db)
    await db.execute(
        "insert into consciousness_stream (key, agent, correlation_id, headers) "
        "select 'task.a', repeat('x', 3000), repeat('y', 3000), '[1]' from generate_series(1, 2)"
    )
    await worker.fail(*await worker.take(10), outcome="dead")
    await db.execute("delete from consciousness_stream")
    for each in limits:
        await db.execute(f"alter table consciousness_stream drop constraint if exists {each['conname']}, "
                         f"add constraint {each['conname']} {each['rule']}")  # fmt: skip
    first, second = [row["id"] for row in await db.fetch("select id from runtime.dead_letters order by id")]
    await db.fetchval("select public.stream_redrive(ids => $1)", [first])
    await db.fetchval("select public.stream_amend($1, '2')", second)
    assert len(await worker.take(10)) == 2


@pytest.mark.parametrize(
    ("times", "odd"), [("now() + interval '50 years'", 120), ("'infinity'", 30), ("now()", 25)]
)
async def test_r5_a_page_of_what_is_not_old_does_not_stop_retention(db: Any, times: str, odd: int) -> None:
    await unlimited(db)
    for key, count, at in (("task.old", 5, "now() - interval '30 days'"), ("task.odd", odd, times),
                           ("task.old", 20, "now() - interval '20 days'"), ("task.new", 200, "now()")):  # fmt: skip
        await db.execute(
            f"insert into consciousness_stream (key, created_at) select '{key}', {at} from generate_series(1, {count})"
        )

    async def rounds() -> int:
        pruned, after, looks = 0, 0, 0
        while after is not None:
            answer = await db.fetchval("select public.stream_prune(864000, 10, $1)", after)
            pruned, after, looks = pruned + answer["pruned"], answer["last"], looks + 1
        assert looks <= 25
        return int(pruned)

    # Without the look behind the page it stops at the first that has nothing old.
    without = db.transaction()
    await without.start()
    await switch_off(db, "public.stream_prune", "or runtime.has_older(looked[max], horizon)")
    assert await rounds() == 5
    await without.rollback()
    assert await rounds() == 25
    assert await db.fetchval("select count(*) from consciousness_stream where key = 'task.old'") == 0
