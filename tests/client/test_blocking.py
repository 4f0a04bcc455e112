"""The stream without async: in a script, in a running loop, from threads, after a fork."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from inspect import iscoroutinefunction
from typing import Any

import pytest

import runtime
from runtime.client.blocking import BlockingStream, connect_blocking
from runtime.client.stream import Stream
from runtime.errors import InvalidKey, RuntimeFault, SettingsError, WrongCall
from runtime.settings import Settings


@pytest.fixture
def settings(database: str) -> Settings:
    return Settings.load(supabase_url=None, supabase_key=None, database_url=database)


@pytest.fixture
def stream(settings: Settings) -> Iterator[BlockingStream]:
    with connect_blocking(settings) as stream:
        yield stream


def test_what_is_sent_is_read_heard_and_counted(stream: BlockingStream) -> None:
    sent = stream.send("news.a", 1)
    stream.send("news.b", 2, correlation_id=str(sent.id))
    first = stream.get(sent.id)
    assert first is not None
    assert [each.value for each in stream.read("news.*", correlation_id=first.correlation)] == [1, 2]
    assert [each.value for each in stream.listen("news.*", since=0, timeout=0.5)] == [1, 2]
    for message in stream.listen("news.*", since=0):
        assert message.value == 1
        break
    assert stream.stats()["subscriptions"] == []
    assert stream.run(lambda each: each.views.flow())["written"] != []
    with pytest.raises(InvalidKey):
        stream.send("not a key")


@pytest.mark.parametrize(
    ("method", "option", "meant"),
    [
        ("send", "prioriti", "priority"),
        ("ask", "timout", "timeout"),
        ("read", "limitt", "limit"),
        ("listen", "broadcast", "broadcasts"),
    ],
)
def test_an_option_that_does_not_exist_is_refused_with_the_line_and_the_nearest_one(
    stream: BlockingStream, method: str, option: str, meant: str
) -> None:
    with pytest.raises(
        WrongCall, match=rf"{__file__}:\d+: .*{method}\(…\) takes no {option}=…; did you mean {meant}\?"
    ):
        getattr(stream, method)("a.b", **{option: 3})
    assert stream.read("a.b") == []


def test_the_methods_of_a_stream_are_async_to_whoever_inspects_them_and_refuse_options_in_tasks_too() -> None:
    methods = ("send", "send_all", "ask", "ask_all", "get", "read", "latest", "latest_of_each", "stats")
    assert all(iscoroutinefunction(getattr(Stream, name)) for name in (*methods, "flush_broadcasts"))
    assert not any(iscoroutinefunction(getattr(BlockingStream, name)) for name in methods)
    assert iscoroutinefunction(runtime.drain)

    async def in_a_task() -> None:
        await asyncio.create_task(runtime.drain([], budgt=1))  # type: ignore[call-arg]

    # Nobody knows who made the task: no line is better than one of asyncio's.
    with pytest.raises(WrongCall, match=r"^drain\(…\) takes no budgt=…; did you mean budget\?"):
        asyncio.run(in_a_task())


def test_broadcasts_are_sent_and_heard(stream: BlockingStream) -> None:
    heard: list[Any] = []

    def hear() -> None:
        heard.extend(each.value for each in [next(stream.listen("chat.*", broadcasts=True))])

    ear = threading.Thread(target=hear)
    ear.start()
    while ear.is_alive():
        stream.broadcast("chat.tokens", "word")
        ear.join(0.05)
    assert heard == ["word"]


@pytest.mark.anyio
async def test_it_works_within_a_running_loop_as_a_notebook_has_one(settings: Settings) -> None:
    with runtime.connect_blocking(settings) as stream:
        assert stream.send("news.a").id == 1


def test_closing_ends_what_other_threads_wait_for_and_the_thread(settings: Settings) -> None:
    stream, heard, ended = connect_blocking(settings), threading.Event(), []

    def wait() -> None:
        messages = iter(stream.listen("news.*", since=0))
        next(messages)
        heard.set()
        # Between two messages the thread may find the stream closed already.
        with pytest.raises(RuntimeFault, match=r"closed while|is closed"):
            next(messages)
        ended.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    stream.send("news.first")
    assert heard.wait(60)
    stream.close()
    stream.close()
    waiting.join(60)
    assert ended == [True]
    assert [each.name for each in threading.enumerate() if each.name == "runtime-stream"] == []
    with pytest.raises(RuntimeFault, match="is closed"):
        stream.read()


def test_a_stream_from_before_a_fork_says_so(stream: BlockingStream) -> None:
    child = os.fork()
    if child == 0:
        try:
            stream.read()
        except RuntimeFault as error:
            stream.close()
            os._exit(7 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_nowhere_is_told_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="where the stream is"):
        connect_blocking(Settings.load(supabase_url=None, supabase_key=None, database_url=None))
    assert [each.name for each in threading.enumerate() if each.name == "runtime-stream"] == []


def test_ctrl_c_ends_a_script_that_listens_and_one_that_never_closes_ends_too(database: str) -> None:
    script = (
        "import runtime, signal\n"
        # A runner in the background has it ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "stream = runtime.connect_blocking()\n"
        "print(stream.send('a.b').id, flush=True)\n"
        "for message in stream.listen('a.b', since=0):\n"
        "    print('heard', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "DATABASE_URL": database, "SUPABASE_URL": ""},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["1\n", "heard\n"]
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert complaint.rstrip().endswith("KeyboardInterrupt")
