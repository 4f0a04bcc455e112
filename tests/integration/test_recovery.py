"""Does a worker come back by itself from what operators do to a project, and does it say what happened?"""

import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import anyio
import jwt
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route, WebSocketRoute

from runtime import Agent, connect
from runtime.errors import MigrationMissing, Unauthorized
from runtime.local.stack import LocalStack
from runtime.wakeups.phoenix import Timings
from runtime.worker.worker import Worker
from tests.integration.conftest import connected, running, settings_of, settled, until

pytestmark = [pytest.mark.anyio, pytest.mark.own_stack]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="runtime")


@pytest.fixture
def reset_stack() -> Iterator[LocalStack]:
    """A whole stack of the test's own, which can be reset."""
    with LocalStack.temporary() as stack:
        stack.start()
        yield stack


def counting(seen: list[Any]) -> list[Agent]:
    """An agent that notes the values it gets."""
    agent = Agent("recovering")

    @agent.on("recovery.task")
    async def note(value: int) -> None:
        seen.append(value)

    return [agent]


async def insert(connection: Any, *values: int) -> None:
    for value in values:
        await connection.execute(
            "insert into public.consciousness_stream (key, value) values ('recovery.task', to_jsonb($1::int))",
            value,
        )


@contextmanager
def answering(port: int, status: int, page: str) -> Iterator[None]:
    """A host that answers everything with a page, also the upgrade to a WebSocket."""

    async def answer(request: Any) -> HTMLResponse:
        return HTMLResponse(page, status)

    async def refuse(socket: Any) -> None:
        await socket.send_denial_response(HTMLResponse(page, status))

    routes = [
        Route("/{path:path}", answer, methods=["GET", "POST"]),
        WebSocketRoute("/{path:path}", refuse),
    ]
    config = uvicorn.Config(Starlette(routes=routes), port=port, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("is_direct", [False, True], ids=["REST", "direct"])
async def test_g1_a_reset_under_a_running_worker_loses_nothing_that_was_written_after(
    reset_stack: LocalStack, seen: list[Any], is_direct: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stack = reset_stack
    settings = settings_of(stack, database_url=stack.db_url if is_direct else None, sweep_seconds=5)
    async with running(counting(seen), settings) as worker:
        async with connected(stack.db_url) as connection:
            await until(lambda: settled(connection, "recovering.note"))
            await insert(connection, 1, 2, 3)
            await until(lambda: len(seen) == 3)
            before = await connection.fetchval("select id from runtime.subscriptions")
        # As a reset does, which may be over before a worker that sleeps has noticed anything.
        await anyio.to_thread.run_sync(stack.delete)
        worker.look()
        await until(lambda: "the store is away" in caplog.text)
        await anyio.to_thread.run_sync(stack.start)
        async with connected(stack.db_url) as connection:
            # Not waited for: the worker may not have noticed yet that it is back.
            await insert(connection, *range(10, 30))
            await until(lambda: len(seen) == 23, seconds=60)
            await until(lambda: settled(connection, "recovering.note"))
            await insert(connection, 30)
            await until(lambda: len(seen) == 24)
            # A number of the old database means nothing in the new one.
            assert before != await connection.fetchval("select id from runtime.subscriptions")
        await until(lambda: worker.state == "live", seconds=60)
    assert sorted(seen) == [1, 2, 3, *range(10, 31)]
    assert "was it reset? Subscribing again" in caplog.text
    assert "the store answers again" in caplog.text


async def test_a_schema_that_goes_and_comes_back_is_waited_for(
    stack: Any, seen: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        running(counting(seen), settings_of(stack)) as worker,
        connected(stack.admin_url) as connection,
    ):
        await until(lambda: settled(connection, "recovering.note"))
        await connection.execute("alter function public.stream_exchange rename to stream_exchange_away")
        await until(lambda: "lacks the runtime's schema" in caplog.text)
        await insert(connection, 1)
        await connection.execute("alter function public.stream_exchange_away rename to stream_exchange")
        await until(lambda: seen == [1])
        assert "runtime init" in caplog.text
        assert caplog.text.count("the store cannot be used") == 1
        await until(lambda: worker.state == "live")


async def change_version(connection: Any, version: int, serves: int) -> None:
    await connection.execute(
        "create or replace function public.stream_version() returns json language sql stable security definer "
        f"set search_path = '' as $$ select json_build_object('version', {version}, 'serves', {serves}, "
        "'incarnation', p.incarnation) from runtime.policy p $$"
    )


@pytest.mark.parametrize(
    ("version", "serves", "cure"), [(0, 0, "supabase db push"), (3, 2, "pip install -U agent-runtime")]
)
async def test_a_schema_of_another_release_is_told_at_the_start_with_its_cure(
    stack: Any, version: int, serves: int, cure: str
) -> None:
    async with connected(stack.db_url) as connection:
        await change_version(connection, version, serves)
    with pytest.raises(MigrationMissing, match=cure):
        await Worker(counting([]), settings_of(stack)).run()


async def test_a_newer_schema_that_serves_this_release_is_worked_with(stack: Any, seen: list[Any]) -> None:
    async with connected(stack.db_url) as connection:
        await change_version(connection, 2, 1)
        async with running(counting(seen), settings_of(stack)):
            await until(lambda: settled(connection, "recovering.note"))
            await insert(connection, 1)
            await until(lambda: seen == [1])


async def test_a_worker_that_must_subscribe_again_waits_until_the_schema_fits(
    stack: Any, seen: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with running(counting(seen), settings_of(stack)), connected(stack.admin_url) as connection:
        await until(lambda: settled(connection, "recovering.note"))
        await change_version(connection, 0, 0)
        await connection.execute("truncate runtime.workers")
        await insert(connection, 1)
        await until(lambda: "has version 0" in caplog.text)
        await change_version(connection, 1, 1)
        await until(lambda: seen == [1])


async def test_a_wrong_key_ends_a_worker_at_its_start_with_the_cure(stack: Any) -> None:
    for key in (stack.anon_key, "sb_secret_of_another_project", stack.service_role_key[:-4] + "AAAA"):
        with pytest.raises(Unauthorized, match="SUPABASE_SERVICE_ROLE_KEY"):
            await Worker(counting([]), settings_of(stack, supabase_key=key)).run()


async def test_a_key_that_is_refused_for_a_while_is_waited_for_and_no_result_is_lost(
    stack: Any, seen: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent("recovering")
    goes_on = anyio.Event()

    @agent.on("recovery.task", emits="recovery.done")
    async def note(value: int) -> int:
        seen.append(value)
        await goes_on.wait()
        return value

    async with running([agent], settings_of(stack, lease_seconds=60)), connected(stack.db_url) as connection:
        await until(lambda: settled(connection, "recovering.note"))
        await insert(connection, 1)
        await until(lambda: seen == [1])
        await anyio.to_thread.run_sync(stack.kill_gateway)
        # Somebody has rotated the project's secret …
        with answering(
            stack.gateway.port, 401, '{"code": "PGRST301", "message": "No suitable key was found"}'
        ):
            goes_on.set()
            await until(lambda: "refused the key" in caplog.text)
        # … and has rotated it back.
        await anyio.to_thread.run_sync(stack.start_gateway)

        async def is_done() -> bool:
            return bool(
                await connection.fetchval(
                    "select exists (select from public.consciousness_stream where key = 'recovery.done')"
                )
            )

        await until(is_done)
    # Its result waited with it: it was not run again.
    assert seen == [1]


@pytest.mark.parametrize("privilege", ["function", "role"])
async def test_a_grant_that_is_taken_away_and_given_back_costs_no_result(
    stack: Any, seen: list[Any], caplog: pytest.LogCaptureFixture, privilege: str
) -> None:
    agent = Agent("recovering")
    goes_on = anyio.Event()

    @agent.on("recovery.task")
    async def note(value: int) -> None:
        seen.append(value)
        await goes_on.wait()

    what = {
        "function": ("execute on all functions in schema public", "service_role"),
        "role": ("usage on schema public", "service_role, public"),
    }[privilege]
    async with (
        running([agent], settings_of(stack, lease_seconds=60)),
        connected(stack.admin_url) as connection,
    ):
        await until(lambda: settled(connection, "recovering.note"))
        await insert(connection, 1, 2)
        await until(lambda: len(seen) == 2)
        await connection.execute(f"revoke {what[0]} from {what[1]}")
        goes_on.set()
        await until(lambda: "does not allow this" in caplog.text or "lacks" in caplog.text)
        await connection.execute(f"grant {what[0]} to {what[1]}")

        async def all_done() -> bool:
            return not await connection.fetchval("select exists (select from runtime.deliveries)")

        await until(all_done)
        assert await connection.fetchval("select array_agg(outcome) from runtime.runs") == ["done", "done"]
    assert sorted(seen) == [1, 2]


async def test_a_token_that_expires_is_told_and_a_direct_connection_goes_on_polling(
    stack: Any, seen: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    claims = {"role": "service_role", "iss": "supabase-demo", "exp": int(time.time()) + 6}
    token = jwt.encode(claims, stack.jwt_secret, algorithm="HS256")
    settings = settings_of(stack, supabase_key=token, database_url=stack.db_url, notify=False)
    async with running(counting(seen), settings) as worker, connected(stack.db_url) as connection:
        await until(lambda: settled(connection, "recovering.note"))
        await until(lambda: worker.state == "polling")
        await until(lambda: "Check the key" in caplog.text)
        assert "expired" in caplog.text
        await insert(connection, 1)
        await until(lambda: seen == [1])


async def test_a_token_that_expires_under_a_worker_over_rest_is_told_and_nothing_ends(
    stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    claims = {"role": "service_role", "iss": "supabase-demo", "exp": int(time.time()) + 4}
    token = jwt.encode(claims, stack.jwt_secret, algorithm="HS256")
    async with running(counting([]), settings_of(stack, supabase_key=token, sweep_seconds=2), live=False):
        await until(lambda: "the store cannot be used" in caplog.text)
        assert "JWT expired" in caplog.text
        assert "SUPABASE_SERVICE_ROLE_KEY" in caplog.text
    assert token not in caplog.text


@pytest.mark.parametrize(
    ("status", "page", "sentence"),
    [
        (540, "<html>Project paused</html>", "is paused"),
        (502, "<html>Bad gateway</html>", "answered 502"),
        (200, "<html>Welcome to the hotel's network</html>", "no JSON"),
        (404, "<html>Nothing here</html>", "SUPABASE_URL"),
    ],
)
async def test_a_project_that_answers_with_a_page_is_told_and_waited_for(
    stack: Any, seen: list[Any], caplog: pytest.LogCaptureFixture, status: int, page: str, sentence: str
) -> None:
    def is_told(what: str) -> bool:
        told = [each.getMessage() for each in caplog.records if each.name == "runtime.worker.dispatcher"]
        return any(what in each for each in told)

    async with running(counting(seen), settings_of(stack)) as worker, connected(stack.db_url) as connection:
        await until(lambda: settled(connection, "recovering.note"))
        await anyio.to_thread.run_sync(stack.kill_gateway)
        # A cause that follows upon another one in the same outage is news as well.
        await until(lambda: is_told("the store is away"))
        with answering(stack.gateway.port, status, page):
            await until(lambda: is_told(sentence))
            await insert(connection, 1)
        assert page not in caplog.text
        await anyio.to_thread.run_sync(stack.start_gateway)
        await until(lambda: seen == [1])
        if status != 404:
            # After a 404 the socket is tried once a minute: somebody must mend the URL.
            await until(lambda: worker.state == "live")


@asynccontextmanager
async def without_publication(connection: Any) -> AsyncIterator[None]:
    await connection.execute("drop publication supabase_realtime")
    yield
    await connection.execute("create publication supabase_realtime")
    await connection.execute("alter publication supabase_realtime owner to postgres")
    await connection.execute("select public.stream_install_realtime()")


async def test_a_missing_publication_is_told_and_polled_over_until_it_is_back(
    stack: Any, seen: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(stack, broadcast=False, nonce_seconds=2, nonce_deadline_seconds=1)
    async with running(counting(seen), settings) as worker, connected(stack.admin_url) as connection:
        await until(lambda: settled(connection, "recovering.note"))
        async with without_publication(connection):
            await until(lambda: worker.state == "polling")
            await insert(connection, 1)
            await until(lambda: seen == [1])
            await until(lambda: "runtime doctor" in caplog.text)
        await until(lambda: worker.state == "live", seconds=60)


async def test_g7_without_a_partition_of_the_day_postgres_changes_goes_on_alone_and_broadcast_comes_back(
    stack: Any, seen: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.wakeups.realtime.Timings", partial(Timings, mend=2.0))
    async with connected(stack.admin_url) as connection:
        make = "realtime.make_message_partitions"
        definition = await connection.fetchval("select pg_get_functiondef($1::text::regproc)", make)
        partitions = await connection.fetch(
            "select inhrelid::regclass::text as name from pg_inherits where inhparent = 'realtime.messages'::regclass"
        )
        await connection.execute(f"create or replace function {make}() returns void language sql as ''")
        for row in partitions:
            await connection.execute(f"drop table {row['name']}")
        agent = Agent("partly")

        @agent.on("partly.task")
        async def note(value: int) -> None:
            seen.append(value)

        settings = settings_of(stack, sweep_seconds=600)
        async with running([agent], settings) as worker, connect(settings) as stream:
            assert worker.live_paths == {"postgres_changes"}
            await until(lambda: settled(connection, "partly.note"))
            await stream.send("partly.task", 1)
            await until(lambda: seen == [1])
            assert "Going on by postgres_changes alone" in caplog.text
            await connection.execute(definition)
            await connection.execute(f"select {make}()")
            await until(lambda: worker.live_paths == {"broadcast", "postgres_changes"})
            await stream.send("partly.task", 2)
            await until(lambda: seen == [1, 2])
