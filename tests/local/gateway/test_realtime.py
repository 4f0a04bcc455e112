"""What no recording shows: refusals, outages, crowds, slow readers."""

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import asyncpg
import httpx
import pytest
import websockets

pytestmark = pytest.mark.anyio

ANY_ROW = {"event": "INSERT", "schema": "public", "table": "consciousness_stream"}


async def test_a_secret_key_opens_the_socket_and_lends_the_join_its_role(server: Any) -> None:
    async with server.client("sb_secret_x") as client:
        await client.join("realtime:x", ANY_ROW, private=True)
        await server.sql("insert into public.consciousness_stream (key) values ('a')")
        assert (await client.receive())[4]["data"]["record"]["key"] == "a"


async def test_a_refused_join_holds_up_the_whole_socket(server: Any) -> None:
    async with server.client() as client:
        await client.join("realtime:good", ANY_ROW)
        token = server.tokens(role="service_role", seconds=-5)
        await client.send("realtime:bad", "phx_join", {"config": {}, "access_token": token})
        await client.send("phoenix", "heartbeat")
        await server.sql("insert into public.consciousness_stream (key) values ('a')")
        frames = [await client.receive() for _ in range(3)]
        assert [frame[2] for frame in frames] == ["realtime:bad", "phoenix", "realtime:good"]


async def test_partitions_are_made_ahead_and_dropped_after_their_time(server: Any) -> None:
    await server.sql(
        "create table realtime.messages_2020_01_01 partition of realtime.messages "
        "for values from ('2020-01-01') to ('2020-01-02');"
        "alter table realtime.messages_2020_01_01 owner to supabase_realtime_admin;"
        "create table realtime.messages_by_hand partition of realtime.messages "
        "for values from ('2020-02-01') to ('2020-02-02')"
    )
    connection = await asyncpg.connect(server.database_url)
    try:
        await server.realtime.make_partitions()
        names = [
            row["relname"]
            for row in await connection.fetch(
                "select relname from pg_inherits join pg_class c on c.oid = inhrelid "
                "where inhparent = 'realtime.messages'::regclass order by relname"
            )
        ]
    finally:
        await connection.close()
    assert "messages_2020_01_01" not in names
    assert "messages_by_hand" in names
    days = [datetime.now(UTC).date() + timedelta(days=ahead) for ahead in range(-1, 4)]
    assert {f"messages_{day:%Y_%m_%d}" for day in days} <= set(names)


async def test_http_broadcast_reaches_who_may_hear_it(server: Any) -> None:
    key = server.tokens(role="service_role")
    async with server.client() as client, httpx.AsyncClient(base_url=server.http_url) as http:
        await client.join("realtime:h")
        await client.join("realtime:h2", private=True)
        path, headers = "/realtime/v1/api/broadcast", {"apikey": key}
        message = {"topic": "h", "event": "ev", "payload": {"a": 1}}
        for body in ({"messages": []}, {"x": 1}):
            answer = await http.post(path, json=body, headers=headers)
            assert (answer.status_code, answer.text) == (422, '{"errors":{"messages":["can\'t be blank"]}}')
        assert (
            await http.post(path, json={"messages": [message]}, headers={"apikey": "no"})
        ).status_code == 401
        both = [message, message | {"topic": "h2", "private": True}, message | {"topic": "h2"}]
        answer = await http.post(path, json={"messages": both}, headers=headers)
        assert (answer.status_code, answer.text) == (202, "")
        payload = {"event": "ev", "payload": {"a": 1}, "type": "broadcast"}
        assert await client.receive() == [None, None, "realtime:h", "broadcast", payload]
        assert await client.receive() == [None, None, "realtime:h2", "broadcast", payload]


