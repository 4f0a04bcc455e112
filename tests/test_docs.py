"""The documentation is a program: its blocks run, its site builds, what it names is there."""

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.document import LANGUAGES, Reader, blocks
from tests.terminal import Terminal

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))

pytestmark = pytest.mark.anyio


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A terminal in an empty folder that every account can enter; the stack's ports are free ones."""
    folder = Path(tempfile.mkdtemp(prefix="docs-test-"))
    folder.chmod(0o755)
    terminal = Terminal(folder)
    terminal.run("runtime local start --port 0 --db-port 0")
    terminal.run("runtime local stop")
    try:
        yield terminal
    finally:
        terminal.close()
        shutil.rmtree(folder)


def runs(page: str) -> bool:
    """Whether a page has a block that is run."""
    return any(block.why_not is None and block.language != "text" for block in blocks(ROOT / page))


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)])
async def test_the_blocks_of_a_page_run_as_they_stand_there(page: str, terminal: Terminal) -> None:
    reader = Reader(terminal)
    for block in blocks(ROOT / page):
        if block.why_not is None:
            await reader.obey(block)
