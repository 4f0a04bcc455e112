"""The README is a program: its code runs, its commands work, its table of settings is the settings."""

import re
import subprocess
import sys
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
def terminal() -> Iterator[Terminal]:
    """A terminal with a stack of its own."""
    with opened() as terminal:
        yield terminal


def test_the_first_agent_and_the_script_run_as_they_stand_there(terminal: Terminal) -> None:
    first = section("A first agent")
    agent, script = blocks("python", first)
    shell, environment = blocks("sh", first)
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

    terminal.run(*commands(environment))
    body = "\n".join(f"    {line}" for line in script.replace("import runtime\n", "").splitlines())
    (terminal.folder / "script.py").write_text(
        f"import anyio\nimport runtime\n\nasync def main():\n{body}\n\nanyio.run(main)\n"
    )
    listener = terminal.start(f"{sys.executable} script.py")
    assert "https://example.org/hello" in listener.wait_for("example.org")


def test_the_commands_are_two_and_the_ones_that_continuous_integration_runs() -> None:
    see, check = blocks("sh")[:2]
    assert commands(see) == ["pip install -e . && runtime demo"]
    assert commands(check) == ['pip install -e ".[dev]" && python -m tests']
    called = (ROOT / ".ci" / "run").read_text()
    assert commands(check)[0].replace("pip install", "pip install --quiet") in called


def test_the_introduction_has_five_lines() -> None:
    introduction = README.split("\n\n")[1]
    assert 3 <= len(introduction.splitlines()) <= 6


def test_a_newcomer_sees_nothing_at_the_top_that_does_not_belong_there() -> None:
    folders = {"runtime", "agents", "tests", "supabase", "docs"}
    files = {"pyproject.toml", "mkdocs.yml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"}
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS
    ).stdout.splitlines()
    tops = {path.split("/")[0] for path in listed}
    assert {name for name in tops if not name.startswith(".")} <= folders | files


def test_every_file_and_command_that_is_named_exists() -> None:
    from runtime.cli import COMMANDS

    for text in (README, (ROOT / "CONTRIBUTING.md").read_text(), (ROOT / "docs" / "design.md").read_text()):
        for path in re.findall(r"`((?:runtime|tests|docs|agents|supabase)/[\w./*-]*)`", text):
            assert list(ROOT.glob(path.rstrip("/"))) or path == "runtime/migrations", path
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for name in re.findall(r"(?:`|^)runtime (\w+)", page.read_text(), re.MULTILINE):
            assert name in COMMANDS or name == "COMMAND", f"{page}: {name}"


def test_every_guarantee_that_is_listed_has_a_test_by_its_number() -> None:
    listed = re.findall(r"^\| (G\d+) \|", section("What is guaranteed"), re.MULTILINE)
    assert listed == [f"G{number}" for number in range(1, 12)]
    names = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    untested = [name for name in listed if not re.search(rf"def test_{name.lower()}_", names)]
    assert untested == []


def test_the_table_of_settings_is_what_the_program_knows() -> None:
    table = "\n".join(reference().settings())
    assert table in README, f"README.md, section Settings, should hold:\n{table}"
