"""Private topics are told again, bytes are broadcast, and a leave that comes late ends no newer channel."""

import json
import time
from typing import Any

import anyio
import asyncpg
import pytest

pytestmark = pytest.mark.anyio


async def rejoin(client: Any, topic: str, replay: Any, *, private: bool = True) -> tuple[str, Any]:
    """Join with a replay; returns the ref and the reply."""
    config = {"broadcast": {"replay": replay}, "private": private}
    ref = await client.send(topic, "phx_join", {"config": config})
    return ref, (await client.receive(30))[4]


async def send(server: Any, *numbers: int, topic: str = "r") -> None:
    """Broadcast from the database, one transaction each, so that their order is known."""
    for number in numbers:
        await server.sql(f"select realtime.send('{{\"n\": {number}}}', 'ev', '{topic}')")


async def test_t8_a_join_is_told_the_newest_messages_again(server: Any) -> None:
    since = int(time.time() * 1000) - 60_000
    await send(server, 1, 2, 3)
    await send(server, 9, topic="another")
    await server.sql("select realtime.send('{\"n\": 8}', 'ev', 'r', false)")
    async with server.client() as client:
        ref, reply = await rejoin(client, "realtime:r", {"since": since, "limit": 2})
        assert reply["status"] == "ok"
        for number in (2, 3):
            frame = await client.receive(30)
            assert frame[:4] == [ref, None, "realtime:r", "broadcast"]
            assert frame[4]["payload"]["n"] == number
            assert frame[4]["meta"] == {"id": frame[4]["payload"]["id"], "replayed": True}
            assert (frame[4]["event"], frame[4]["type"]) == ("ev", "broadcast")
        # What comes later is heard once, as it comes.
        await send(server, 4)
        live = await client.receive(30)
        assert isinstance(live, bytes)
        assert b'"n": 4' in live
        ref, reply = await rejoin(client, "realtime:r", {"since": int(time.time() * 1000) + 3_600_000})
        assert reply["status"] == "ok"


REFUSED = [
    ({"since": "x"}, True, "Replay params are not valid"),
    ({"limit": 3}, True, "Replay params are not valid"),
    ({"since": 1, "limit": "many"}, True, "Replay params are not valid"),
    ({"since": 10**30}, True, "Replay params are not valid"),
    ({"since": 1}, False, "Replay is not allowed for public channels"),
]


async def test_t8_a_replay_that_makes_no_sense_is_refused_in_the_server_s_words(server: Any) -> None:
    async with server.client() as client:
        for replay, private, words in REFUSED:
            _, reply = await rejoin(client, "realtime:r", replay, private=private)
            assert reply == {"status": "error", "response": {"reason": f"UnableToReplayMessages: {words}"}}


async def test_t8_no_more_than_25_are_told_again(server: Any) -> None:
    await server.sql(
        "select realtime.send(jsonb_build_object('n', n), 'ev', 'r') from generate_series(1, 30) n"
    )
    async with server.client() as client:
        await rejoin(client, "realtime:r", {"since": 0, "limit": 1_000})
        await client.send("phoenix", "heartbeat")
        frames = 0
        while (await client.receive(30))[3] != "phx_reply":
            frames += 1
        assert frames == 25


async def test_t8_bytes_are_broadcast_from_the_database_and_told_again(server: Any) -> None:
    async with server.client() as client:
        await client.join("realtime:b", private=True)
        await server.sql("select realtime.send_binary('\\x00ff01'::bytea, 'ev', 'b')")
        live = await client.receive(30)
        assert (live[0], live[4], live[-3:]) == (4, 0, b"\x00\xff\x01")
        await rejoin(client, "realtime:b", {"since": 0})
        frames = [await client.receive(30), await client.receive(30)]
        again = next(frame for frame in frames if isinstance(frame, bytes))
        assert again[-3:] == b"\x00\xff\x01"
        assert b'"replayed":true' in again


