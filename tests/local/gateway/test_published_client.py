"""The clients that Supabase publishes on PyPI work against the stand-in as they do against a project."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from postgrest.exceptions import APIError
from realtime import AsyncRealtimeClient

from supabase import AsyncClient, acreate_client

pytestmark = pytest.mark.anyio

USER = "11111111-1111-1111-1111-111111111111"
SCHEMA = """
create table public.notes (id bigint primary key, label text);
create table public.mine (id bigint primary key, owner uuid);
alter table public.mine enable row level security;
create policy own on public.mine for select to authenticated using (owner = auth.uid());
alter publication supabase_realtime add table public.notes, public.mine;
grant all on public.notes, public.mine to service_role;
grant select on public.mine to anon, authenticated;
create policy rooms on realtime.messages for select to authenticated using (realtime.topic() like 'room:%');
create function public.add(a int, b int default 1) returns int language sql stable as 'select a + b';
"""


class Heard:
    """What a callback was called with, in its order."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[Any](100)

    def __call__(self, payload: Any) -> None:
        self._send.send_nowait(payload)

    async def next(self) -> Any:
        """The next one."""
        with anyio.fail_after(60):
            return await self._receive.receive()


@asynccontextmanager
async def connected(server: Any, key: str) -> AsyncIterator[AsyncClient]:
    client = await acreate_client(server.http_url, key)
    try:
        yield client
    finally:
        await client.remove_all_channels()
        await client.realtime.close()


async def join(channel: Any) -> None:
    """Subscribe and wait; raises what the server says against it."""
    states = Heard()
    await channel.subscribe(lambda state, error: states((state, error)))
    state, error = await states.next()
    if str(state.value) != "SUBSCRIBED":
        raise RuntimeError(str(error))


async def heard_after(heard: Heard, write: Callable[[int], Awaitable[Any]]) -> Any:
    """What is heard first, writing until then: this client says SUBSCRIBED before the database is heard."""
    for number in range(20):
        await write(number)
        with anyio.move_on_after(1):
            return await heard.next()
    pytest.fail("nothing was heard")


async def test_rest_and_rpc(server: Any) -> None:
    await server.sql(SCHEMA)
    async with connected(server, server.tokens(role="service_role")) as client:
        notes = client.table("notes")
        made = await notes.insert([{"id": 1, "label": "a"}, {"id": 2, "label": None}]).execute()
        assert made.data == [{"id": 1, "label": "a"}, {"id": 2, "label": None}]
        merged = await notes.upsert({"id": 2, "label": "b"}).execute()
        assert merged.data == [{"id": 2, "label": "b"}]
        page = await notes.select("id", count="exact").order("id", desc=True).range(0, 0).execute()
        assert (page.data, page.count) == ([{"id": 2}], 2)
        head = await notes.select("*", count="exact", head=True).in_("label", ["a", "c"]).execute()
        assert head.count == 1
        assert (await notes.select("label").eq("id", 1).single().execute()).data == {"label": "a"}
        assert await notes.select("*").eq("id", 9).maybe_single().execute() is None
        updated = await notes.update({"label": "c"}).gt("id", 1).execute()
        assert updated.data == [{"id": 2, "label": "c"}]
        assert (await notes.delete().like("label", "c*").execute()).data == [{"id": 2, "label": "c"}]
        assert (await client.rpc("add", {"a": 1, "b": 2}).execute()).data == 3
        assert (await client.rpc("add", {"a": 1}, get=True).execute()).data == 2
        for asked, code in (
            (notes.select("*").eq("nothing", 1), "42703"),
            (notes.select("*").or_("id.eq.1,id.eq.2"), "LOCAL501"),
            (client.rpc("nothing"), "PGRST202"),
        ):
            with pytest.raises(APIError) as refused:
                await asked.execute()
            assert refused.value.code == code


async def test_broadcast_between_the_two_packages(server: Any) -> None:
    """`supabase` sends, `realtime` alone hears."""
    key = server.tokens(role="service_role")
    alone = AsyncRealtimeClient(f"{server.http_url}/realtime/v1", key)
    heard, own = Heard(), Heard()
    try:
        async with connected(server, key) as client:
            listener = alone.channel("room", {"config": {"broadcast": {"ack": False, "self": False}}})
            listener.on_broadcast("hello", heard)
            await join(listener)
            sender = client.channel("room", {"config": {"broadcast": {"ack": True, "self": True}}})
            sender.on_broadcast("hello", own)
            await join(sender)
            await sender.send_broadcast("hello", {"n": 1})
            assert [(await each.next())["payload"] for each in (heard, own)] == [{"n": 1}, {"n": 1}]
            await server.sql("select realtime.send('{\"n\": 2}', 'hello', 'room', false)")
            assert (await heard.next())["payload"]["n"] == 2
    finally:
        await alone.close()


async def test_postgres_changes_of_every_kind(server: Any) -> None:
    await server.sql(SCHEMA)
    async with connected(server, server.tokens(role="service_role")) as client:
        heard = Heard()
        channel = client.channel("changes")
        channel.on_postgres_changes("*", schema="public", table="notes", filter="id=gte.10", callback=heard)
        await join(channel)
        notes = client.table("notes")
        first = await heard_after(heard, lambda n: notes.insert([{"id": n}, {"id": 10 + n}]).execute())
        at = first["data"]["record"]["id"]
        await notes.update({"label": "y"}).eq("id", at).execute()
        await notes.delete().eq("id", at).execute()
        changes = [first["data"], (await heard.next())["data"], (await heard.next())["data"]]
        assert [str(change["type"].value) for change in changes] == ["INSERT", "UPDATE", "DELETE"]
        assert changes[1]["record"]["label"] == "y"
        assert changes[2]["old_record"] == {"id": at}


async def test_private_channels(server: Any) -> None:
    await server.sql(SCHEMA)
    async with connected(server, server.tokens(role="authenticated", sub=USER)) as client:
        heard = Heard()
        private = {"config": {"private": True, "broadcast": {"ack": False, "self": False}}}
        room = client.channel("room:1", private)
        room.on_broadcast("told", heard)
        await join(room)
        await server.sql("select realtime.send('{\"n\": 3}', 'told', 'room:1', true)")
        assert (await heard.next())["payload"]["n"] == 3
        with pytest.raises(RuntimeError, match="You do not have permissions to read from this Channel topic"):
            await join(client.channel("elsewhere", private))


async def test_set_auth_gives_a_joined_channel_another_identity(server: Any) -> None:
    await server.sql(SCHEMA)
    async with connected(server, server.tokens(role="anon")) as client:
        heard = Heard()
        channel = client.channel("mine")
        channel.on_postgres_changes("INSERT", schema="public", table="mine", callback=heard)
        await join(channel)
        await client.realtime.set_auth(server.tokens(role="authenticated", sub=USER))
        row = await heard_after(
            heard,
            lambda n: server.sql(f"insert into public.mine values ({2 * n}, null), ({2 * n + 1}, '{USER}')"),
        )
        assert row["data"]["record"]["owner"] == USER
