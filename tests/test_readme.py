"""The README is a program: its code runs and its commands work; the table of settings is what the code knows."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.document import reference
from tests.terminal import SECONDS, Terminal, opened

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    """What stands under a heading, up to the next one of its rank."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def commands(block: str) -> list[str]:
    """The lines of a shell block, without their comments."""
    return [command for line in block.splitlines() if (command := re.sub(r"\s+#.*", "", line).strip())]


@pytest.fixture
def terminal(prepared_stack: Path) -> Iterator[Terminal]:
    """A terminal with a stack of its own."""
    with opened(prepared_stack) as terminal:
        yield terminal


def test_the_first_agent_runs_as_it_stands_there(terminal: Terminal) -> None:
    first = section("A first agent")
    (agent,) = blocks("python", first)
    (shell,) = blocks("sh", first)
    name = re.match(r"# (\S+\.py)\n", agent)
    assert name is not None
    assert len(agent.splitlines()) <= 24
    (terminal.folder / name[1]).write_text(agent)

    start, run, send, tail = commands(shell)
    assert [start, run, tail] == ["runtime local start", f"runtime run {name[1]}", "runtime tail"]
    terminal.run(start)
    worker = terminal.start(run)
    worker.wait_for("live")
    assert "task.output" in terminal.run(send)
    worker.wait_for("publisher.publish")
    stream = terminal.start(tail)
    assert "https://example.org/hello" in stream.wait_for("site.published")


def test_the_commands_are_two_and_the_ones_that_continuous_integration_runs() -> None:
    clone, see, check = blocks("sh")[:3]
    assert commands(clone)[0].startswith("git clone ")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = '-e ".[demo]"' if "demo" in project["optional-dependencies"] else "-e ."
    assert commands(see) == [f"pip install {wanted} && runtime demo"]
    assert commands(check) == ['pip install -e ".[dev]" && python -m tests']
    called = (ROOT / ".ci" / "run").read_text()
    assert commands(check)[0].replace("pip install", "pip install --quiet") in called


def test_it_is_read_in_five_minutes() -> None:
    assert len(README.split()) <= 1000


def test_the_introduction_has_five_lines() -> None:
    introduction = README.split("\n\n")[1]
    assert 3 <= len(introduction.splitlines()) <= 6


def test_a_newcomer_sees_nothing_at_the_top_that_does_not_belong_there() -> None:
    folders = {"runtime", "tests", "supabase", "docs"}
    files = {"pyproject.toml", "mkdocs.yml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"}
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS
    ).stdout.splitlines()
    tops = {path.split("/")[0] for path in listed}
    assert {name for name in tops if not name.startswith(".")} <= folders | files


def test_every_file_and_command_that_is_named_exists() -> None:
    from runtime.cli import COMMANDS

    for text in (README, (ROOT / "CONTRIBUTING.md").read_text(), (ROOT / "docs" / "design.md").read_text()):
        for path in re.findall(r"`((?:runtime|tests|docs|supabase)/[\w./*-]*)`", text):
            assert list(ROOT.glob(path.rstrip("/"))) or path == "runtime/migrations", path
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for name in re.findall(r"(?:`|^)runtime (\w+)", page.read_text(), re.MULTILINE):
            assert name in COMMANDS or name == "COMMAND", f"{page}: {name}"


def test_every_guarantee_that_is_listed_has_a_test_by_its_number() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text()
    listed = re.findall(r"^## (G\d+) ", page, re.MULTILINE)
    assert listed == [f"G{number}" for number in range(1, 15)]
    names = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    untested = [name for name in listed if not re.search(rf"def test_{name.lower()}_", names)]
    assert untested == []


def test_the_table_of_settings_is_what_the_program_knows() -> None:
    table = "\n".join(reference().settings())
    page = "docs/reference/settings.md"
    assert table in (ROOT / page).read_text(), f"{page} should hold:\n{table}"