async def test_lost_replication_connections_are_made_again_and_nobody_is_told(server: Any) -> None:
    async with server.client() as client:
        await client.join("realtime:x", ANY_ROW)
        await server.sql("select pg_terminate_backend(pid) from pg_stat_replication")
        # Rows and messages of the gap are lost, so write until each path delivers again.
        heard: set[str] = set()
        with anyio.fail_after(60):
            while heard != {"row", "news"}:
                await server.sql(
                    "insert into public.consciousness_stream (key) values ('a');"
                    "select realtime.send('{}', 'ev', 'x', false)"
                )
                with anyio.move_on_after(0.3):
                    while True:
                        frame = await client.receive()
                        heard.add("news" if isinstance(frame, bytes) else "row")
                        assert isinstance(frame, bytes) or frame[3] == "postgres_changes"


async def test_a_huge_transaction_arrives_and_holds_up_nothing_for_long(server: Any) -> None:
    async with server.client() as client:
        await client.join("realtime:x", {**ANY_ROW, "select": ["id", "key"]})
        await server.sql(
            "insert into public.consciousness_stream (key) select 'k' from generate_series(1, 50000)"
        )
        await server.sql("select realtime.send('{}', 'ev', 'x', false)")
        ids = []
        with anyio.fail_after(60):
            while len(ids) < 50_000:
                frame = await client.receive(30)
                if not isinstance(frame, bytes):
                    ids.append(frame[4]["data"]["record"]["id"])
        assert len(set(ids)) == 50_000


async def read_to_the_end(client: Any) -> None:
    while True:
        await client.receive()


async def test_a_client_that_does_not_read_is_dropped(server: Any) -> None:
    async with server.client() as slow, server.client() as quick:
        await slow.join("realtime:x")
        await quick.join("realtime:y")
        slow.socket.transport.pause_reading()
        body = {"messages": [{"topic": "x", "event": "ev", "payload": {"x": "y" * 1_000_000}}] * 10}
        async with httpx.AsyncClient(base_url=server.http_url) as http:
            for _ in range(10):
                headers = {"apikey": server.tokens(role="service_role")}
                answer = await http.post("/realtime/v1/api/broadcast", json=body, headers=headers)
                assert answer.status_code == 202
        slow.socket.transport.resume_reading()
        with anyio.fail_after(60), pytest.raises(websockets.ConnectionClosed):
            await read_to_the_end(slow)
        await quick.send("phoenix", "heartbeat")
        assert (await quick.receive())[4]["status"] == "ok"


async def test_silence_is_closed_with_1000(admin_url: str, serving: Any) -> None:
    async with serving(admin_url, realtime_idle_seconds=0.3) as server, server.client() as client:
        with pytest.raises(websockets.ConnectionClosedOK) as closed:
            await client.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


async def test_several_gateways_share_one_database(server: Any, serving: Any) -> None:
    async with serving(server.database_url) as other, server.client() as one, other.client() as two:
        await one.join("realtime:x", ANY_ROW)
        await two.join("realtime:x", ANY_ROW)
        await server.sql("insert into public.consciousness_stream (key) values ('a')")
        frames = [await one.receive(), await two.receive()]
        assert [frame[4]["data"]["record"]["key"] for frame in frames] == ["a", "a"]


async def test_no_more_than_a_hundred_channels(server: Any) -> None:
    async with server.client() as client:
        for number in range(100):
            await client.join(f"realtime:c{number}")
        await client.send("realtime:c100", "phx_join", {"config": {}})
        assert (await client.receive())[4] == {
            "status": "error", "response": {"reason": "ChannelRateLimitReached: Too many channels"}
        }  # fmt: skip


async def test_updates_and_deletes_with_their_old_rows(server: Any) -> None:
    async with server.client() as client:
        await client.join("realtime:x", {**ANY_ROW, "event": "*", "select": ["key"]})
        await server.sql("insert into public.consciousness_stream (key, value) values ('a', '1')")
        await server.sql("update public.consciousness_stream set key = 'b'")
        await server.sql("delete from public.consciousness_stream")
        changes = [(await client.receive())[4]["data"] for _ in range(3)]
    assert [(c["type"], c.get("record"), c.get("old_record")) for c in changes] == [
        ("INSERT", {"id": 1, "key": "a"}, None),
        ("UPDATE", {"id": 1, "key": "b"}, {"id": 1}),
        ("DELETE", None, {"id": 1}),
    ]


