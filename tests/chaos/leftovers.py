"""Who clears away what a campaign leaves? It does so itself, and where it was killed, the next one does."""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.chaos.ledger import FOLDER as LEDGER

PREFIX = "agent-runtime-chaos-"
DISK = "disk"
_FAKED = "faked"
_MEMORY = Path("/dev/shm")
_GONE_SECONDS = 60
_LOOK_SECONDS = 0.05


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder of this campaign's own, cleared in the end; what campaigns that were killed have left goes first.

    The lock on the folder tells that its campaign lives: the system lets go of it with the process, however that ends.
    """
    clear_the_dead()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        with suppress(FileNotFoundError):
            lock = _lock(folder, fcntl.LOCK_EX)
            # Another campaign that begins may have taken it for a dead one's before it was locked.
            if folder.exists():
                break
            os.close(lock)
    try:
        # PostgreSQL may run as another account.
        folder.chmod(0o755)
        (folder / _FAKED).mkdir()
        yield folder
    finally:
        clear(folder)
        os.close(lock)


def clear_the_dead() -> None:
    """Clear the folder of every campaign that ended before it could do so."""
    for folder in Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*"):
        # Another account's, another one's who clears, or that of a campaign that lives.
        with suppress(OSError):
            lock = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            clear(folder)
            os.close(lock)


def clear(folder: Path) -> None:
    """End the processes of the campaign in this folder, unmount its disk, and delete its files here and in memory."""
    _end_processes(folder)
    disk = folder / DISK
    _wait(
        lambda: not disk.is_mount() or subprocess.run(["umount", disk], capture_output=True).returncode == 0
    )
    for each in (folder / _FAKED).glob("*"):
        for name in (f"faketime_shm_{each.name}", f"sem.faketime_sem_{each.name}"):
            (_MEMORY / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def note_faked(folder: Path, pid: int) -> None:
    """Remember a process whose clock is wrong: libfaketime never deletes its two files, which bear its number."""
    (folder / _FAKED / str(pid)).touch()


def _lock(folder: Path, how: int) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _end_processes(folder: Path) -> None:
    """End them, again and again: a supervisor may start another one just before it is killed."""
    asked: set[int] = set()

    def are_gone() -> bool:
        family = [each for each in psutil.process_iter() if belongs(each, folder)]
        for process in family:
            with suppress(psutil.Error):
                if "postgres" not in process.name():
                    process.kill()
                elif process.pid not in asked:
                    # It frees its shared memory on this, and takes its time.
                    process.send_signal(signal.SIGQUIT)
                    asked.add(process.pid)
        return not family

    _wait(are_gone)


def belongs(process: psutil.Process, folder: Path) -> bool:
    """Whether it runs for the campaign in this folder: a server, a gateway or a worker."""
    with suppress(psutil.Error):
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if str(folder) in " ".join(process.cmdline()):
            return True
        return process.environ().get(LEDGER) == str(folder / "ledger")
    return False


def _wait(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _GONE_SECONDS
    while not is_done() and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
