"""`runtime run --once`: one message handled on this machine, and nothing taken or written."""

import json
import logging
import pdb
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import typer
from rich.text import Text

from runtime.agent.agent import Agent
from runtime.agent.decision_link import DecisionLinks
from runtime.agent.handler import Handler
from runtime.agent.services import ReadOptions
from runtime.cli.attempts import milliseconds
from runtime.cli.output import err, out, plain, print_json, printable_lines
from runtime.client.blocking import BlockingStream
from runtime.client.dead_letters import DeadLetterFilter
from runtime.client.stream import Stream, connect
from runtime.encoding.json import legible
from runtime.errors import RuntimeFault
from runtime.keys import matches
from runtime.message import Message
from runtime.settings import Settings
from runtime.tracebacks import own_part, trace_of
from runtime.worker.execution.dry_run import DryRun, dry_run

# How many dead letters are looked through for a message that was removed from the stream, and how many messages
# its tree may have.
_LETTERS = 1_000
_STORY = 2_000


async def run_once(
    agents: Sequence[Agent],
    settings: Settings,
    number: int,
    *,
    name: str | None,
    answers: Mapping[str, Any],
    debugs: bool,
    as_json: bool,
) -> int:
    """Run a handler on a message, print what it would do, and return the exit code.

    Args:
        agents: those of the command line.
        settings: where the stream is.
        number: the message's id.
        name: of the handler; None if only one matches.
        answers: answers to its requests, by key.
        debugs: whether to open the debugger where it fails.
        as_json: whether to print one JSON object.

    Raises:
        RuntimeFault: there is no such message, or no one handler for it.
    """
    async with connect(settings) as stream:
        message, story = await _find(stream, number)
    agent, handler = _choose(agents, message, name)
    # The executor's own line speaks of further attempts, and there is none.
    logging.getLogger("runtime.handlers").addFilter(_is_of_users)
    if not as_json:
        what = f"{handler.name} on message {number} ({message.key}), here: nothing is taken or written"
        err.print(what, style="dim", soft_wrap=True)
    debugged: list[Exception] = []

    def debug(error: Exception) -> None:
        debugged.append(error)
        _debug(error)

    with BlockingStream(settings) as reading, ThreadPoolExecutor(1) as thread:
        done = await dry_run(
            agent,
            handler,
            message,
            story=story,
            answers=answers,
            reads=_ThreadReads(reading, thread),
            decision_links=DecisionLinks.of(settings),
            at_failure=debug if debugs else None,
        )
    _print(done, handler, message, as_json=as_json, has_traceback=bool(debugged))
    return 0 if done.report.outcome is None else 1


@dataclass(frozen=True, slots=True)
class _ThreadReads:
    """Reads the stream for a handler in a thread, which no debugger stops."""

    stream: BlockingStream
    thread: ThreadPoolExecutor

    def read(self, pattern: str, options: ReadOptions) -> Future[list[Message[Any]]]:
        """Read messages by pattern."""
        return self.thread.submit(self.stream.read, pattern, **options)

    def get(self, message: int) -> Future[Message[Any] | None]:
        """Read one message."""
        return self.thread.submit(self.stream.get, message)


def answers_of(given: Sequence[str]) -> dict[str, Any]:
    """Return the answers by key of the options `--answer KEY=JSON`.

    Raises:
        BadParameter: one is not of that form.
    """
    found = {}
    for each in given:
        key, equals, text = each.partition("=")
        try:
            found[key] = json.loads(text)
        except ValueError:
            equals = ""
        if not equals:
            raise typer.BadParameter(
                f"{each!r} is not KEY=JSON, such as --answer 'price.of={{\"cents\": 5}}'",
                param_hint="--answer",
            )
    return found


