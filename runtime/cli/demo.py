"""`runtime demo`: the newsroom over a stack of its own, seen from outside, ended by itself."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from types import FrameType
from typing import Annotated, Any, get_args

import anyio
import typer
from pydantic import SecretStr
from rich.table import Table
from rich.text import Text

from runtime.agent.agent import Agent
from runtime.agent.discovery import discover
from runtime.cli import newsroom
from runtime.cli.options import Json
from runtime.cli.output import err, out, plain, print_json, print_line, start_logs
from runtime.cli.run import attempt_json
from runtime.client.stream import Stream, connect
from runtime.errors import DiscoveryError, LocalStackError
from runtime.local.stack import LocalStack
from runtime.message import Draft
from runtime.settings import Settings
from runtime.wakeups import Path as WakeupPath
from runtime.worker.worker import Attempt, Worker

_PINGS = 30
_PING_PAUSE_SECONDS = 0.15
_QUIET_SECONDS = 0.3
_DEADLINE_SECONDS = 120
_PING = "demo.ping"


def demo(
    agents: Annotated[
        Path | None,
        typer.Option(help="The newsroom's folder.", show_default="the one that ships", file_okay=False),
    ] = None,
    notes: Annotated[
        Path | None,
        typer.Option(
            help="A folder of Markdown notes.", exists=True, file_okay=False, show_default="those that ship"
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the site is written.", file_okay=False)] = Path("site"),
    as_json: Json = False,
) -> None:
    """Watch four agents turn notes into a site over a real PostgreSQL and a real Realtime WebSocket.

    Sets up a stack of its own on free ports, and leaves nothing behind but the site.
    """
    folder = agents or Path(newsroom.__file__).resolve().parent
    if not (folder / "publisher.py").is_file():
        raise DiscoveryError(
            f"There is no newsroom in {folder}: name the folder of one, or leave --agents out for the one that ships."
        )
    notes = (notes or folder / "notes").resolve()
    paths = sorted(path.relative_to(notes).as_posix() for path in notes.rglob("*.md"))
    if not paths:
        raise DiscoveryError(f"There are no Markdown notes (*.md) in {notes}.")
    # The newsroom reads its two folders from the environment.
    os.environ |= {"NEWSROOM_NOTES": str(notes), "NEWSROOM_OUTPUT": str(output.resolve())}
    start_logs("warning", as_json=as_json or Settings.load().log_format == "json")
    began = time.monotonic()
    with _ended_by_sigterm(), LocalStack.temporary() as stack:
        with err.status("Starting PostgreSQL and the gateway …"):
            stack.start()
        show = Show(as_json=as_json)
        show.say(
            f"PostgreSQL and a gateway are up after {time.monotonic() - began:.1f} s, at {stack.api_url}."
        )
        settings = Settings.load(
            supabase_url=stack.api_url, supabase_key=SecretStr(stack.service_role_key), database_url=None
        )
        result = anyio.run(_play, settings, discover([folder]), paths, show)
    result["seconds"] = round(time.monotonic() - began, 1)
    show.end(result, output)
    if not result["is_complete"]:
        raise typer.Exit(1)


@dataclass
class Show:
    """The lines of the demo, and the attempts for the summary."""

    as_json: bool
    attempts: list[Attempt] = field(default_factory=list)
    pings: list[Attempt] = field(default_factory=list)
    suspended: set[int] = field(default_factory=set)
    changed: anyio.Event = field(default_factory=anyio.Event)
    exact_keys: frozenset[str] = frozenset()
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print a sentence on stderr."""
        err.print(text, style="dim")

    def __call__(self, attempt: Attempt) -> None:
        """Observe one attempt."""
        if attempt.delivery.message.key == _PING:
            if attempt.handler.agent == "demo":
                self.pings.append(attempt)
        else:
            self.attempts.append(attempt)
            if attempt.report.outcome == "suspended":
                self.suspended.add(attempt.delivery.message.id)
            self._print(attempt)
        self.changed.set()
        self.changed = anyio.Event()

    def _print(self, attempt: Attempt) -> None:
        message, report = attempt.delivery.message, attempt.report
        if self.as_json:
            print_json({**attempt_json(attempt), "latency_seconds": latency(attempt)})
            return
        # The archivist handles every message: print its attempt only if no other handler listens to the key.
        if message.key in self.exact_keys and message.key not in attempt.handler.patterns:
            return
        # What people are asked is told in a sentence.
        if message.key.startswith("approval."):
            return
        outcome = report.outcome or "done"
        print_line(
            Text.assemble(
                (f"{time.monotonic() - self.began:6.3f} ", "dim"),
                (f"{'#' + str(message.id):>4} ", "cyan"),
                (f"{message.key:<15} ", "bold"),
                ("→ ", "dim"),
                f"{attempt.handler.name:<17} ",
                (f"{latency(attempt) * 1000:6.1f}  ", "green"),
                (plain(_subject(message.value)), "dim") if outcome == "done" else (outcome, "yellow"),
            )
        )

    def begin(self, notes: int, paths: Iterable[str]) -> None:
        """Print the head of the lines and start the clock."""
        self.say(f"Live, woken by {' and '.join(sorted(paths))}. {notes} notes go in.\n")
        if not self.as_json:
            self.say("     s  msg key               handled by            ms  note")
        self.began = time.monotonic()

    def end(self, result: dict[str, Any], output: Path) -> None:
        """Print the summary."""
        if self.as_json:
            print_json({"summary": result})
            return
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, text in _summary(result):
            table.add_row(name, text)
        out.print()
        out.print(table)
        out.print(f"\nThe site: {output / 'index.html'}")
        if not result["is_complete"]:
            err.print(f"Not everything was handled: {result['left']}", style="bold red")


