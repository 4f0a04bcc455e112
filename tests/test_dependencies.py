"""What the package depends on: declared, without releases that have known holes, and pinned where it runs for us."""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [
    *PROJECT["dependencies"],
    *(each for extra in PROJECT["optional-dependencies"].values() for each in extra),
]
# The first releases without a hole that is known in December 2026.
SOUND = {
    "starlette": (
        1,
        3,
        0,
    ),  # CVE-2026-54282; before it CVE-2026-48710, CVE-2025-62727, CVE-2025-54121, CVE-2024-47874
    "h11": (0, 16, 0),  # CVE-2025-43859
    "jinja2": (3, 1, 6),  # CVE-2025-27516, CVE-2024-56326, CVE-2024-56201
    "python-multipart": (0, 0, 31),  # CVE-2026-53540, CVE-2026-42561, CVE-2026-40347, CVE-2024-53981
    "httpcore": (1, 0, 9),  # the first that takes h11 0.16
    "certifi": (2024, 7, 4),  # CVE-2024-39689
    "pyjwt": (2, 13, 0),  # CVE-2026-48526, CVE-2026-48522 to -48525, CVE-2026-32597
}


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower().replace("_", "-")


@pytest.mark.parametrize("name", SOUND)
def test_s6_no_release_with_a_known_hole_is_admitted(name: str) -> None:
    requirements = [each for each in DECLARED if _name(each) == name]
    assert requirements
    for requirement in requirements:
        found = re.search(r">=([0-9.]+)", requirement)
        assert found is not None
        assert tuple(map(int, found[1].split("."))) >= SOUND[name][: found[1].count(".") + 1]


def _imported(folder: Path) -> dict[str, set[str]]:
    """The files that import a top-level module of others, by its name."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in folder.rglob("*.py"):
        if "templates" in file.parts:  # Files of a new project, which nothing here imports.
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            for name in {each.partition(".")[0] for each in names} - {
                *sys.stdlib_module_names,
                "runtime",
                "",
            }:
                found[name].add(str(file.relative_to(ROOT)))
    return found


def _packages(module: str) -> set[str]:
    """The distributions of a module; that of `supabase` may be hidden by the folder of this name."""
    return {_name(each) for each in (module, *_distributions().get(module, []))}


@cache
def _distributions() -> Mapping[str, list[str]]:
    """The distributions of all modules; reading the lists of files of every package takes a second."""
    return packages_distributions()


def test_s6_whatever_is_imported_is_declared() -> None:
    declared = set(map(_name, DECLARED))
    undeclared = {
        name: files for name, files in _imported(ROOT / "runtime").items() if not _packages(name) & declared
    }
    # What pydantic, typer and the extra of pyjwt bring is theirs.
    assert set(undeclared) <= {"pydantic_core", "click", "pytest", "annotated_types", "cryptography"}, (
        undeclared
    )


def test_s6_whatever_is_required_is_imported_by_a_worker_or_a_command() -> None:
    extras = ("runtime/local/", "runtime/dashboard/", "runtime/cli/newsroom/")
    imported = {
        package
        for name, files in _imported(ROOT / "runtime").items()
        if not all(file.startswith(extras) for file in files)
        for package in _packages(name)
    }
    # The comments in pyproject.toml say what these are for.
    assert set(map(_name, PROJECT["dependencies"])) - imported == {"sniffio", "tzdata"}


def test_s6_actions_are_pinned_by_their_commit() -> None:
    workflows = list((ROOT / ".github/workflows").glob("*.y*ml"))
    assert workflows
    for workflow in workflows:
        for line in workflow.read_text().splitlines():
            if "uses:" in line and "uses: ./" not in line:
                assert re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v[0-9]+\.[0-9]+\.[0-9]+$", line), line
