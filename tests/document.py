"""Pages of the documentation as programs: their blocks, and a reader that does what they say.

- `python` begins with `# some/path.py` and is that file, so that a reader can save and run it as it stands.
- `js` that begins with `// some/path.mjs` is that file; other `js` is part of a page.
- `sh` is typed line by line; a command that never ends by itself gets a terminal of its own.
- `sql` goes to the stack's database, as its owner.
- `text` is what was printed on the page so far: each line must be there, `…` stands for anything.

A block below `<!-- not run: why -->` is not run. Blocks in other languages are settings and pages, not programs.
"""

import re
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import asyncpg

from tests.terminal import Printed, Terminal

GENERATOR = Path(__file__).parents[1] / "docs" / "reference" / "generate.py"
LANGUAGES = ("python", "sh", "sql", "text")
# What is waited for before the next line is typed: a worker has to be there before something is sent to it.
ENDLESS: dict[str, str | None] = {
    "runtime run": "live",
    "runtime serve": "Serving at",
    "runtime dev": "live",
    "runtime tail": "",
    "runtime top": "",
    "node ": "listens",
    # None: until it prints anything or ends.
    "python ": None,
}
# Variables may stand before a command.
_SETTING = re.compile(r"^env (\w+=\S+ )+")
_SECONDS = 180
_BLOCK = re.compile(
    r"(?:^[ ]*<!-- not run: (?P<why>[^\n]+?) -->\n\s*)?"
    r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One fenced block; `why_not` says why it is not run, where it is not."""

    language: str
    text: str
    line: int
    why_not: str | None = None


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that are programs, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            found["language"],
            textwrap.dedent(found["text"]),
            text[: found.start("language")].count("\n") + 1,
            found["why"],
        )
        for found in _BLOCK.finditer(text)
        if found["language"] in LANGUAGES or _is_module(found["language"], found["text"])
    ]


def _is_module(language: str, text: str) -> bool:
    return language == "js" and re.match(r"\s*// [\w./-]+\.mjs\n", text) is not None


def commands(block: str) -> Iterator[str]:
    """The commands of a shell block, without their comments; a backslash joins lines."""
    for line in block.replace("\\\n", " ").splitlines():
        if command := re.sub(r"(^|\s+)#.*", "", line).strip():
            yield command


@dataclass
class Reader:
    """Somebody who does what a page says, block by block."""

    terminal: Terminal
    _printed: list[str | Printed] = field(default_factory=list)

    async def obey(self, block: Block) -> None:
        """Do what one block says."""
        if block.language == "sh":
            for command in commands(block.text):
                self._type(command)
        elif block.language == "sql":
            await self._query(block.text)
        elif block.language == "text":
            self._compare(block.text)
        else:
            path = re.match(r"(?:#|//) ([\w./-]+\.(?:py|mjs))\n", block.text)
            assert path is not None, f"line {block.line}: a program begins with the path it is saved under"
            file = self.terminal.folder / path[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)

    def check(self) -> None:
        """Fail if something that was started on this page has ended otherwise than well."""
        for printed in self._printed:
            if isinstance(printed, Printed):
                printed.check()

    def _type(self, command: str) -> None:
        bare = _SETTING.sub("", command)
        for beginning, sign in ENDLESS.items():
            if bare.startswith(beginning) and " --once " not in command:
                printed = self.terminal.start(command)
                if sign is None:
                    printed.wait_for_anything()
                elif sign:
                    printed.wait_for(sign)
                self._printed.append(printed)
                return
        self._printed.append(self.terminal.run(command))

    async def _query(self, text: str) -> None:
        environment = self.terminal.run("runtime local status -o env")
        url = re.search(r'^DB_URL="(.+)"$', environment, re.MULTILINE)
        assert url is not None, environment
        connection = await asyncpg.connect(url[1])
        try:
            await connection.execute(text)
        finally:
            await connection.close()

    def _compare(self, text: str) -> None:
        for line in filter(str.strip, text.splitlines()):
            words = (re.escape(word).replace("…", ".*") for word in line.split())
            self._wait_for(re.compile(r"\s*".join(words)), line)

    def _wait_for(self, pattern: re.Pattern[str], line: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while True:
            shown = [each if isinstance(each, str) else each.file.read_text() for each in self._printed]
            if any(pattern.search(each) for each in shown):
                return
            assert time.monotonic() < deadline, f"{line!r} is not in:\n" + "\n---\n".join(shown)
            time.sleep(0.05)


def reference() -> ModuleType:
    """The hook that generates the reference; MkDocs loads it by its path too."""
    spec = spec_from_file_location("reference_generate", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