async def _play(settings: Settings, agents: list[Agent], paths: list[str], show: Show) -> dict[str, Any]:
    """Run the newsroom until everything is handled, then measure an idle stream."""
    worker = Worker([*agents, _pinged()], settings, observer=show)
    show.exact_keys = frozenset(
        pattern for handler in worker.handlers for pattern in handler.patterns if pattern[-1] not in "*>"
    )
    with anyio.fail_after(_DEADLINE_SECONDS):
        async with connect(settings) as stream, anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            await _until(lambda: worker.state == "live", "the worker is live")
            stats = await _settled(stream)
            show.begin(len(paths), worker.live_paths)
            tasks.start_soon(_decide, stream, show)
            await stream.send_all([Draft("note.found", {"path": path}, agent="demo") for path in paths])
            stats = await _quiet(stream, show)
            flow = time.monotonic() - show.began
            show.say(f"\nAll quiet. {_PINGS} single messages into the idle stream …")
            for number in range(_PINGS):
                # Long enough for the worker to fall asleep.
                await anyio.sleep(_PING_PAUSE_SECONDS)
                await stream.send(_PING, number, agent="demo")
                await _until(lambda: len(show.pings) > number, f"message {number} is handled")  # noqa: B023
            stats = await _quiet(stream, show)
            worker.stop()
            tasks.cancel_scope.cancel()
    # A person's time is not the runtime's.
    waits = [latency(each) for each in show.attempts if each.delivery.message.id not in show.suspended]
    idle = [latency(attempt) for attempt in show.pings]
    keys = {attempt.delivery.message.id: attempt.delivery.message.key for attempt in show.attempts}
    left = {each["name"]: _waiting(each) for each in stats["subscriptions"] if _waiting(each)}
    return {
        "notes": len(paths),
        "messages": dict(Counter(keys.values())),
        "attempts": dict(Counter(attempt.handler.name for attempt in show.attempts)),
        "flow_seconds": round(flow - _QUIET_SECONDS, 3),
        "flow_latency_ms": _spread(waits),
        "idle_latency_ms": _spread(idle),
        "wake_ups": {
            path: count
            for path in get_args(WakeupPath)
            if (count := worker.counts.get(f"wake-ups by {path}"))
        },
        "exchanges": worker.counts["exchanges"],
        "dead_letters": stats["dead_letters"],
        "left": left,
        "is_complete": not left and not stats["dead_letters"],
    }


