"""The stack as a whole: one call starts it, and it comes back whatever died."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest

from runtime.connection.local_stack import LocalStackRecord
from runtime.errors import LocalStackError
from runtime.local import keys
from runtime.local.bootstrap import connected
from runtime.local.ports import free_port
from runtime.local.stack import LocalStack
from runtime.local.state import StackState


def select(stack: LocalStack) -> Any:
    """The messages, as a client with the secret key reads them."""
    answer = httpx.get(
        f"{stack.api_url}/rest/v1/consciousness_stream",
        params={"select": "key,value"},
        headers={"apikey": stack.service_role_key, "Authorization": f"Bearer {stack.service_role_key}"},
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def execute(url: str, statement: str) -> None:
    async def run() -> None:
        async with connected(url) as connection:
            await connection.execute(statement)

    anyio.run(run)


@pytest.fixture(scope="module")
def shared_stack() -> Iterator[LocalStack]:
    with LocalStack.temporary() as stack:
        yield stack


@pytest.fixture
def running(shared_stack: LocalStack) -> LocalStack:
    """A running stack; tests may leave it stopped, but startable."""
    shared_stack.start()
    return shared_stack


def test_serves_a_migrated_database_and_starts_only_once(running: LocalStack) -> None:
    assert running.start() is False
    execute(running.db_url, "insert into consciousness_stream (key, value) values ('a.b', '1')")
    assert {"key": "a.b", "value": 1} in select(running)
    found = running.status()
    assert found.is_running
    assert found.stopped == []
    assert dict(found.values) == {
        "API_URL": running.api_url,
        "REST_URL": f"{running.api_url}/rest/v1",
        "DB_URL": running.db_url,
        "JWKS_URL": f"{found.api_url}/auth/v1/.well-known/jwks.json",
        "JWT_SECRET": keys.JWT_SECRET,
        "ANON_KEY": keys.ANON_KEY,
        "SERVICE_ROLE_KEY": keys.SERVICE_ROLE_KEY,
        "PUBLISHABLE_KEY": keys.PUBLISHABLE_KEY,
        "SECRET_KEY": keys.SECRET_KEY,
    }


def test_a_stack_runs_for_commands_only_while_its_own_gateway_does(
    running: LocalStack, tmp_path: Path
) -> None:
    def is_running(folder: Path) -> bool:
        record = LocalStackRecord.load(folder)
        assert record is not None
        return record.is_running

    assert is_running(running.folder)
    record = LocalStackRecord.load(running.folder)
    assert record is not None
    assert (record.api_url, record.secret_key) == (running.api_url, running.secret_key)
    assert LocalStackRecord.load(tmp_path) is None
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        StackState(api_port=theirs.getsockname()[1]).save(tmp_path)
        assert not is_running(tmp_path)
        (tmp_path / "gateway.pid").write_text(str(2**22 + 1))
        assert not is_running(tmp_path)
        if sys.platform == "linux":
            # Another program got the pid of a gateway that was killed, and a third one its port.
            (tmp_path / "gateway.pid").write_text(str(os.getpid()))
            assert not is_running(tmp_path)


def test_stops_and_comes_back_with_its_data_and_ports(running: LocalStack) -> None:
    execute(running.db_url, "insert into consciousness_stream (key, value) values ('kept.by', '2')")
    assert running.stop() is True
    assert running.stop() is False
    assert running.status().stopped == ["database", "gateway"]
    # Another process knows nothing but the folder.
    again = LocalStack(running.folder)
    assert again.start() is True
    assert again.api_url == running.api_url
    assert {"key": "kept.by", "value": 2} in select(again)


@pytest.mark.parametrize("victims", [{"database"}, {"gateway"}, {"database", "gateway"}])
def test_comes_back_after_a_kill(running: LocalStack, victims: set[str]) -> None:
    execute(running.db_url, "insert into consciousness_stream (key, value) values ('survives.it', '3')")
    for name, pid in running.pids().items():
        if name in victims:
            os.kill(pid, signal.SIGKILL)
            psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=60)
    assert set(running.status().stopped) == victims
    assert running.start() is True
    assert running.status().is_running
    assert {"key": "survives.it", "value": 3} in select(running)


def test_two_run_side_by_side(running: LocalStack) -> None:
    with LocalStack.temporary() as second:
        second.start()
        execute(second.db_url, "insert into consciousness_stream (key, value) values ('only.here', '4')")
        assert {"key": "only.here", "value": 4} in select(second)
        assert {"key": "only.here", "value": 4} not in select(running)
        second.stop()
        assert running.status().is_running
    assert not second.folder.exists()


def test_other_ports_are_refused_while_it_runs(running: LocalStack) -> None:
    with pytest.raises(
        LocalStackError, match=r"runs already, with another --port and --db-port\. Stop it first"
    ):
        LocalStack(running.folder, api_port=free_port(), db_port=free_port()).start()
    assert LocalStack(running.folder, api_port=0).start() is False


def test_a_port_that_is_taken_is_told_and_another_one_is_taken_and_remembered(
    running: LocalStack, caplog: pytest.LogCaptureFixture
) -> None:
    running.stop()
    port = int(running.api_url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        named = LocalStack(running.folder, api_port=port)
        with pytest.raises(LocalStackError, match=rf"Port {port} .* taken, by another program.*--port"):
            named.start()
        assert running.status().stopped == ["database", "gateway"]
        # A port that was refused is not that of the next start.
        with (
            socket.create_server(("127.0.0.1", 0)) as theirs,
            pytest.raises(LocalStackError, match="taken, by another program"),
        ):
            LocalStack(running.folder, api_port=theirs.getsockname()[1]).start()
        assert LocalStack(running.folder).api_url == running.api_url
        again = LocalStack(running.folder)
        assert again.start() is True
        other = int(again.api_url.rpartition(":")[2])
        assert other != port
        assert any(f"port {port} is taken, by another program" in message for message in caplog.messages)
    again.stop()
    assert LocalStack(running.folder).api_url == f"http://127.0.0.1:{other}"


def test_reset_begins_anew(running: LocalStack) -> None:
    execute(running.db_url, "insert into consciousness_stream (key, value) values ('to.go', '5')")
    running.reset()
    assert running.status().is_running
    assert select(running) == []


def test_the_database_alone_can_be_started(running: LocalStack) -> None:
    running.stop()
    assert running.start(gateway=False) is True
    assert running.status().stopped == ["gateway"]
    assert running.start(gateway=False) is False


def test_uses_a_running_postgres_and_leaves_it_running(cluster: Any, tmp_path: Path) -> None:
    cluster.execute("create database not_ours")
    url = cluster.url("not_ours", user=keys.SUPERUSER)
    stack = LocalStack(tmp_path, api_port=0, database_url=url)
    try:
        assert stack.start() is True
        assert stack.start() is False
        assert stack.db_url == url
        execute(url, "insert into consciousness_stream (key, value) values ('a.b', '6')")
        assert select(stack) == [{"key": "a.b", "value": 6}]
        assert not (tmp_path / "postgres").exists()
        with pytest.raises(LocalStackError, match="not its own"):
            stack.reset()
        assert LocalStack(tmp_path).status().is_running
        assert LocalStack(tmp_path).stop() is True
        execute(url, "select 1")
    finally:
        stack.stop()
        cluster.drop_database("not_ours")


def test_a_postgres_that_cannot_be_used_is_told_why(cluster: Any, tmp_path: Path) -> None:
    stack = LocalStack(tmp_path, api_port=0, database_url=cluster.url("postgres", user="postgres"))
    with pytest.raises(LocalStackError, match="superuser"):
        stack.start()
    stack = LocalStack(
        tmp_path, api_port=0, database_url=f"postgresql://x:secret@127.0.0.1:{free_port()}/postgres"
    )
    with pytest.raises(LocalStackError, match="cannot be reached") as caught:
        stack.start()
    assert "secret" not in str(caught.value)
    assert (tmp_path / "stack.json").stat().st_mode & 0o077 == 0


def test_a_folder_never_used_has_nothing_to_stop(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path / "none")
    assert stack.stop() is False
    stack.delete()
    assert stack.status().stopped == ["database", "gateway"]
    assert stack.db_url == "postgresql://postgres:postgres@127.0.0.1:54322/postgres"
    assert stack.api_url == "http://127.0.0.1:54321"
    assert not (tmp_path / "none").exists()
