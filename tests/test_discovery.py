"""Discovery: files, folders and modules become agents, and what cannot be found says why."""

import sys
import textwrap
from pathlib import Path

import pytest

from runtime.discovery import discover
from runtime.errors import DiscoveryError


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
    assert "agents" not in sys.modules


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
    with pytest.raises(DiscoveryError, match="Python files looked at: 1"):
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
