"""Webhooks in the kernel: who may see what, when a target rests, and what a person's own hand does to that."""

import json
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker, insert

pytestmark = pytest.mark.anyio

URL = "https://me:word@example.com/hook?key=hush"
Note = Callable[..., Any]


@pytest.fixture
async def added(db: Any) -> Any:
    """A webhook, crm.post for person.>, whose rests are short."""
    await db.execute("update runtime.policy set webhook_rest_seconds = 10, webhook_longest_rest_seconds = 60")
    return await db.fetchval(
        "select stream_add_webhook('crm.post', $1, '{person.>}', emits => 'crm.noted')", URL
    )


async def note(db: Any, kind: str, message: int = 1, **more: Any) -> dict[str, Any]:
    """Tell of one request; returns how the target is."""
    given = {"name": "crm.post", "kind": kind, "message": message, **more}
    answer = await db.fetchval("select stream_note_webhooks($1, $2)", [{"name": "crm.post"}], [given])
    return dict(answer["crm.post"])


async def state(db: Any) -> dict[str, Any]:
    """The webhook as it is listed."""
    [row] = await db.fetchval("select stream_webhooks()")
    return dict(row)


async def end_rest(db: Any) -> None:
    """Have the time of the rest pass, and somebody look."""
    await db.execute(
        "update runtime.webhooks set rests_until = clock_timestamp() where rests_until < 'infinity'"
    )
    await db.fetchval("select stream_note_webhooks($1)", [{"name": "crm.post"}])


async def serve(worker: Worker) -> int:
    """Have the worker serve it; returns its number."""
    (number,) = (
        await worker.subscribe({"name": "crm.post", "patterns": ["person.>"], "must_exist": True})
    ).values()
    return number


async def test_what_is_written_from_its_adding_on_is_kept_for_it(db: Any, worker: Worker, added: Any) -> None:
    message = await insert(db, "person.met", "Ada")
    await serve(worker)
    assert [each.id for each in await worker.take()] == [message]


async def test_no_list_holds_secrets_credentials_or_queries(db: Any, added: Any) -> None:
    assert added["secret"].startswith("whsec_")
    assert added["url"] == "https://example.com/hook"
    listed = json.dumps(await state(db))
    assert (await state(db))["url"] == "https://example.com/hook"
    assert not any(text in listed for text in ("whsec_", added["secret"], "word", "hush"))
    [served] = await db.fetchval("select stream_serve_webhooks()")
    assert (served["url"], served["secrets"]) == (URL, [added["secret"]])


async def test_service_role_reads_the_table_through_the_functions_alone(
    db: Any, connect_as_superuser: Connect, added: Any
) -> None:
    async with connect_as_superuser() as connection:
        await connection.execute("set role service_role")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("select secret from runtime.webhooks")
        assert await connection.fetchval("select stream_serve_webhooks()") is not None


async def test_an_agents_own_identity_touches_no_webhook_but_notes_on_its_own(db: Any, added: Any) -> None:
    await db.execute(
        """select set_config('request.jwt.claims', '{"role": "agent", "agent": "shop"}', false)"""
    )
    for call in (
        "stream_add_webhook('shop.post', 'https://example.com', '{a}')", "stream_serve_webhooks()",
        "stream_webhooks()", "stream_rotate_webhook('crm.post')", "stream_remove_webhook('crm.post')",
        """stream_note_webhooks('[{"name": "crm.post"}]')""",
    ):  # fmt: skip
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await db.fetchval(f"select {call}")
    own = [{"name": "shop.post", "url": "https://example.com"}]
    assert "shop.post" in await db.fetchval("select stream_note_webhooks($1)", own)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("'crm.post', 'https://example.com', '{a}'", "there is a webhook 'crm.post' already"),
        ("'a.one', 'https://example.com', '{a}'", "is a handler of an agent's code"),
        ("'crm.other', 'ftp://example.com', '{a}'", "begins with https://"),
        ("'crm.other', 'https:///nowhere', '{a}'", "begins with https://"),
        ("'crm.other', 'https://example.com', '{a..b}'", "is not a pattern"),
        ("'crm.other', 'https://example.com', '{}'", "has no patterns"),
        ("'crm.other', 'https://example.com', '{a}', emits => 'a.*'", "is not a key"),
        ("'crm', 'https://example.com', '{a}'", "is not a subscription name"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    arguments: str, complaint: str, db: Any, worker: Worker, added: Any
) -> None:
    await worker.subscribe("a.one=a")
    with pytest.raises(asyncpg.PostgresError, match=complaint):
        await db.fetchval(f"select stream_add_webhook({arguments})")


async def test_replacing_keeps_the_secret_and_what_waits(db: Any, worker: Worker, added: Any) -> None:
    message = await insert(db, "person.met", "Ada")
    again = await db.fetchval(
        "select stream_add_webhook('crm.post', 'https://example.org/', '{person.met}', replace => true)"
    )
    assert again["secret"] == added["secret"]
    await serve(worker)
    assert [each.id for each in await worker.take()] == [message]


