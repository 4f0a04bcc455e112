"""The process that cleans up when the owner of a temporary stack is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_MODULE: Final = "runtime.local.cleanup"
_PROGRAMS: Final = ("initdb", "pg_ctl", "postgres", "runtime.local.gateway")
_GONE_SECONDS: Final = 30
_LOOK_SECONDS: Final = 0.05


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """End the stack in this folder if this process ends during the block, even by SIGKILL.

    A second process waits on a pipe; the system closes our end of it even after SIGKILL.
    """
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, "-P", "-m", _MODULE, str(folder)],
        cwd="/" if os.name == "posix" else None,
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C in the terminal must not end it.
        start_new_session=True,
    ):
        yield


def main() -> None:
    """Wait for the owner's end, then end the stack and delete its folder."""
    folder = Path(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    # Loaded when needed: a second process that waits should cost little.
    from runtime.errors import LocalStackError
    from runtime.local.stack import LocalStack

    deadline = time.monotonic() + _GONE_SECONDS
    while True:
        with suppress(LocalStackError):
            LocalStack(folder).delete()
        # The owner may have died while it was starting more processes.
        if not _end_processes(folder) or time.monotonic() > deadline:
            break
        time.sleep(_LOOK_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)


def _end_processes(folder: Path) -> int:
    """End the processes of the stack in this folder that a pid file does not name; returns how many there were."""
    import psutil

    found = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if str(folder) in command and any(program in command for program in _PROGRAMS):
                found += 1
                # PostgreSQL frees its shared memory on it.
                process.send_signal(signal.SIGTERM if os.name != "posix" else signal.SIGQUIT)
    return found


if __name__ == "__main__":
    main()
