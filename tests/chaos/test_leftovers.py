"""Does a campaign leave nothing behind, however it ends? No process, no mount, no file in memory."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.chaos import leftovers
from tests.chaos.stage import ROOT
from tests.chaos.strikes import FAKETIME

CLOCK = "clock off by an hour"
START_SECONDS = 60


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's campaigns make their folders, apart from those of others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        # PostgreSQL may run as another account.
        folder.chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield folder
        leftovers.clear_the_dead()


@contextmanager
def playing(folder: Path, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A campaign of one fault over polling, as a process of its own."""
    command = ["--setting", "polling/direct", "--fault", CLOCK, "--huge-rows", "0", *options]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", *command],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as campaign:
        try:
            yield campaign
        finally:
            campaign.kill()


def descends(process: psutil.Process, folder: Path) -> bool:
    """Whether a campaign of this folder is among those that started it: all of them hand its TMPDIR on."""
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("TMPDIR") == str(folder)
    return False


def left(folder: Path, faked: set[str]) -> list[str]:
    """What there is of the campaigns in this folder."""
    processes = [
        str(each.pid)
        for each in psutil.process_iter()
        if descends(each, folder) or any(leftovers.belongs(each, own) for own in folder.glob("*"))
    ]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(folder) in line]
    memory = [
        str(each) for each in Path("/dev/shm").glob("*faketime*") if each.name.rpartition("_")[2] in faked
    ]
    return [*processes, *mounts, *memory, *(str(each) for each in folder.iterdir())]


def wait_faked(folder: Path) -> set[str]:
    """Wait until a worker with a wrong clock runs, and has made its files."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        faked = {each.name for each in folder.glob("*/faked/*")}
        if any(Path(f"/dev/shm/faketime_shm_{pid}").exists() for pid in faked):
            return faked
        time.sleep(0.05)
    raise AssertionError("no worker with a wrong clock was started")


@pytest.mark.skipif(not any(map(os.path.exists, FAKETIME)), reason="libfaketime is not installed")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_campaign_that_is_ended_in_the_middle_leaves_nothing_at_the_latest_when_the_next_begins(
    how: signal.Signals, folder: Path
) -> None:
    with playing(folder, "--seconds", "60") as campaign:
        faked = wait_faked(folder)
        assert left(folder, faked)
        campaign.send_signal(how)
        assert campaign.wait(60) in (-how, 128 + how)
    if how == signal.SIGKILL:
        assert left(folder, faked)
        leftovers.clear_the_dead()
    assert left(folder, faked) == []


@pytest.mark.timeout(180)
def test_a_campaign_that_lives_is_not_taken_for_a_dead_one(folder: Path) -> None:
    with leftovers.own_folder() as own:
        leftovers.clear_the_dead()
        with leftovers.own_folder() as other:
            assert own.is_dir()
            assert other.is_dir()
    assert list(folder.iterdir()) == []
