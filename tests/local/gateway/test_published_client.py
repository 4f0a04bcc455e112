"""The clients that Supabase publishes work against the stand-in as they do against a project."""

from typing import Any

import anyio
import pytest

from supabase import acreate_client

pytestmark = pytest.mark.anyio


async def test_supabase_client_receives_inserts_and_broadcasts(server: Any) -> None:
    client = await acreate_client(server.http_url, server.tokens(role="service_role"))
    rows, news = [], []
    arrived = {name: anyio.Event() for name in ("joined", "row", "news")}

    def on_row(payload: dict[str, Any]) -> None:
        rows.append(payload)
        arrived["row"].set()

    def on_news(payload: dict[str, Any]) -> None:
        news.append(payload)
        arrived["news"].set()

    def on_state(state: str, error: Exception | None) -> None:
        assert state == "SUBSCRIBED", error
        arrived["joined"].set()

    channel = client.channel("c0", {"config": {"private": True}})
    channel.on_postgres_changes(
        "INSERT", schema="public", table="consciousness_stream", filter="key=in.(a,b)", callback=on_row
    )
    channel.on_broadcast("ev", on_news)
    try:
        with anyio.fail_after(10):
            await channel.subscribe(on_state)
            await arrived["joined"].wait()
            await server.sql("select realtime.send('{\"n\": 1}', 'ev', 'c0', true)")
            await arrived["news"].wait()
            # The client says SUBSCRIBED before the database is heard: write until a row comes.
            while not rows:
                await server.sql("insert into public.consciousness_stream (key) values ('a'), ('c')")
                with anyio.move_on_after(1):
                    await arrived["row"].wait()
    finally:
        await client.remove_all_channels()
        await client.realtime.close()
    assert {row["data"]["record"]["key"] for row in rows} == {"a"}
    assert news[0]["payload"]["n"] == 1
