"""The documentation is a program: its blocks run, its site builds, what it names is there."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.document import LANGUAGES, Reader, blocks, reference
from tests.node import installed
from tests.preforked import Preforked
from tests.terminal import Terminal, opened

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

pytestmark = pytest.mark.anyio


@pytest.fixture
def terminal(prepared_stack: Path, preforked: Preforked) -> Iterator[Terminal]:
    """A terminal with a stack of its own."""
    with opened(prepared_stack, preforked) as terminal:
        yield terminal


def runs(page: str) -> bool:
    """Whether a page has a block that is run."""
    return any(block.why_not is None and block.language != "text" for block in blocks(ROOT / page))


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)])
async def test_the_blocks_of_a_page_run_as_they_stand_there(page: str, terminal: Terminal) -> None:
    if any(block.language == "js" for block in blocks(ROOT / page)):
        (terminal.folder / "node_modules").symlink_to(installed() / "node_modules")
    reader = Reader(terminal)
    for block in blocks(ROOT / page):
        if block.why_not is None:
            await reader.obey(block)
    reader.check()


# What cannot be run here, by page: a hosted project, Docker, or a second run of the checks themselves.
NOT_RUN = {
    "CONTRIBUTING.md": 1,
    "README.md": 3,
    "docs/browser.md": 2,
    "docs/dashboard.md": 2,
    "docs/index.md": 1,
    "docs/how-to/asking-people.md": 1,
    "docs/how-to/backups.md": 3,
    "docs/how-to/cli-stack.md": 1,
    "docs/how-to/failures.md": 1,
    "docs/how-to/hosted.md": 4,
    "docs/how-to/listening.md": 1,
    "docs/how-to/models.md": 1,
    "docs/how-to/project.md": 2,
    "docs/how-to/services.md": 1,
    "docs/how-to/sleeping.md": 1,
    "docs/how-to/streaming-text.md": 1,
    "docs/performance.md": 3,
    "docs/tutorial.md": 2,
    "docs/upgrading.md": 1,
}


def test_what_is_not_run_is_marked_and_counted() -> None:
    marked = Counter(page for page in PAGES for block in blocks(ROOT / page) if block.why_not is not None)
    assert marked == NOT_RUN
    for page in PAGES:
        text = (ROOT / page).read_text()
        fences = re.findall(rf"^ *```(?:{'|'.join(LANGUAGES)})\b", text, re.MULTILINE)
        programs = [block for block in blocks(ROOT / page) if block.language in LANGUAGES]
        assert len(programs) == len(fences), f"{page}: a fence is not closed as it was opened"
        for block in programs:
            if block.language == "python":
                # A reader saves it and runs it: no `await` outside a function.
                compile(block.text, f"{page}:{block.line}", "exec")


def test_a_guarantee_names_tests_and_faults_that_are_there() -> None:
    from tests.chaos.strikes import NAMES

    page = " ".join((DOCS / "guarantees.md").read_text().split())
    chapters = re.split(r"## (G\d+|All) ", page)
    assert chapters[1:-2:2] == [f"G{number}" for number in range(1, 15)]
    sources = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    faults = sorted(NAMES, key=len, reverse=True)
    for number, chapter in zip(chapters[1::2], chapters[2::2], strict=True):
        named = re.findall(r"`(test_\w+)`", chapter)
        assert named, number
        missing = [name for name in named if f"def {name}(" not in sources]
        assert not missing, f"{number}: {missing}"
        if number != "All":
            assert all(re.search(rf"_{number.lower()}_", name) for name in named), number
        for clause in re.findall(r"- chaos: (.*?)(?=; (?:and|each)| \*Not|$| - )", chapter):
            left = clause
            for fault in faults:
                left = left.replace(fault, "")
            assert not left.strip(" ,;"), f"{number} names a fault that is not there: {left}"


def test_the_design_names_files_classes_and_functions_that_are_there() -> None:
    page = (DOCS / "design.md").read_text()
    rooms = re.findall(r"^\| `((?:runtime|supabase)/[\w/]*)` \|.*\| (.*) \|$", page, re.MULTILINE)
    named = [f"{room}{file}" for room, files in rooms for file in re.findall(r"`([\w/]+\.py)`", files)]
    assert len(named) > 20
    questions = page.partition("## Ten questions")[2].partition("\n## ")[0]
    paths = re.findall(r"`([\w/]+\.py)`", questions)
    named += [path if path.startswith("tests/") else f"runtime/{path}" for path in paths]
    assert [path for path in named if not (ROOT / path).is_file()] == []

    python = "\n".join(file.read_text() for file in (ROOT / "runtime").rglob("*.py"))
    for name, method in re.findall(r"`([A-Z]\w+)(?:\.(\w+))?`", questions):
        assert f"class {name}" in python, name
        assert f"def {method}" in python, method
    sql = "\n".join(file.read_text() for file in (ROOT / "supabase" / "migrations").glob("*.sql"))
    for function in re.findall(r"`(?:runtime\.)?((?<=runtime\.)\w+|stream_\w+)`", questions):
        assert re.search(rf"function (?:runtime|public)\.{function}\b", sql), function


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    built = subprocess.run(
        # Without --quiet, under which MkDocs does not count its warnings.
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=500,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?(?:https?:)?//[^>]*", text)
        loaded += re.findall(r"<link[^>]*rel=[\"']?(?:stylesheet|preconnect|icon)[^>]*//[^>]*", text)
        assert not loaded, f"{page.relative_to(tmp_path)}: {loaded}"


def test_the_reference_has_every_export_command_setting_and_function() -> None:
    import runtime
    from runtime.cli import COMMANDS
    from runtime.settings import Settings

    python = (DOCS / "reference" / "python.md").read_text()
    assert [name for name in runtime.__all__ if f"::: runtime.{name}\n" not in python] == []
    generated = {name: "\n".join(generate()) for name, generate in reference().GENERATORS.items()}
    assert [name for name in COMMANDS if f"## `runtime {name}`\n" not in generated["commands"]] == []
    assert "### `runtime dead redrive`" in generated["commands"]
    assert generated["settings"].count("\n| ") == len(Settings.model_fields)
    granted = set()
    for file in sorted((ROOT / "supabase" / "migrations").glob("*.sql")):
        granted |= set(re.findall(r"comment on function public\.(stream_\w+)\(", file.read_text()))
    assert set(re.findall(r"## `(stream_\w+)`", generated["functions"])) == granted
