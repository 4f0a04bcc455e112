"""Declarations that make no sense, as a person makes them: each is told with its line and its cure."""

import textwrap
from pathlib import Path

import pytest

from runtime.agent.discovery import discover
from runtime.errors import DiscoveryError
from tests.agent.test_discovery import own_modules  # noqa: F401 - a fixture for all tests here

HEAD = "from runtime import Agent, Retry\nagent = Agent('a')\n"


def said(folder: Path, body: str, *, head: str = HEAD, file: str = "shop.py") -> str:
    (folder / file).write_text(head + textwrap.dedent(body))
    with pytest.raises(DiscoveryError) as caught:
        discover([folder / file])
    text = str(caught.value)
    assert "runtime_found_" not in text
    return text.replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("declaration", "words"),
    [
        ("@agent.on('k')\nasync def f(x: Foo): ...", ["shop.py:4", "name 'Foo' is not defined"]),
        ("@agent.on('key with spaces')\nasync def f(x): ...", ["shop.py:3", "A pattern is a key of"]),
        ("@agent.on('k', emits='no key')\nasync def f(x): ...", ["shop.py:3", "A key is 1 to 8 segments"]),
        ("@agent.on('k', emit='o')\nasync def f(x): ...", ["shop.py:3", "no emit=…; did you mean emits?"]),
        ("@agent.every('5m', timout=3)\nasync def f(): ...", ["shop.py:3", "did you mean timeout?"]),
        (
            "@agent.on('k', retry=Retry(attempt=3))\nasync def f(x): ...",
            ["shop.py:3", "did you mean attempts?"],
        ),
        (
            "@agent.on('k', retry=Retry(first=2))\nasync def f(x): ...",
            ["shop.py:3", "Retry(…) takes no first=…; did you mean first_seconds?"],
        ),
        (
            "other = Agent('b', concurency=3)",
            ["shop.py:3", "Agent(…) takes no concurency=…", "concurrency=… is an option of @agent.on(…)"],
        ),
        (
            "agent.post('k', to='https://x.test', secrets='X')",
            ["shop.py:3", "Agent.post(…) takes no secrets=…; did you mean secret?"],
        ),
        (
            "@agent.step(undos=print)\ndef f(): ...",
            ["shop.py:3", "Agent.step(…) takes no undos=…; did you mean undo?"],
        ),
        (
            "from runtime import Source\nshop = Source('shop', keys='x.y')",
            ["shop.py:4", "Source(…) takes no keys=…; did you mean key?"],
        ),
        ("@agent.on('k', timeout='30s')\nasync def f(x): ...", ["shop.py:3", "seconds", "the text '30s'"]),
        ("@agent.cron('0 25 * * *')\nasync def f(): ...", ["shop.py:3", "hour cannot be '25'", "0 to 23"]),
        (
            "@agent.on('k', tool='no name')\nasync def f(x): ...",
            ["shop.py:3", "'refund_order', not 'no name'"],
        ),
        ("@agent.on('k.*', tool='t')\nasync def f(x): ...", ["shop.py:3", "needs a key without wildcards"]),
        ("@agent.on('k', tool='stream_x')\nasync def f(x): ...", ["shop.py:3", "the server's own tools"]),
        ("@agent.on('k', tool='t', deliver='each')\nasync def f(x): ...", ["shop.py:3", "leave tool out"]),
        ("from runtime import Agnt", ["shop.py:3", "did you mean Agent?"]),
    ],
    ids=[
        "annotation",
        "pattern",
        "key",
        "option",
        "timer option",
        "retry option",
        "first part of a retry option",
        "option of an agent",
        "option of a post",
        "option of a step",
        "option of a source",
        "timeout",
        "cron",
        "name of a tool",
        "tool without a key",
        "reserved tool",
        "tool of every process",
        "export",
    ],
)
def test_a_declaration_that_makes_no_sense_is_told_with_its_line(
    tmp_path: Path, declaration: str, words: list[str]
) -> None:
    text = said(tmp_path, declaration)
    assert not [each for each in words if each not in text], text
    # The line is told once.
    assert text.count("shop.py:") == 1


def test_an_import_that_fails_deep_down_is_told_with_each_line_of_the_way(tmp_path: Path) -> None:
    (tmp_path / "menu.py").write_text("import json\n\nMENU = json.loads('{oops')\n")
    (tmp_path / "kitchen.py").write_text("x = 1\nfrom .menu import MENU\n")
    text = said(tmp_path, "from .kitchen import MENU")
    first, *way = text.splitlines()
    assert first.startswith("shop.py cannot be imported: menu.py:3: JSONDecodeError: ")
    assert way == ["imported at kitchen.py:2", "imported at shop.py:3"]


def test_a_circle_of_imports_is_told_with_its_lines(tmp_path: Path) -> None:
    folder = tmp_path / "site-packages-like"
    folder.mkdir()
    (folder / "other.py").write_text("from .shop import agent\n")
    text = said(folder, "agent = 1", head="from .other import agent\n")
    first, *way = text.splitlines()
    assert "other.py:1: ImportError: cannot import name 'agent'" in first
    assert "circular import" in first
    assert way == ["imported at shop.py:1"]
