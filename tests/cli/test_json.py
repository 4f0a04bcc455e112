"""With --json every line is one JSON object: results on stdout; errors, notes and the log on stderr."""

import json
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from runtime.cli import COMMANDS, load
from runtime.cli.errors import told
from runtime.errors import Refused
from tests.cli.shell import SECONDS, Ended, Shell
from tests.cli.test_run import wait_for

pytestmark = pytest.mark.timeout(300)

AGENT = """
import warnings
from runtime import Agent

agent = Agent("told")

@agent.on("told.task")
async def handle(value: int) -> None:
    warnings.warn("a warning of a library")
"""


def leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every command that does something."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
    else:
        for each, one in below.items():
            yield from leaves(f"{name} {each}", one)


def objects(text: str) -> list[dict[str, Any]]:
    """The lines, each of which is an object."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(each, dict) for each in found), text
    return found


def ended(process: "subprocess.Popen[str]") -> Ended:
    """What a process that serves has said when it has ended."""
    out, err = process.communicate(timeout=SECONDS)
    return Ended(process.returncode, out, err)


def test_every_command_has_json() -> None:
    for name in COMMANDS:
        for whole, command in leaves(name, load(name)):
            assert "--json" in [option for each in command.params for option in each.opts], whole


def test_an_error_is_one_object_after_warnings_that_are_objects_too(shell: Shell) -> None:
    (shell.folder / "broken.py").write_text("import no_such_module\n")
    for arguments, kind, code in (
        (["send", "--json"], "UsageError", 2),
        (["pause", "no.one", "--json"], "Refused", 1),
        (["drain", "broken.py", "--json"], "DiscoveryError", 1),
    ):
        whole = shell.run(*arguments, RUNTIME_CONCURENCY="5")
        assert (whole.code, whole.stdout) == (code, ""), whole
        *notes, error = objects(whole.stderr)
        assert (error["type"], error["exit_code"]) == (kind, code)
        assert [each["level"] for each in notes] == ["WARNING"] * (kind != "UsageError")


def test_a_bug_is_one_object_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end, told(as_json=True):
        raise ExceptionGroup("several", [ZeroDivisionError("by nothing"), Refused("and no")])
    (error,) = objects(capsys.readouterr().err)
    assert (end.value.exit_code, error["type"]) == (1, "ExceptionGroup")
    assert "ZeroDivisionError: by nothing" in error["traceback"]


def test_what_serves_writes_its_log_and_notes_as_objects(shell: Shell) -> None:
    (shell.folder / "told.py").write_text(AGENT)
    (shell.folder / "other.py").write_text(
        'from runtime import Source\nshop = Source("shop", "shop.{event}")\n'
    )
    (shell.folder / "broken.py").write_text("import no_such_module\n")
    running = shell.start("run", "told.py", "--json", RUNTIME_CONCURENCY="5")
    serving = shell.start(
        "serve", "other.py", "--port", "0", RUNTIME_LOG_FORMAT="json", SHOP_WEBHOOK_SECRET="ab" * 20
    )
    showing = shell.start("dashboard", "--port", "0", "--no-open", "--json")
    developing = shell.start("dev", "broken.py", "--no-open", "--json")
    objects(wait_for(developing.stderr, "not reloaded"))
    assert wait_for(serving.stdout, "Serving at ")
    (shown,) = objects(wait_for(showing.stdout, "http"))
    assert list(shown) == ["url"]
    objects(wait_for(running.stderr, "is live"))
    assert objects(shell.run("send", "told.task", "1", "--json").stdout)[0]["unheard"] is False
    (attempt,) = objects(wait_for(running.stdout, "told.task"))
    assert attempt["outcome"] == "done"
    notes = {running: "SIGTERM", serving: "SIGTERM", showing: "", developing: "ending"}
    for process in notes:
        process.send_signal(signal.SIGTERM)
    for process, note in notes.items():
        whole = ended(process)
        said = objects(whole.stderr)
        assert any(note in each["message"] for each in said) or not note, whole
        assert whole.code == 0
        if process is running:
            assert any(each["logger"] == "py.warnings" for each in said)
