"""Rows written by plain SQL that `encode` would refuse: one dead letter each, and nothing else notices."""

from collections import Counter
from typing import Any

import anyio
import httpx
import pytest
from pydantic import BaseModel

from runtime import Agent, Context, Message, connect
from runtime.client.dead_letters import DeadLetterFilter
from runtime.encoding.unreadable import find_unreadable
from runtime.errors import AskFailed
from tests.integration.conftest import connected, running, settings_of, settled, until

pytestmark = pytest.mark.anyio

UNREADABLE = {
    "long number": "to_jsonb(1e131071)",
    "negative number": "to_jsonb(-1e5000)",
    "overflow": "to_jsonb(1e400 + 0.5)",
    "deep": "(repeat('[', 3000) || repeat(']', 3000))::jsonb",
    "deep objects": "(repeat('{\"a\":', 3000) || '1' || repeat('}', 3000))::jsonb",
    "among others": "jsonb_build_object('before', 1, 'it', jsonb_build_array(1e5000), 'after', 'x')",
}
READABLE = {
    "tiny": "to_jsonb(1e-16000)",
    "large": "to_jsonb(1e4000)",
    "150 levels": "(repeat('[', 150) || repeat(']', 150))::jsonb",
    "odd texts": "jsonb_build_object('', E'\\\\u0001\\x7f\\u2028\\U0010ffff', 'a\"b', '</script>')",
    "null": "'null'::jsonb",
    "no value": "null",
}
INSERT = "insert into public.consciousness_stream (key, value) values ('odd.row', {}) returning id"


class Model(BaseModel):
    n: int


def agents(seen: list[Any]) -> list[Agent]:
    """One handler of each kind."""
    agent = Agent("reader")

    @agent.on("odd.*")
    async def plain(value: Any) -> None:
        seen.append(("plain", value))

    @agent.on("odd.row")
    def whole(message: Message[Any]) -> None:
        seen.append(("whole", message.id))

    @agent.on("odd.row")
    async def neither(context: Context) -> None:
        seen.append(("neither", context.message.id))

    @agent.on("odd.row", batch=5)
    async def many(messages: list[Message[Any]]) -> None:
        seen.extend(("many", message.id) for message in messages)

    @agent.on("odd.row", deliver="each")
    async def each(message: Message[Any]) -> None:
        seen.append(("each", message.id))

    @agent.on("odd.row", ordered=True)
    async def ordered(message: Message[Any]) -> None:
        seen.append(("ordered", message.id))

    return [agent]


