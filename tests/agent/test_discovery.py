"""Discovery: files, folders and modules become agents, and what cannot be found says why."""

import logging
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import tracebacks
from runtime.agent.discovery import discover
from runtime.errors import DiscoveryError


@pytest.fixture(autouse=True)
def own_modules() -> Iterator[None]:
    """Take away what a test imports, and its folders."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(file: Path, source: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(source), encoding="utf-8")
    return file


def write_agent(file: Path, name: str, more: str = "") -> Path:
    return write(file, f'from runtime import Agent\n{more}\nagent = Agent("{name}")\n')


def names(*paths: str | Path) -> list[str]:
    return [agent.name for agent in discover(paths)]


def test_a_folder_gives_the_agents_of_its_files_by_name(tmp_path: Path) -> None:
    for name in ("writer", "archivist", "reviewer"):
        write_agent(tmp_path / "agents" / f"{name}.py", name)
    write(tmp_path / "agents" / "_shared.py", "raise RuntimeError('never loaded by itself')")
    write(tmp_path / "agents" / "words.py", "STOP = {'the'}")
    write(tmp_path / "agents" / "notes.txt", "no Python")
    write_agent(tmp_path / "agents" / "more" / "deep.py", "deep")
    assert names(tmp_path / "agents") == ["archivist", "reviewer", "writer"]


def test_a_file_gives_all_its_agents(tmp_path: Path) -> None:
    file = write_agent(tmp_path / "my-agents.py", "one", "other = Agent('two')")
    assert names(str(file)) == ["two", "one"]


def test_files_of_the_same_name_in_two_folders_called_agents_both_load(tmp_path: Path) -> None:
    first = write_agent(tmp_path / "a" / "agents" / "main.py", "first")
    second = write_agent(tmp_path / "b" / "agents" / "main.py", "second")
    assert names(first, second) == ["first", "second"]


def test_a_file_named_alone_and_with_its_folder_is_loaded_once(tmp_path: Path) -> None:
    count = "import sys; sys.loads = vars(sys).get('loads', 0) + 1"
    file = write_agent(tmp_path / "writer.py", "writer", count)
    try:
        assert names(file, tmp_path, f"{file}:agent") == ["writer"]
        assert vars(sys)["loads"] == 1
    finally:
        vars(sys).pop("loads", None)


def test_siblings_import_each_other(tmp_path: Path) -> None:
    write(tmp_path / "agents" / "_shared.py", "NAME = 'shared'")
    write(
        tmp_path / "agents" / "writer.py",
        "from runtime import Agent\nfrom ._shared import NAME\nagent = Agent(NAME)\n",
    )
    write(tmp_path / "agents" / "zebra.py", "from .writer import agent")
    assert names(tmp_path / "agents") == ["shared"]


def test_a_folder_with_an_init_is_that_package(tmp_path: Path) -> None:
    write(tmp_path / "agents" / "__init__.py", "NAME = 'from-init'")
    source = "from runtime import Agent\nfrom . import NAME\nagent = Agent(NAME)\n"
    write(tmp_path / "agents" / "writer.py", source)
    assert names(tmp_path / "agents") == ["from-init"]


def test_annotations_of_a_found_file_resolve(tmp_path: Path) -> None:
    write(
        tmp_path / "writer.py",
        """
        from __future__ import annotations
        from pydantic import BaseModel
        from runtime import Agent
        agent = Agent("writer")
        class Note(BaseModel):
            parts: list[Note] = []
        @agent.on("note.found")
        def draft(note: Note) -> None: ...
        """,
    )
    (agent,) = discover([tmp_path / "writer.py"])
    assert [handler.name for handler in agent.handlers] == ["writer.draft"]


def test_a_dotted_module_and_one_agent_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_agent(tmp_path / "shop_under_test" / "agents.py", "seller", "buyer = Agent('buyer')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    assert names("shop_under_test.agents") == ["buyer", "seller"]
    assert names("shop_under_test.agents:buyer") == ["buyer"]


def test_two_agents_of_one_name_are_refused_saying_where_both_are(tmp_path: Path) -> None:
    first = write_agent(tmp_path / "a.py", "writer")
    second = write_agent(tmp_path / "b" / "b.py", "writer")
    with pytest.raises(DiscoveryError) as caught:
        discover([first, second])
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_a_file_without_an_agent_is_refused_when_named_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "words.py", "STOP = {'the'}")
    with pytest.raises(DiscoveryError, match=r"words\.py holds no agent"):
        discover([file])
    with pytest.raises(DiscoveryError, match="Python files searched: 1"):
        discover([tmp_path])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("this is no Python", "SyntaxError"),
        ("from runtime import Agent\nAgent('a b')", "An agent's name is letters"),
        ("1 / 0", "ZeroDivisionError"),
        ("import other", r"write `from \.other import …`"),
    ],
)
def test_a_file_that_cannot_be_imported_says_why(tmp_path: Path, source: str, words: str) -> None:
    write(tmp_path / "other.py", "")
    file = write(tmp_path / "broken.py", source)
    with pytest.raises(DiscoveryError, match=rf"broken\.py cannot be imported: .*{words}"):
        discover([file])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere/agents", "does not exist"),
        ("nowhere.py", "does not exist"),
        ("nothing_of_this_name", "cannot be imported"),
        ("", "does not exist"),
        ("runtime.keys:agent", "has no Agent called 'agent'"),
        ("runtime.keys:MAX_SEGMENTS", "has no Agent called 'MAX_SEGMENTS'"),
    ],
)
def test_a_path_that_means_nothing_says_so(path: str, words: str) -> None:
    with pytest.raises(DiscoveryError, match=words):
        discover([path])


def test_a_file_that_is_no_python_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiscoveryError, match=r"must end in \.py"):
        discover([write(tmp_path / "notes.txt", "")])
    with pytest.raises(DiscoveryError, match="may have no dot"):
        discover([write(tmp_path / "a.b.py", "")])


SHOP = {
    "shop/__init__.py": "",
    "shop/models.py": "NAME = 'seller'",
    "shop/agents/__init__.py": "",
    "shop/agents/_shared.py": "KIND = 'kind'",
}
DECLARES = """
from runtime import Agent
{imports}
agent = Agent(NAME)
def work(value):
    return value