async def _decide(stream: Stream, show: Show) -> None:
    """Approve what the newsroom asks people, once its handler is suspended."""
    decided = 0
    while True:
        while decided == len(show.suspended):
            await show.changed.wait()
        decided = len(show.suspended)
        for each in await stream.operations.approvals():
            show.say(
                f"       {each['title']} This demo says yes; you would: runtime approvals approve {each['request']}"
            )
            await stream.operations.decide(each["request"], True, by="the demo")


def _pinged() -> Agent:
    agent = Agent("demo")

    @agent.on(_PING)
    async def pinged(number: int) -> None:
        """Do nothing: only the latency is measured."""

    return agent


def latency(attempt: Attempt) -> float:
    """Return the seconds from the insert to the start of the handler; both by the clock of this machine."""
    return max(0.0, attempt.began - attempt.delivery.message.created_at.timestamp())


async def _settled(stream: Stream) -> dict[str, Any]:
    """Wait until every subscription is settled: messages written from then on reach it."""
    while True:
        stats = await stream.stats()
        if all(each["settled"] for each in stats["subscriptions"]):
            return stats
        await anyio.sleep(0.02)


async def _quiet(stream: Stream, show: Show) -> dict[str, Any]:
    """Wait until no attempt has ended for a moment and no delivery is left."""
    while True:
        seen = len(show.attempts)
        with anyio.move_on_after(_QUIET_SECONDS):
            await show.changed.wait()
            continue
        stats = await stream.stats()
        if seen == len(show.attempts) and not any(_waiting(each) for each in stats["subscriptions"]):
            return stats


async def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS / 2
    while not condition():
        if time.monotonic() > deadline:
            raise LocalStackError(f"It took too long until {what}.")
        await anyio.sleep(0.01)


def _waiting(subscription: dict[str, Any]) -> int:
    return sum(subscription[name] for name in ("waiting", "running", "scheduled", "suspended", "undoing"))


def _subject(value: Any) -> str:
    """Return the path of the note that a message of the newsroom is about."""
    inner = value.get("draft", value) if isinstance(value, dict) else {}
    return str(inner.get("path", "")).removesuffix(".md")


def _spread(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    return {
        "median": round(median(seconds) * 1000, 1),
        "p95": round(quantiles(seconds, n=20)[-1] * 1000, 1),
        "min": round(min(seconds) * 1000, 1),
    }


def _summary(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    messages, runs, ways = result["messages"], result["attempts"], result["wake_ups"]
    kinds = ", ".join(f"{count} {key}" for key, count in messages.items())
    yield "messages", f"{sum(messages.values())} from {result['notes']} notes: {kinds}"
    dead = result["dead_letters"]
    yield (
        "handled",
        f"{sum(runs.values())} runs of {len(runs)} handlers in {result['flow_seconds']:.2f} s, "
        f"{dead} dead letter{'' if dead == 1 else 's'}",
    )
    woken = ", ".join(f"{count} by {way}" for way, count in sorted(ways.items()))
    yield "woken", f"{woken}; {result['exchanges']} exchanges"
    idle, flow = result["idle_latency_ms"], result["flow_latency_ms"]
    yield (
        "idle",
        f"{idle['median']} ms from insert to handler start, median of {_PINGS} (p95 {idle['p95']} ms)",
    )
    yield "busy", f"{flow['median']} ms, waiting for their turn included (p95 {flow['p95']} ms)"
    yield "in all", f"{result['seconds']} s, with starting and stopping PostgreSQL and the gateway"


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """A SIGTERM ends the block as Ctrl-C does, so that no process of the stack is left behind.

    Raises:
        typer.Exit: with code 143, when it came.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # An event loop turns SIGINT into a clean end; outside of one it is a KeyboardInterrupt.
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if received:
            raise typer.Exit(128 + received[0]) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