STORED = ("plain", "whole", "neither", "many", "ordered")


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_r1_what_python_cannot_hold_is_a_dead_letter_of_its_own_and_every_reader_shows_it(
    store: str, stack: Any, seen: list[Any]
) -> None:
    settings = settings_of(stack, database_url=stack.db_url if store == "direct" else None)
    admin = stack.admin_url
    async with (
        connected(admin) as db,
        connect(settings) as stream,
        running(agents(seen), settings) as worker,
    ):
        await until(lambda: settled(db, *(f"reader.{name}" for name in STORED)))
        await until(lambda: worker.state == "live")
        listened: list[Any] = []

        async def listen() -> None:
            async for message in stream.listen("odd.row", since=0):
                listened.append(message)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            bad = {what: await db.fetchval(INSERT.format(sql)) for what, sql in UNREADABLE.items()}
            good = [await db.fetchval(INSERT.format(sql)) for sql in (*READABLE.values(), *READABLE.values())]
            expected = {(name, number) for name in STORED if name != "plain" for number in good}
            expected |= {("each", number) for number in good}
            await until(lambda: expected <= {each for each in seen if each[0] != "plain"}, seconds=60)
            count = len(bad) * len(STORED)
            letters: list[Any] = []

            async def have_died() -> bool:
                letters[:] = await stream.operations.dead_letters(DeadLetterFilter(), details=True)
                return len(letters) >= count

            await until(have_died, seconds=60)
            await until(lambda: len(listened) >= len(bad) + len(good), seconds=60)
            tasks.cancel_scope.cancel()
        assert Counter(each for each in seen if each[0] != "plain") == Counter(expected)
        assert len([each for each in seen if each[0] == "plain"]) == len(good)
        assert {(each["subscription"], each["message_id"]) for each in letters} == {
            (f"reader.{name}", number) for name in STORED for number in bad.values()
        }
        assert {(each["reason"], each["attempt_count"]) for each in letters} == {("invalid", 1)}
        assert all("which Python cannot read" in each["error"] for each in letters)
        assert await db.fetchval("select count(*) from runtime.runs where outcome = 'crashed'") == 0
        # Every reader.
        page = await stream.views.page("odd.row")
        read = await stream.read("odd.row", limit=1000)
        assert [each.id for each in read] == [*bad.values(), *good] == sorted(each.id for each in listened)
        for values in (
            {each.id: each.value for each in read},
            {each.id: each.value for each in listened},
            {each["message_id"]: each["message"]["value"] for each in letters},
            {each["id"]: each["value"] for each in page["messages"]},
        ):
            for what, number in bad.items():
                # A page leaves large values out.
                if values[number] is not None:
                    assert find_unreadable("value", values[number]) is not None, what
        newest = await db.fetchval(INSERT.format(UNREADABLE["among others"]))
        latest = await stream.latest("odd.row")
        assert latest is not None
        assert (latest.id, latest.value["before"], latest.value["after"]) == (newest, 1, "x")
        assert (await stream.latest_of_each("odd.*"))[0].id == newest
        assert (await stream.views.trace(newest))["messages"][0]["value"]["after"] == "x"
        # Redriven they die again, amended they are handled, and the values in the table are as they were written.
        (letter,) = [
            each
            for each in letters
            if each["subscription"] == "reader.whole" and each["message_id"] == bad["deep"]
        ]
        assert await stream.operations.amend(letter["id"], {"n": 1}) > 0
        (long,) = [
            each
            for each in letters
            if each["subscription"] == "reader.plain" and each["message_id"] == bad["long number"]
        ]
        assert sum([n async for n in stream.operations.redrive(DeadLetterFilter(ids=[long["id"]]))]) == 1

        async def has_died_again() -> bool:
            found = await stream.operations.dead_letters(DeadLetterFilter(subscription="reader.plain"))
            return any(
                each["message_id"] == bad["long number"] and each["id"] != long["id"] for each in found
            )

        await until(has_died_again, seconds=60)
        kept = await db.fetchval(
            "select length(value::text) from consciousness_stream where id = $1", bad["long number"]
        )
        assert kept == 131_072
        assert worker.counts["exchanges"] > 0


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_r3_headers_of_any_shape_stop_neither_handlers_nor_who_asks(
    store: str, stack: Any, seen: list[Any]
) -> None:
    settings = settings_of(stack, database_url=stack.db_url if store == "direct" else None)
    agent = Agent("desk")

    @agent.on("odd.wanted")
    async def answer(message: Message[Any], context: Context) -> int:
        async with connected(stack.admin_url) as other:
            # Whoever may write an answer beside the handler's.
            for headers in ("[1]", '"x"', "7", "null"):
                await other.execute(
                    "insert into consciousness_stream (key, value, parent_id, headers) "
                    "values ($1, '1', $2, $3::text::jsonb)",
                    message.reply_to, message.id, headers,
                )  # fmt: skip
        return 42

    @agent.on("odd.headers")
    async def take(message: Message[Any], context: Context) -> None:
        seen.append(dict(message.headers))
        context.emit("odd.seen", message.value)

    async with connected(stack.admin_url) as db, connect(settings) as stream, running([agent], settings):
        # As in a table from before it had its limits.
        await db.execute(
            "alter table consciousness_stream drop constraint headers_are_an_object_of_at_most_64_kb"
        )
        await until(lambda: settled(db, "desk.answer", "desk.take"))
        assert await stream.ask("odd.wanted", 1) in (1, 42)
        assert len(await stream.ask_all("odd.wanted", 1, first=2)) >= 2
        for headers in (
            "[1]",
            '"x"',
            "7",
            "null",
            '[{"reply_to": "a.b"}]',
            '{"reply_to": 7, "traceparent": []}',
        ):
            await db.execute(
                "insert into consciousness_stream (key, value, headers) values ('odd.headers', '1', $1::text::jsonb)",
                headers,
            )
        await until(lambda: len(seen) == 6)
        assert await stream.operations.dead_letters(DeadLetterFilter()) == []


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_r1_an_answer_that_cannot_be_read_is_a_clear_error_for_who_asked(
    store: str, stack: Any
) -> None:
    settings = settings_of(stack, database_url=stack.db_url if store == "direct" else None)
    agent = Agent("desk")

    @agent.on("odd.wanted")
    async def answer(message: Message[Any]) -> None:
        async with connected(stack.admin_url) as other:
            await other.execute(
                "insert into consciousness_stream (key, value, parent_id) values ($1, to_jsonb(1e5000), $2)",
                message.reply_to, message.id,
            )  # fmt: skip
        await anyio.sleep_forever()

    async with connected(stack.admin_url) as db, connect(settings) as stream, running([agent], settings):
        await until(lambda: settled(db, "desk.answer"))
        (answered,) = await stream.ask_all("odd.wanted", 1, first=1, timeout=60)
        assert isinstance(answered.error, AskFailed)
        assert "a number of 5,001 digits, which Python cannot read" in str(answered.error)


async def test_r1_the_local_rest_api_takes_and_gives_numbers_of_any_length(stack: Any) -> None:
    headers = {"apikey": stack.service_role_key, "authorization": f"Bearer {stack.service_role_key}"}
    url, digits = f"{stack.api_url}/rest/v1", "7" * 10_000
    async with httpx.AsyncClient(headers=headers, timeout=60) as client:
        body = f'{{"key": "odd.row", "value": [{digits}]}}'
        written = await client.post(
            f"{url}/consciousness_stream", content=body, headers={"content-type": "application/json"}
        )
        assert written.status_code == 201, written.text
        sent = await client.post(
            f"{url}/rpc/stream_send",
            content=f'{{"messages": [{body}]}}',
            headers={"content-type": "application/json"},
        )
        assert sent.status_code == 200, sent.text
        read = await client.get(f"{url}/consciousness_stream?select=value")
        assert read.text.count(digits) == 2
