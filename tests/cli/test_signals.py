"""Do commands end when they are told to, whatever agents do?"""

import json
import os
import signal
import socket
import subprocess
import threading
import time

import pytest

from runtime.worker.signals import heeded
from tests.cli.shell import SECONDS, Shell
from tests.cli.test_run import wait_for

pytestmark = pytest.mark.timeout(300)

AGENTS = """
import multiprocessing, os, pathlib, subprocess, sys, threading, time
import anyio
from runtime import Agent, Context
agent = Agent("odd")
folder = pathlib.Path(__file__).parent

def begun():
    (folder / "begun").touch()

@agent.on("odd.blocks")
async def blocks(value: object) -> None:
    begun()
    time.sleep(3600)

@agent.on("odd.computes")
async def computes(value: object) -> None:
    begun()
    while True:
        pass

@agent.on("odd.endless")
def endless(value: object) -> None:
    begun()
    while True:
        time.sleep(1)

@agent.on("odd.swallows")
async def swallows(value: object) -> None:
    begun()
    while True:
        try:
            await anyio.sleep(3600)
        except BaseException:
            pass

@agent.on("odd.threads")
async def threads(value: object) -> None:
    threading.Thread(target=time.sleep, args=(3600,)).start()
    begun()
    await anyio.sleep(3600)

def sleep():
    time.sleep(3600)

@agent.on("odd.forks")
async def forks(value: object, context: Context) -> None:
    for start in ("fork", "spawn"):
        child = multiprocessing.get_context(start).Process(target=sleep)
        child.start()
        child.terminate()
        child.join()
        assert child.exitcode == -15, child.exitcode
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    child.terminate()
    assert child.wait() == -15
    context.emit("odd.done", 1)

@agent.on("odd.exits")
async def exits(value: object) -> None:
    raise KeyboardInterrupt
"""


def run(shell: Shell, key: str, *options: str, **environment: str) -> "subprocess.Popen[str]":
    """A worker with one handler at work."""
    (shell.folder / "odd.py").write_text(AGENTS)
    process = shell.start("run", "odd.py", *options, PYTHONUNBUFFERED="1", **environment)
    wait_for(process.stderr, "live")
    shell.run("send", key, "1")
    while not (shell.folder / "begun").exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("blocks", signal.SIGTERM),
        ("computes", signal.SIGINT),
        ("endless", signal.SIGTERM),
        ("swallows", signal.SIGINT),
        ("threads", signal.SIGTERM),
    ],
)
def test_h4_the_second_signal_ends_it_whatever_a_handler_does(
    shell: Shell, what: str, number: signal.Signals
) -> None:
    process = run(shell, f"odd.{what}")
    process.send_signal(number)
    wait_for(process.stderr, "Once more to quit at once")
    assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + number


@pytest.mark.anyio
async def test_h4_a_default_timeout_of_sockets_does_not_end_the_thread_that_hears_signals() -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.01)
    try:
        with heeded(lambda _: None, lambda _: None, drain_seconds=1):
            [hearing] = [each for each in threading.enumerate() if each.name == "signals"]
            hearing.join(0.2)
            assert hearing.is_alive()
    finally:
        socket.setdefaulttimeout(before)


def test_h4_several_processes_end_at_the_second_signal_too(shell: Shell) -> None:
    process = run(shell, "odd.blocks", "--processes", "2")
    process.send_signal(signal.SIGTERM)
    wait_for(process.stderr, "Once more to quit at once")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_h2_a_child_s_signal_is_not_taken_for_the_worker_s(shell: Shell) -> None:
    (shell.folder / "odd.py").write_text(AGENTS)
    process = shell.start("run", "odd.py", "--json", PYTHONUNBUFFERED="1")
    wait_for(process.stderr, "live")
    shell.run("send", "odd.forks", "1")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["outcome"] == "done"
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0


def test_h1_a_keyboard_interrupt_of_a_handler_is_the_handlers(shell: Shell) -> None:
    (shell.folder / "odd.py").write_text(AGENTS)
    process = shell.start("run", "odd.py", "--json", PYTHONUNBUFFERED="1")
    wait_for(process.stderr, "live")
    shell.run("send", "odd.exits", "1")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["error"] == "KeyboardInterrupt"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0