async def test_a_binary_push_is_passed_on(server: Any) -> None:
    async with server.client() as one, server.client() as two:
        join_ref = await one.join("realtime:x", ack=True)
        await two.join("realtime:x")
        parts = [join_ref.encode(), b"7", b"realtime:x", b"ev", b"{}"]
        await one.socket.send(bytes([3, *map(len, parts), 0]) + b"".join(parts) + b"\x00\xff")
        assert await two.receive() == b"\x04\x0a\x02\x00\x00realtime:xev\x00\xff"
        assert await one.receive() == [
            join_ref,
            "7",
            "realtime:x",
            "phx_reply",
            {"status": "ok", "response": {}},
        ]


async def test_too_large_a_broadcast_is_refused(server: Any) -> None:
    async with server.client() as client:
        join_ref = await client.join("realtime:x", ack=True)
        payload = {"type": "broadcast", "event": "big", "payload": {"x": "y" * 3_200_000}}
        await client.send("realtime:x", "broadcast", payload, join_ref)
        assert (await client.receive())[4] == {"status": "error", "response": "payload_size_exceeded"}


async def test_a_missing_partition_refuses_private_channels_only(server: Any) -> None:
    async with server.client() as client:
        await server.sql(
            "do $$ declare p text; begin for p in select inhrelid::regclass::text from pg_inherits "
            "where inhparent = 'realtime.messages'::regclass loop execute 'drop table ' || p; end loop; end $$"
        )
        await client.send("realtime:x", "phx_join", {"config": {"private": True}})
        assert (await client.receive())[4]["response"] == {
            "reason": "MissingPartition: Realtime was unable to find the expected messages partition"
        }
        await client.join("realtime:y", ANY_ROW)


ORDERED_TABLE = """
create table public.ordered (id bigint primary key, n numeric, at timestamptz, label text collate "C", note text);
alter publication supabase_realtime add table public.ordered;
grant select on public.ordered to service_role;
"""


@pytest.mark.parametrize(
    ("filter_", "passing"),
    [
        ("n=lt.9", [1]),
        ("n=lte.9.00", [1, 2]),
        ("n=gt.9", [3]),
        ("n=gte.9", [2, 3]),
        ("n=not.lt.9", [2, 3]),
        ("id=gt.1,id=lte.3", [2, 3]),
        ("at=gt.2026-01-01T12:00:00+02:00", [2, 3]),
        ("label=gte.B", [2, 3]),
        ("n=neq.9", [1, 3]),
        ("n=in.(8.5,10)", [1, 3]),
        ("note=eq.x", []),
        ("note=neq.x", []),
    ],
)
async def test_filters_compare_as_the_columns_type_does(
    server: Any, filter_: str, passing: list[int]
) -> None:
    await server.sql(ORDERED_TABLE)
    binding = {"event": "*", "schema": "public", "table": "ordered"}
    async with server.client() as client:
        await client.join("realtime:x", {**binding, "filter": filter_}, {**binding, "filter": "id=eq.5"})
        await server.sql(
            "insert into public.ordered values (1, 8.5, '2026-01-01 10:00+00', 'A', null),"
            "(2, 9, '2026-01-01 10:00:01+00', 'B', null), (3, 10, '2026-01-02 00:00+00', 'a', null),"
            "(4, null, null, null, null), (5, null, null, null, null)"
        )
        ids = []
        while 5 not in ids:
            ids.append((await client.receive())[4]["data"]["record"]["id"])
    assert ids == [*passing, 5]