async def test_t8_a_leave_of_an_earlier_join_ends_no_newer_channel(server: Any) -> None:
    async with server.client() as client:
        first = await client.join("realtime:l", private=True)
        second = await client.send("realtime:l", "phx_join", {"config": {"private": True}})
        frames = [await client.receive(30), await client.receive(30)]
        assert {frame[3] for frame in frames} == {"phx_reply", "phx_close"}
        ref = await client.send("realtime:l", "phx_leave", join_ref=first)
        assert (await client.receive(30))[:4] == [first, ref, "realtime:l", "phx_reply"]
        await send(server, 5, topic="l")
        assert b'"n": 5' in await client.receive(30)
        await client.send("realtime:l", "phx_leave", join_ref=second)
        assert {(await client.receive(30))[3] for _ in range(2)} == {"phx_reply", "phx_close"}


# name, kind: filter → the rows of the table below that pass.
ROWS = {1: ("apple", True), 2: ("Apricot", False), 3: ("banana", None), 4: (None, True)}
FILTERS = {
    "name=like.ap%": {1}, "name=ilike.AP%": {1, 2}, "name=not.like.ap%": {2, 3}, "name=match.^[ab]": {1, 3},
    "name=imatch.^a": {1, 2}, "name=not.imatch.^a": {3}, "name=is.null": {4}, "name=not.is.null": {1, 2, 3},
    "kind=is.true": {1, 4}, "kind=is.unknown": {3}, "kind=not.is.true": {2, 3}, "name=isdistinct.apple": {2, 3, 4},
    "name=not.isdistinct.apple": {1}, "name=like.%p%,kind=is.false": {2}, "id=not.in.(1,2)": {3, 4},
    "kind=isdistinct.true": {2, 3},
}  # fmt: skip
BAD_FILTERS = {
    "id=like.1%": "operator like requires a text-compatible column type, got integer",
    "id=match.1": "operator match requires a text-compatible column type, got integer",
    "name=match.[": "invalid regular expression for match filter",
    "name=is.true": "is true filter requires a boolean column, got text",
    "kind=is.maybe": "invalid value for is filter: must be null, true, false, or unknown",
}


@pytest.fixture
async def fruit(server: Any) -> Any:
    await server.sql(
        "create table public.fruit (id int primary key, name text, kind boolean); "
        "alter publication supabase_realtime add table public.fruit; grant select on public.fruit to service_role"
    )
    return server


async def test_t8_every_filter_of_the_server_lets_the_rows_it_is_for_pass(fruit: Any) -> None:
    async with fruit.client() as client:
        bindings = [
            {"event": "INSERT", "schema": "public", "table": "fruit", "filter": text} for text in FILTERS
        ]
        for number, binding in enumerate(bindings):
            await client.join(f"realtime:f{number}", binding)
        connection = await asyncpg.connect(fruit.database_url)
        try:
            await connection.executemany(
                "insert into public.fruit values ($1, $2, $3)", [(id_, *row) for id_, row in ROWS.items()]
            )
        finally:
            await connection.close()
        passed: dict[str, set[int]] = {text: set() for text in FILTERS}
        names = list(FILTERS)
        for _ in range(sum(map(len, FILTERS.values()))):
            frame = await client.receive(30)
            passed[names[int(frame[2].removeprefix("realtime:f"))]].add(frame[4]["data"]["record"]["id"])
        assert passed == FILTERS


async def test_t8_filters_that_make_no_sense_are_refused_in_the_server_s_words(fruit: Any) -> None:
    async with fruit.client() as client:
        for text, words in BAD_FILTERS.items():
            binding = {"event": "*", "schema": "public", "table": "fruit", "filter": text}
            await client.send("realtime:x", "phx_join", {"config": {"postgres_changes": [binding]}})
            frame = await client.receive(30)
            while frame[3] != "system":
                frame = await client.receive(30)
            assert words in frame[4]["message"], json.dumps(frame)


async def test_t8_a_delete_passes_no_condition_about_what_it_did_not_log(fruit: Any) -> None:
    await fruit.sql("insert into public.fruit values (1, 'apple', true)")
    async with fruit.client() as client:
        binding = {"event": "DELETE", "schema": "public", "table": "fruit"}
        await client.join("realtime:n", {**binding, "filter": "name=is.null"})
        await client.join("realtime:k", {**binding, "filter": "id=eq.1"})
        await fruit.sql("delete from public.fruit")
        assert (await client.receive(30))[2] == "realtime:k"
        with anyio.move_on_after(0.3):
            pytest.fail(str(await client.receive(30)))