"""


def run(folder: Path, source: str, *arguments: str) -> str:
    """What a Python prints that, as an installed command, has no folder of ours in its path."""
    ended = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(source), *arguments],
        cwd=folder, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


FIND = """
import sys
from runtime.agent.discovery import discover
print(*[each.name for each in discover(sys.argv[1:])])
"""


def project(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        write(root / name, source)
    return root


@pytest.mark.parametrize(
    ("files", "imports", "place", "paths"),
    [
        (SHOP, "from shop.models import NAME", "shop/agents/seller.py", ["shop/agents"]),
        (SHOP, "from shop.models import NAME", "shop/agents/seller.py", ["shop/agents/seller.py"]),
        (SHOP, "from ..models import NAME", "shop/agents/seller.py", ["shop/agents"]),
        (SHOP, "from shop.models import NAME", "agents/seller.py", ["agents"]),
        (SHOP, "from shop.models import NAME", "agents/seller.py", ["agents/seller.py:agent"]),
        (SHOP, "from shop.models import NAME", "seller.py", ["."]),
        (SHOP, "from shop.models import NAME", "seller.py", ["seller.py"]),
        (SHOP, "from shop.models import NAME", "seller.py", ["seller"]),
        (SHOP, "from ..models import NAME\nfrom ._shared import KIND", "shop/agents/seller.py", ["shop.agents.seller"]),
        (
            {f"src/{name}": source for name, source in SHOP.items()} | {"pyproject.toml": ""},
            "from shop.models import NAME", "agents/seller.py", ["agents"],
        ),
        (
            {f"src/{name}": source for name, source in SHOP.items()} | {"pyproject.toml": ""},
            "from ..models import NAME", "src/shop/agents/seller.py", ["src/shop/agents"],
        ),
        (
            {f"src/{name}": source for name, source in SHOP.items()} | {"pyproject.toml": ""},
            "from ..models import NAME", "src/shop/agents/seller.py", ["shop.agents.seller"],
        ),
        (
            {"shop/__init__.py": "", "shop/models.py": "NAME = 'seller'"},
            "from ..models import NAME", "shop/agents/seller.py", ["shop/agents"],
        ),
        ({"models.py": "NAME = 'seller'"}, "from ..models import NAME", "agents/seller.py", ["agents"]),
        ({"models.py": "NAME = 'seller'"}, "from models import NAME", "agents/seller.py", ["agents"]),
        ({"agents/_own.py": "NAME = 'seller'"}, "from ._own import NAME", "agents/seller.py", ["agents"]),
        ({"_own.py": "NAME = 'seller'"}, "from ._own import NAME", "seller.py", ["."]),
        ({"my-agents/_own.py": "NAME = 'seller'"}, "from ._own import NAME", "my-agents/seller.py", ["my-agents"]),
        ({}, "NAME = 'seller'", "queue.py", ["queue.py"]),
        ({}, "NAME = 'seller'", "json/seller.py", ["json"]),
    ],
)  # fmt: skip
def test_d1_the_commonest_layouts_work(
    tmp_path: Path, files: dict[str, str], imports: str, place: str, paths: list[str]
) -> None:
    project(tmp_path, files)
    write(tmp_path / place, DECLARES.format(imports=imports))
    assert run(tmp_path, FIND, *paths) == "seller"


def test_d1_a_run_from_elsewhere_finds_the_project_too(tmp_path: Path) -> None:
    project(tmp_path / "a", SHOP | {"pyproject.toml": ""})
    write(tmp_path / "a/agents/seller.py", DECLARES.format(imports="from shop.models import NAME"))
    (tmp_path / "b").mkdir()
    assert run(tmp_path / "b", FIND, "../a/agents") == "seller"


SPAWN = """
import multiprocessing, pickle, sys
from concurrent.futures import ProcessPoolExecutor
from runtime.agent.discovery import discover
if __name__ == "__main__":
    [agent] = discover(sys.argv[1:])
    module = next(m for m in list(sys.modules.values()) if "work" in vars(m) and vars(m).get("agent") is agent)
    assert pickle.loads(pickle.dumps(module.work)) is module.work
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        print(module.__name__, pool.submit(module.work, 7).result())
"""


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("shop/agents/seller.py", "shop.agents.seller"),
        ("robots/seller.py", "robots.seller"),
        ("seller.py", "seller"),
    ],
)
def test_d1_spawned_processes_and_pickles_find_a_module_by_its_real_name(
    tmp_path: Path, place: str, name: str
) -> None:
    project(tmp_path, SHOP)
    write(tmp_path / place, DECLARES.format(imports="from shop.models import NAME"))
    assert run(tmp_path, SPAWN, place) == f"{name} 7"


@pytest.mark.parametrize("path", ["robots", "."])
def test_d1_agents_that_import_each_other_work_in_the_tutorials_pytest_too(
    pytester: pytest.Pytester, path: str
) -> None:
    project(
        pytester.path,
        {
            "robots/shared.py": "NAMES = []",
            "robots/writer.py": """
                from runtime import Agent
                from .shared import NAMES
                NAMES.append(__name__)
                agent = Agent("writer")
            """,
            "robots/reader.py": """
                from runtime import Agent
                from .writer import agent as other
                agent = Agent("reader")
            """,
            "tests/test_agents.py": (
                """
                import reader
                import shared
                import writer
                """
                if path == "robots"
                else "from robots import reader, shared, writer\n"
            )
            + """
                from runtime.agent.discovery import discover

                def test_a_file_is_one_module():
                    import robots.shared
                    import robots.writer

                    assert reader.other is writer.agent
                    assert robots.writer is writer
                    assert robots.shared is shared
                    assert shared.NAMES == ["robots.writer"]
                    assert writer.__spec__.name == "robots.writer"
                    assert [each.name for each in discover(["robots"])] == ["writer", "reader"]
            """.replace(" " * 16, " " * (16 if path == "robots" else 0)),
        },
    )
    for file in pytester.path.rglob("*.py"):
        file.write_text(textwrap.dedent(file.read_text()))
    ended = pytester.runpytest_subprocess("-o", f"pythonpath={path}", "-p", "no:cacheprovider", "tests")
    ended.assert_outcomes(passed=1)


def test_d2_a_module_that_is_reached_by_two_names_is_one_agent(tmp_path: Path) -> None:
    project(tmp_path, SHOP)
    write(tmp_path / "shop/agents/seller.py", DECLARES.format(imports="from shop.models import NAME"))
    write(tmp_path / "shop/agents/zebra.py", "from shop.agents.seller import agent")
    paths = ["shop/agents", "shop.agents.seller", "shop/agents/seller.py", "shop.agents.zebra:agent"]
    assert run(tmp_path, FIND, *paths) == "seller"
    assert run(tmp_path, FIND, *reversed(paths)) == "seller"


def test_d2_a_file_that_was_imported_under_another_name_before_is_one_agent(tmp_path: Path) -> None:
    project(tmp_path, {"robots/writer.py": "from runtime import Agent\nagent = Agent('writer')"})
    write(tmp_path / "robots/zebra.py", "import sys\nsys.path.insert(0, 'robots')\nfrom writer import agent")
    assert run(tmp_path, FIND, "robots", "robots.writer") == "writer"


class Odd(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("import sys; sys.exit()", "SystemExit"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise BaseException('odd')", "BaseException: odd"),
        (
            "from tests.agent.test_discovery import Odd; raise Odd",
            "Odd: .*no text: __str__ raised ValueError",
        ),
        ("import json; json.loads('{')", "JSONDecodeError"),
        ("from runtime import Agent; Agent('a b')", "DeclarationError"),
        ("from runtime import Agent; Agent('a').on('task.x', retry=3)", "DeclarationError"),
        ("this is no Python", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("is_package", [False, True])
def test_d3_whatever_an_import_raises_is_an_error_with_its_line(
    tmp_path: Path, line: str, words: str, is_package: bool
) -> None:
    broken = write(
        tmp_path / "agents" / ("__init__.py" if is_package else "broken.py"), f"NAME = 1\n{line}\n"
    )
    write(tmp_path / "agents" / "writer.py", "")
    with pytest.raises(DiscoveryError, match=rf"cannot be imported: .*{broken.name}:2: {words}"):
        discover([tmp_path / "agents"])


def test_d3_a_folder_is_looked_through_without_what_is_no_agent(tmp_path: Path) -> None:
    for name in ("setup", "conftest", "noxfile", "test_writer", "writer_test", "_own"):
        write(tmp_path / f"{name}.py", "raise SystemExit('it was run')")
    write_agent(tmp_path / "writer.py", "writer")
    assert names(tmp_path) == ["writer"]


def test_d3_agents_in_folders_within_are_hinted_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place in ("agents", "more/deep", "tests", ".venv/x", "node_modules/y"):
        write_agent(tmp_path / place / "writer.py", "writer")
    write(tmp_path / "words" / "words.py", "STOP = {'the'}")
    with pytest.raises(
        DiscoveryError, match=r"holds no agent.*only if they are named, too: agents, more/deep\.$"
    ):
        discover([tmp_path])
    write_agent(tmp_path / "main.py", "main")
    with caplog.at_level(logging.WARNING):
        assert names(tmp_path) == names(tmp_path) == ["main"]
    assert [each.getMessage().partition(": ")[2] for each in caplog.records] == [
        "Folders within it are searched only if they are named, too: agents, more/deep."
    ]


@pytest.mark.parametrize(
    ("helper", "place", "words"),
    [
        ("import os\n\nraise ValueError('no')\n", "helpers.py:3", "ValueError: no"),
        ("import json\n\nTABLE = json.loads('{')\n", "helpers.py:3", "JSONDecodeError: "),
        ("import os\nfrom .writer import late\n", "helpers.py:2", "ImportError: .*circular import"),
        ("def f(:\n", "helpers.py:1", "SyntaxError: "),
        ("raise ExceptionGroup('several', [KeyError('x'), ValueError('y')])\n", "helpers.py:1", ".*ValueError: y"),
        (
            "class Odd(BaseException):\n"
            "    def __str__(self):\n"
            "        raise SystemExit(3)\n"
            "    __class__ = __traceback__ = property(__str__)\n"
            "raise Odd\n",
            "helpers.py:5",
            "Odd: ",
        ),
    ],
    ids=["raises", "library", "circle", "syntax", "group", "odd"],
)  # fmt: skip
@pytest.mark.parametrize("is_installed", [False, True], ids=["own", "installed"])
def test_h8_an_import_error_of_what_a_file_imports_names_its_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    helper: str,
    place: str,
    words: str,
    is_installed: bool,
) -> None:
    name = f"shop_{tmp_path.name.replace('-', '_')}"
    write(tmp_path / name / "__init__.py", "")
    (tmp_path / name / "helpers.py").write_text(helper)
    writer = write(tmp_path / name / "writer.py", "from . import helpers\nlate = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    if is_installed:
        monkeypatch.setattr(tracebacks, "_LIBRARIES", (*tracebacks._LIBRARIES, f"{tmp_path}{os.sep}"))
    expected = rf"cannot be imported: .*{re.escape(place)}: {words}"
    with pytest.raises(DiscoveryError, match=expected):
        discover([f"{name}.writer" if is_installed else writer])
