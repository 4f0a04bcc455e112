"""The shape of the package: rooms, sizes, names and the direction of imports."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import runtime

_PACKAGE = Path(runtime.__file__).parent
_ROOMS = {
    "adapters", "agent", "cli", "client", "connection", "dashboard", "encoding", "local", "store", "wakeups",
    "webhooks", "worker",
}  # fmt: skip
_MOST_FILES_AT_THE_TOP = 15
_MOST_LINES = 400
# A file that is longer for now; it may not grow, and no other may be as long.
_LONGER = {"worker/execution/executor.py": 417}
# What a user is to write of their own: the projects that `runtime init` makes.
_TEMPLATES = _PACKAGE / "cli" / "scaffold" / "templates"


def _files() -> Iterator[Path]:
    return (path for path in sorted(_PACKAGE.rglob("*.py")) if _TEMPLATES not in path.parents)


def _module(path: Path) -> str:
    parts = path.relative_to(_PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


_TREES = {_module(path): ast.parse(path.read_text()) for path in _files()}


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Every statement outside of functions, those for type checkers included."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With | ast.ClassDef):
            yield from _statements(
                [part for part in ast.iter_child_nodes(statement) if isinstance(part, ast.stmt)]
            )


def _imports(module: str) -> set[str]:
    """The modules of the package that a module names in its imports."""
    found: set[str] = set()
    for statement in _statements(_TREES[module].body):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            for alias in statement.names:
                name = f"{statement.module}.{alias.name}"
                found.add(name if name in _TREES else statement.module)
    return found & set(_TREES) - {module}


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules of which each reaches every other one (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    circles: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        path.append(module)
        for target in graph[module]:
            if target not in number:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in path:
                low[module] = min(low[module], number[target])
        if low[module] == number[module]:
            group = path[path.index(module) :]
            del path[path.index(module) :]
            if len(group) > 1:
                circles.append(sorted(group))

    for module in graph:
        if module not in number:
            visit(module)
    return circles


def test_no_circle_of_imports() -> None:
    assert _circles({module: _imports(module) for module in _TREES}) == []


def test_each_class_name_stands_for_one_thing() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for module, tree in _TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_the_top_of_the_package_holds_few_files_and_the_rooms() -> None:
    assert len(list(_PACKAGE.glob("*.py"))) <= _MOST_FILES_AT_THE_TOP
    assert {path.parent.name for path in _PACKAGE.glob("*/*.py")} == _ROOMS


def test_no_file_is_long() -> None:
    lengths = {str(path.relative_to(_PACKAGE)): len(path.read_text().splitlines()) for path in _files()}
    assert {name: lines for name, lines in lengths.items() if lines > _LONGER.get(name, _MOST_LINES)} == {}