async def test_both_secrets_are_handed_out_until_the_old_ones_time_is_over(db: Any, added: Any) -> None:
    rotated = await db.fetchval("select stream_rotate_webhook('crm.post', 60)")

    async def secrets() -> list[str]:
        [served] = await db.fetchval("select stream_serve_webhooks()")
        return list(served["secrets"])

    assert await secrets() == [rotated["secret"], added["secret"]]
    assert (await state(db))["secrets"] == 2
    await db.execute("update runtime.webhooks set old_until = clock_timestamp()")
    assert await secrets() == [rotated["secret"]]
    assert await db.fetchval("select old_secret from runtime.webhooks") is None


async def test_failures_of_the_target_in_a_row_make_it_rest_and_nothing_is_taken(
    db: Any, worker: Worker, added: Any
) -> None:
    await serve(worker)
    for count in range(1, 5):
        assert (await note(db, "target"))["failing"]
        assert (await state(db))["failures"] == count
    await note(db, "done")
    assert (await state(db))["state"] == "well"
    for _ in range(4):
        await note(db, "target")
    told = await note(db, "target", status=503, error="it answered 503")
    assert 7 < told["rests_seconds"] <= 12.5
    listed = await state(db)
    assert (listed["state"], listed["last_status"], listed["last_error"]) == (
        "resting",
        503,
        "it answered 503",
    )
    await insert(db, "person.met", "Ada")
    assert await worker.take() == []
    await end_rest(db)
    assert (await state(db))["state"] == "probing"
    assert len(await worker.take()) == 1


async def test_each_rest_is_longer_up_to_a_limit_and_a_success_begins_anew(db: Any, added: Any) -> None:
    for _ in range(5):
        await note(db, "target")
    for least, most in ((15, 25), (30, 50), (45, 75), (45, 75)):
        await end_rest(db)
        told = await note(db, "message", message=9)
        assert least < told["rests_seconds"] <= most
    await end_rest(db)
    told = await note(db, "done")
    assert told == {"rests_seconds": None, "probing": False, "failing": False}
    assert await db.fetchval("select rests from runtime.webhooks") == 0


async def test_one_message_that_fails_again_and_again_makes_nobody_rest(db: Any, added: Any) -> None:
    for _ in range(20):
        assert (await note(db, "message", message=7))["rests_seconds"] is None
    for message in range(1, 4):
        assert (await note(db, "message", message=message))["rests_seconds"] is None
    assert (await note(db, "message", message=4))["rests_seconds"] is not None


async def test_what_was_under_way_when_a_rest_began_changes_nothing(db: Any, added: Any) -> None:
    for _ in range(5):
        await note(db, "target")
    rests = await db.fetchval("select rests_until from runtime.webhooks")
    await note(db, "target")
    await note(db, "done")
    assert await db.fetchval("select rests_until from runtime.webhooks") == rests
    assert (await state(db))["state"] == "resting"


async def test_a_target_that_asks_for_it_is_left_alone_as_long_but_no_longer_than_an_hour(
    db: Any, added: Any
) -> None:
    assert 4 < (await note(db, "asked", seconds=5))["rests_seconds"] <= 5
    # The longer of two requests holds.
    assert (await note(db, "asked", seconds=1e9))["rests_seconds"] <= 3600
    assert (await note(db, "asked", seconds=1))["rests_seconds"] > 3500
    assert (await state(db))["failures"] == 0


async def test_one_that_is_gone_comes_back_by_hand_alone(db: Any, added: Any) -> None:
    await note(db, "gone", status=410)
    await end_rest(db)
    await note(db, "target")
    assert ((await state(db))["state"], (await state(db))["rests_seconds"]) == ("gone", None)
    await db.fetchval("select stream_resume('crm.post')")
    assert (await state(db))["state"] == "well"


async def test_a_persons_own_pause_outlasts_a_rest_and_resuming_ends_one(db: Any, added: Any) -> None:
    for _ in range(5):
        await note(db, "target")
    await db.fetchval("select stream_pause('crm.post')")
    await end_rest(db)
    assert (await state(db))["state"] == "paused"
    # And the other way round: a rest that ends does not end a pause that was there before.
    for _ in range(5):
        await note(db, "target")
    await end_rest(db)
    assert await db.fetchval("select paused_at is not null from runtime.subscriptions")
    await db.fetchval("select stream_resume('crm.post')")
    for _ in range(5):
        await note(db, "target")
    await db.fetchval("select stream_resume('crm.post')")
    assert (await state(db))["state"] == "well"
    assert await db.fetchval("select paused_at from runtime.subscriptions") is None


async def test_one_that_was_removed_is_not_brought_back_by_who_has_not_heard_of_it(
    db: Any, worker: Worker, added: Any
) -> None:
    await serve(worker)
    await insert(db, "person.met", "Ada")
    assert (await db.fetchval("select stream_remove_webhook('crm.post', dry_run => true)"))["waiting"] == 1
    # A worker serves it, and that does not hold it up.
    assert (await db.fetchval("select stream_remove_webhook('crm.post')"))["removed"]
    subscribed = await worker.subscribe({"name": "crm.post", "patterns": ["person.>"], "must_exist": True})
    assert subscribed == {}
    for table in ("subscriptions", "webhooks", "deliveries"):
        assert await db.fetchval(f"select count(*) from runtime.{table}") == 0