async def test_a_delete_is_told_by_filters_on_what_the_log_keeps_of_it(server: Any) -> None:
    await server.sql(ORDERED_TABLE)
    binding = {"event": "DELETE", "schema": "public", "table": "ordered"}
    async with server.client() as client:
        await client.join("realtime:by-note", {**binding, "filter": "note=eq.x"})
        await client.join("realtime:by-key", {**binding, "filter": "id=lt.9"})
        await server.sql("insert into public.ordered (id, note) values (1, 'x'); delete from public.ordered")
        await server.sql("alter table public.ordered replica identity full")
        await server.sql("insert into public.ordered (id, note) values (2, 'x'); delete from public.ordered")
        told = [await client.receive() for _ in range(3)]
    heard = [(frame[2], frame[4]["data"]["old_record"]["id"]) for frame in told]
    assert sorted(heard) == [("realtime:by-key", 1), ("realtime:by-key", 2), ("realtime:by-note", 2)]


async def test_any_table_of_the_publication(server: Any) -> None:
    await server.sql(ORDERED_TABLE)
    async with server.client() as client:
        await client.join("realtime:x", {"event": "INSERT", "schema": "public"})
        await server.sql("insert into public.consciousness_stream (key) values ('a')")
        await server.sql("insert into public.ordered (id) values (1)")
        tables = [(await client.receive())[4]["data"]["table"] for _ in range(2)]
    assert tables == ["consciousness_stream", "ordered"]


@pytest.mark.parametrize(
    ("what", "config"),
    [
        ("presence", {"presence": {"key": "me", "enabled": True}}),
    ],
)
async def test_what_is_not_served_is_refused_at_once(
    admin_url: str, serving: Any, what: str, config: Any
) -> None:
    async with serving(admin_url, realtime_join_refusal_seconds=60) as server, server.client() as client:
        await client.send("realtime:x", "phx_join", {"config": config})
        reason = f"NotServed: {what} is not served by this local gateway: use `supabase start` for it"
        assert (await client.receive())[4] == {"status": "error", "response": {"reason": reason}}


async def test_tracking_presence_is_refused_on_a_channel_without_it(server: Any) -> None:
    async with server.client() as client:
        join_ref = await client.join("realtime:x")
        await client.send("realtime:x", "presence", {"type": "presence", "event": "track"}, join_ref)
        reply = (await client.receive())[4]
    assert reply["status"] == "error"
    assert "`supabase start`" in reply["response"]["reason"]


async def test_one_message_over_http_reaches_who_may_hear_it_from_who_may_send(server: Any) -> None:
    async with server.client() as private, server.client() as public:
        await private.join("realtime:x", private=True)
        await public.join("realtime:x")
        async with httpx.AsyncClient(base_url=server.http_url) as http:

            async def post(event: str, role: str | None, query: str = "", **body: Any) -> tuple[int, str]:
                path = f"/realtime/v1/api/broadcast/x/events/{event}{query}"
                headers = {"apikey": server.tokens(role=role)} if role else {}
                answer = await http.post(path, headers=headers | body.pop("headers", {}), **body)
                return answer.status_code, answer.text

            forbidden = (403, '{"message":"Unauthorized"}')
            assert await post("forged", "anon", "?private=true", json={}) == forbidden
            assert await post("nobody", None, json={}) == (401, '{"message":"Unauthorized"}')
            as_json = {"content-type": "application/json"}
            assert (await post("broken", "anon", content=b"{", headers=as_json))[0] == 422
            assert (await post("large", "anon", content=b"x" * 3_000_501))[0] == 422
            assert await post("ev", "service_role", "?private=true", json={"n": 1}) == (202, "")
            assert await post("ev", "anon", content=b"\x00\xff") == (202, "")
        # What was refused would have come first.
        assert await private.receive() == b'\x04\x0a\x02\x00\x01realtime:xev{"n":1}'
        assert await public.receive() == b"\x04\x0a\x02\x00\x00realtime:xev\x00\xff"