async def _find(stream: Stream, number: int) -> tuple[Message[Any], list[dict[str, Any]]]:
    """Return a message with the rows of its tree, or the copy that a dead letter holds."""
    try:
        story: list[dict[str, Any]] = (await stream.views.trace(number, limit=_STORY))["messages"]
    except RuntimeFault:
        story = []
    for row in story:
        if row["id"] == number:
            return Message[Any].from_row(row), story
    letters = await stream.operations.dead_letters(DeadLetterFilter(), limit=_LETTERS, details=True)
    for letter in letters:
        if letter["message_id"] == number:
            return Message[Any].from_row(letter["message"]), story
    raise RuntimeFault(
        f"There is no message {number} in the stream at {stream.place}: it was never written, or is older than the "
        "retention. `runtime read '>'` shows the last ones."
    )


def _choose(agents: Sequence[Agent], message: Message[Any], name: str | None) -> tuple[Agent, Handler]:
    """Return the handler that is meant, with its agent."""
    every = [(agent, handler) for agent in agents for handler in agent.handlers]
    found = [each for each in every if any(matches(pattern, message.key) for pattern in each[1].patterns)]
    if name is not None:
        # A message that was replayed or amended may be one that the patterns no longer match.
        found = [each for each in every if name in (each[1].name, each[1].name.partition(".")[2])]
        if not found:
            names = ", ".join(handler.name for _, handler in every) or "none"
            raise RuntimeFault(f"There is no handler {name} here, only {names}.")
    if not found:
        told = "; ".join(f"{handler.name} for {', '.join(handler.patterns)}" for _, handler in every)
        raise RuntimeFault(f"No handler here is for {message.key}, the key of message {message.id}: {told}.")
    if len(found) > 1:
        names = ", ".join(handler.name for _, handler in found)
        raise RuntimeFault(f"Several handlers are for {message.key}: {names}. Choose one: --handler NAME.")
    [(agent, handler)] = found
    if handler.target is not None:
        raise RuntimeFault(f"{handler.name} posts to a URL: nothing of it runs here that could be looked at.")
    return agent, handler


def _debug(error: Exception) -> None:
    """Open the debugger at the line of the user's own code that raised an error."""
    err.print(Text(printable_lines(trace_of(error).rstrip())), soft_wrap=True)
    err.print("The debugger stands at the failure: `p name` prints, `u` goes up, `q` leaves.", style="dim")
    pdb.post_mortem(own_part(error))


def _is_of_users(record: logging.LogRecord) -> bool:
    return record.name != "runtime.handlers"


def _print(
    done: DryRun, handler: Handler, message: Message[Any], *, as_json: bool, has_traceback: bool
) -> None:
    report = done.report
    if as_json:
        effects = [
            {"kind": each.kind, "key": each.key, "value": each.value, **each.options} for each in done.effects
        ]
        print_json(
            {
                "message": message.id, "key": message.key, "handler": handler.name, "outcome": report.outcome or "done",
                "seconds": report.seconds, "effects": effects, "error": report.error, "traceback": report.traceback,
            }
        )  # fmt: skip
        return
    for each in done.effects:
        options = "".join(
            f"  {name}={legible(value)}"
            for name, value in each.options.items()
            if name not in ("agent", "parent_id", "correlation_id")
        )
        line = f"would {each.kind:<9}  {each.key}  {legible(each.value)}{options}"
        out.print(Text(plain(line)), soft_wrap=True)
    if report.outcome is None:
        out.print(f"done in {milliseconds(report.seconds).strip()}", style="green")
        return
    if report.outcome == "suspended":
        names = ", ".join(name for name, *_ in report.waits or ())
        out.print(Text(f"waits for {plain(names)}: a worker would suspend it here", style="yellow"))
        return
    told = {
        "failed": "a worker would try again",
        "later": f"a worker would put it off for {report.delay or 0:.0f} s",
    }.get(report.outcome, "a worker would make it a dead letter")
    # The debugger has shown it.
    if not has_traceback:
        err.print(Text(printable_lines((report.traceback or "").rstrip())), soft_wrap=True)
    took, why = milliseconds(report.seconds).strip(), str(report.error).rstrip(".")
    err.print(f"{report.outcome} after {took}: {why}; {told}", style="red", soft_wrap=True)
