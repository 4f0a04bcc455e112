"""A forked child has nothing of its worker, in whichever moment a signal comes or a thread writes."""

import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
]

SIGNALLED = """
import os, signal, sys, threading

def strike():
    # The hook runs before those of the runtime: nothing is settled in the child.
    os.kill(os.getpid(), signal.SIGTERM)

os.register_at_fork(after_in_child=strike)

import anyio
from runtime.worker.signals import heeded

heard = []

def fork():
    pid = os.fork()
    if pid == 0:
        signal.pause()
    return os.waitpid(pid, 0)[1]

async def main():
    with heeded(heard.append, heard.append, drain_seconds=60):
        ended = [fork(), await anyio.to_thread.run_sync(fork)]
        assert ended == [signal.SIGTERM, signal.SIGTERM], ended
        assert heard == [], heard
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()

anyio.run(main)
"""

WRITING = """
import os, sys, threading
from runtime.worker.execution import fork
from runtime.cli import streams

reading, writing = os.pipe()
os.dup2(writing, 1)
streams.guard()

def write():
    while True:
        print("x" * 1_000_000, flush=True)

threading.Thread(target=write, daemon=True).start()
# The pipe is full, and the thread waits in the midst of writing.
import select
while select.select((), (1,), (), 0)[1]:
    pass
pid = os.fork()
if pid == 0:
    fork.leave(SystemExit(3))
ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
os._exit(0 if ended == 3 else 1)
"""


def test_h2_a_signal_that_reaches_a_child_at_once_ends_the_child_and_not_its_worker() -> None:
    ended = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_h2_a_child_ends_though_a_thread_of_its_worker_was_writing_when_it_was_forked() -> None:
    ended = subprocess.run([sys.executable, "-c", WRITING], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
