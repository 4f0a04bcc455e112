"""Does the supervisor start what died again, give up on what dies again and again, and leave nobody behind?"""

import logging
import os
import signal
import sys
import textwrap
from pathlib import Path
from random import Random

import anyio
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.backoff import Restarts
from runtime.worker.supervisor import Child, Supervisor
from tests.integration.conftest import until

pytestmark = pytest.mark.anyio

# Notes its life in a folder, drains when told to, and ends when its supervisor is gone.
STEADY = """
    import os, pathlib, signal, sys
    folder = pathlib.Path(sys.argv[1])
    def drain(*_):
        (folder / f"{os.getpid()}.drained").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, drain)
    (folder / f"{os.getpid()}.up").touch()
    sys.stdin.buffer.read()
    (folder / f"{os.getpid()}.left").touch()
"""
STUBBORN = STEADY.replace("sys.exit(0)", "pass").replace(
    "sys.stdin.buffer.read()", "\n    while True: signal.pause()"
)


def child(name: str, script: str, folder: Path, *, is_quarantine: bool = False) -> Child:
    """A child that runs a script."""
    return Child(name, [sys.executable, "-c", textwrap.dedent(script), str(folder)], is_quarantine)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restarts without a wait."""
    monkeypatch.setattr("runtime.backoff._FIRST_SECONDS", 0.01)
    monkeypatch.setattr("runtime.backoff._CAP_SECONDS", 0.02)
    monkeypatch.setattr("runtime.worker.supervisor._GRACE_SECONDS", 0.2)


def noted(folder: Path, what: str) -> list[int]:
    """The processes that have noted this of themselves."""
    return sorted(int(path.stem) for path in folder.glob(f"*.{what}"))


def ups(folder: Path) -> list[int]:
    """The processes that have come up so far."""
    return noted(folder, "up")


@given(st.lists(st.floats(0, 29), min_size=1, max_size=4), st.integers(0, 2**32))
def test_a_few_early_deaths_are_waited_for_longer_and_longer(lives: list[float], seed: int) -> None:
    restarts = Restarts(random=Random(seed))
    for number, lived in enumerate(lives):
        wait = restarts.died(lived)
        assert wait is not None
        assert 0 <= wait <= 0.5 * 2**number


def test_five_early_deaths_in_a_row_are_a_crash_loop() -> None:
    restarts = Restarts()
    assert None not in [restarts.died(1) for _ in range(4)]
    # A life of some length is no part of the loop.
    assert restarts.died(31) is not None
    assert None not in [restarts.died(1) for _ in range(3)]
    assert restarts.died(1) is None


def test_a_quarantine_process_is_never_given_up() -> None:
    restarts = Restarts(is_patient=True)
    waits = [restarts.died(0) for _ in range(100)]
    assert all(wait is not None and wait <= 30 for wait in waits)


async def test_g6_a_killed_process_is_started_again_and_the_others_do_not_notice(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor([child("one", STEADY, tmp_path), child("two", STEADY, tmp_path)], drain_seconds=5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run)
        await until(lambda: len(ups(tmp_path)) == 2)
        victim, other = ups(tmp_path)
        os.kill(victim, signal.SIGKILL)
        await until(lambda: len(ups(tmp_path)) == 3)
        assert psutil.pid_exists(other)
        supervisor.stop()
    assert "was killed by SIGKILL" in caplog.text
    assert noted(tmp_path, "drained") == [number for number in ups(tmp_path) if number != victim]
    assert supervisor.given_up == []


async def test_g6_a_crash_loop_is_given_up_with_a_clear_message_and_the_others_go_on(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor(
        [child("bad", "import sys; sys.exit(3)", tmp_path), child("good", STEADY, tmp_path)], drain_seconds=5
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run)
        await until(lambda: supervisor.given_up == ["bad"] and len(ups(tmp_path)) == 1)
        (good,) = ups(tmp_path)
        assert psutil.pid_exists(good)
        supervisor.stop()
    (said,) = (record.message for record in caplog.records if record.levelno == logging.ERROR)
    assert "process bad ended with exit code 3" in said
    assert "5 times in a row: it is not started again. The others go on" in said


async def test_when_only_the_quarantine_process_is_left_there_is_nothing_to_wait_for(
    tmp_path: Path, quick: None
) -> None:
    supervisor = Supervisor(
        [
            child("bad", "raise SystemExit(1)", tmp_path),
            child("quarantine", STEADY, tmp_path, is_quarantine=True),
        ],
        drain_seconds=5,
    )
    with anyio.fail_after(60):
        await supervisor.run()
    assert supervisor.given_up == ["bad"]


async def test_g9_what_does_not_end_in_time_is_killed(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor([child("stubborn", STUBBORN, tmp_path)], drain_seconds=0.2)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervisor.run)
            await until(lambda: len(ups(tmp_path)) == 1)
            supervisor.stop()
    assert "did not end in time and is killed" in caplog.text
    assert not psutil.pid_exists(ups(tmp_path)[0])


async def test_the_children_of_a_killed_supervisor_end_by_themselves(tmp_path: Path) -> None:
    script = """
import anyio, sys
from runtime.worker.supervisor import Child, Supervisor
anyio.run(Supervisor([Child("one", [sys.executable, *sys.argv[1:]])], drain_seconds=5).run)
"""
    command = [sys.executable, "-c", script, "-c", textwrap.dedent(STEADY), str(tmp_path)]
    async with await anyio.open_process(command) as parent:
        await until(lambda: len(ups(tmp_path)) == 1)
        parent.kill()
    await until(lambda: len(noted(tmp_path, "left")) == 1)


async def test_a_second_signal_does_not_wait_for_a_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.worker.supervisor._HURRY_SECONDS", 0.1)
    supervisor = Supervisor([child("stubborn", STUBBORN, tmp_path)], drain_seconds=3600)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervisor.run)
            await until(lambda: len(ups(tmp_path)) == 1)
            supervisor.stop()
            await until(lambda: len(noted(tmp_path, "drained")) == 1)
            supervisor.hurry()
    assert not psutil.pid_exists(ups(tmp_path)[0])
