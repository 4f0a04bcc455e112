"""The agents and sources in the files, folders and modules of a command line."""

import hashlib
import importlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from runtime.agent.agent import Agent
from runtime.agent.modules import leads_to, loaded_from, make_importable, real_name
from runtime.agent.source import Source
from runtime.errors import DiscoveryError, did_you_mean
from runtime.tracebacks import members_of, places_of, text_of, treat_as_own

_log = logging.getLogger("runtime.agent.discovery")
# How many members of an exception group a message lists.
_MEMBERS = 5
_NO_AGENTS = re.compile(r"_.*|setup|conftest|noxfile|toxfile|fabfile|test_.*|.*_test")
_NO_FOLDER_OF_AGENTS = re.compile(r"[._].*|tests?|node_modules|site-packages|build|dist")
_NO_EXPORT = re.compile(r"ImportError: cannot import name '(\w+)' from 'runtime' \(")
_hinted: set[Path] = set()
_CURE = 'Declare one at the top level of a file: agent = Agent("name").'


def discover(paths: Iterable[str | Path]) -> list[Agent]:
    """Return the agents in the paths, in order, each once.

    Args:
        paths: each a Python file, a folder (its `.py` files by name, without those that begin with `_`, tests and build
            scripts), a dotted module such as `shop.agents`, or one agent in a file or module: `shop.agents:writer`.

    Raises:
        DiscoveryError: a path does not exist, cannot be imported or holds no agent, or agents share a name.
    """
    found: dict[str, tuple[Agent, str]] = {}
    for path in paths:
        for agent, place in _agents_of(str(path)):
            known, known_place = found.setdefault(agent.name, (agent, place))
            # A file imported under two names declares the same agent twice.
            if known is not agent and known.place != agent.place:
                raise DiscoveryError(
                    f"Two agents are called {agent.name!r}: one in {known_place}, one in {place}. "
                    "Rename one of them: work that waits in the store is found by this name."
                )
    return [agent for agent, _ in found.values()]


def discover_with_sources(paths: Iterable[str | Path]) -> tuple[list[Agent], list[Source]]:
    """Return the agents and the sources of webhooks in the paths, in order, each once.

    Args:
        paths: as for `discover`; a file may hold sources alone.

    Raises:
        DiscoveryError: as for `discover`, or sources share a name.
    """
    agents: list[str] = []
    found: dict[str, Source] = {}
    for path in map(str, paths):
        modules = _modules_of(path)
        sources = [each for module in modules for each in vars(module).values() if isinstance(each, Source)]
        for source in sources:
            if found.setdefault(source.name, source) is not source:
                raise DiscoveryError(f"Two sources are called {source.name!r}. Rename one of them.")
        if not sources or any(_agents_in(module) for module in modules):
            agents.append(path)
    return discover(agents), list(found.values())


def _modules_of(path: str) -> list[ModuleType]:
    """Return the modules of one path; none for a single agent in a file or module."""
    if path and Path(path).is_dir():
        return [_load_file(file) for file in _files_of(Path(path).resolve())]
    return [] if ":" in path and not Path(path).exists() else [_module(path)]


def _agents_of(path: str) -> list[tuple[Agent, str]]:
    """Return the agents of one path, each with the file it was found in."""
    if path and Path(path).is_dir():
        return _agents_of_folder(Path(path).resolve())
    module_path, colon, name = path.rpartition(":")
    # A path may hold a colon of its own, as drive letters do; what exists is a file first.
    if not colon or Path(path).exists():
        module = _module(path)
        agents = _agents_in(module)
        if not agents:
            raise DiscoveryError(f"{_origin(module)} holds no agent. {_CURE}")
        return agents
    module = _module(module_path)
    agent = getattr(module, name, None)
    if not isinstance(agent, Agent):
        raise DiscoveryError(f"{_origin(module)} has no Agent called {name!r} at its top level.")
    return [(agent, _origin(module))]


def _agents_of_folder(folder: Path) -> list[tuple[Agent, str]]:
    """Return the agents of a folder, whose single files may hold none."""
    files = _files_of(folder)
    agents = [found for file in files for found in _agents_in(_load_file(file))]
    left_out = ", ".join(str(each.relative_to(folder)) for each in _left_out(folder))
    hint = f"Folders within it are searched only if they are named, too: {left_out}."
    if not agents:
        cure = hint if left_out else _CURE
        raise DiscoveryError(f"{folder} holds no agent; Python files searched: {len(files)}. {cure}")
    if left_out and folder not in _hinted:
        _hinted.add(folder)
        _log.warning("%s: %s", folder, hint)
    return agents


def _files_of(folder: Path) -> list[Path]:
    """Return the Python files that may declare agents, without tests and build scripts."""
    return sorted(file for file in folder.glob("*.py") if not _NO_AGENTS.fullmatch(file.stem))


def _left_out(folder: Path) -> list[Path]:
    """Return the folders within a folder whose files seem to declare agents."""
    found: list[Path] = []
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(each for each in inner if not _NO_FOLDER_OF_AGENTS.fullmatch(each))
        inner[:] = [each for each in inner if not (Path(place) / each / "pyvenv.cfg").exists()]
        if Path(place) == folder:
            continue
        files = [Path(place) / name for name in names if name.endswith(".py")]
        if any(_seems_to_declare(file) for file in files if not _NO_AGENTS.fullmatch(file.stem)):
            found.append(Path(place))
    return found


def _seems_to_declare(file: Path) -> bool:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return (
        "runtime" in text and re.search(r"^\w+\s*(:.*)?=\s*(\w+\.)?Agent\(", text, re.MULTILINE) is not None
    )


def _agents_in(module: ModuleType) -> list[tuple[Agent, str]]:
    """Return the agents among a module's names, imported ones too: the caller keeps each once."""
    return [(agent, _origin(module)) for agent in vars(module).values() if isinstance(agent, Agent)]


def _module(path: str) -> ModuleType:
    """Return the module of a file's path or of a dotted name."""
    file = Path(path)
    if file.is_file():
        if file.suffix != ".py":
            raise DiscoveryError(f"{path} is no Python file: its name must end in .py.")
        return _load_file(file.resolve())
    if file.suffix == ".py" or not all(part.isidentifier() for part in path.split(".")):
        raise DiscoveryError(f"{path!r} does not exist: it is no file, no folder and no dotted module name.")
    # The path of an installed command lacks the working directory, which `python -m` adds.
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))
    make_importable(Path.cwd() / "agents.py")
    return _import(path, path)


def _load_file(file: Path) -> ModuleType:
    """Return the module of one file, loading it only once."""
    if "." in file.stem:
        raise DiscoveryError(f"{file} cannot be imported: its name may have no dot except that of .py.")
    if (known := loaded_from(file)) is not None:
        return known
    make_importable(file)
    name = real_name(file)
    # An installed package may have the name of the folder and hide it.
    if not leads_to(name, file):
        name = f"{_package_of(file.parent).__name__}.{file.stem}"
    return _import(name, str(file))


def _package_of(folder: Path) -> ModuleType:
    """Return a package made for a folder, so that its files can import each other: `from .x import …`.

    Its name is a hash of the folder's path, so that it collides with no other.
    """
    name = f"runtime_found_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    init = folder / "__init__.py"
    if init.exists():
        spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
    else:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    assert spec is not None, "a file that ends in .py always has a loader"
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    if spec.loader is not None:
        try:
            spec.loader.exec_module(package)
        except BaseException as error:
            del sys.modules[name]
            raise DiscoveryError(
                f"{init} cannot be imported: {_where(error, name)}{_cause(error)}{_way(error)}"
            ) from error
    return package


def _import(name: str, path: str) -> ModuleType:
    """Import a module by its name; `path` is the user's name of it."""
    # Python caches folder listings, which may lack a file written a moment ago.
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except BaseException as error:
        raise DiscoveryError(
            f"{path} cannot be imported: {_where(error, name)}{_cause(error)}{_hint(error, path)}{_way(error)}"
        ) from error


def _cause(error: BaseException) -> str:
    """Return an error's type and text, and those of a group's members."""
    members = [text_of(each) for each in members_of(error)[:_MEMBERS] if each is not error]
    return ": ".join([text_of(error), *(["; ".join(members)] if members else [])])


def _where(error: BaseException, name: str) -> str:
    """Return the line of the user's own code at which an import failed, in the file or in its imports."""
    if type(error) in (SyntaxError, IndentationError, TabError):
        file, line = error.filename, error.lineno  # type: ignore[attr-defined]
        return f"{file}:{line}: " if file else ""
    try:
        spec = importlib.util.find_spec(name.partition(".")[0])
    except (ValueError, ImportError):
        spec = None
    if spec is not None:
        # A module named on the command line is the user's own, even if it is installed.
        folders = spec.submodule_search_locations
        for place in [os.path.join(each, "") for each in folders] if folders else [spec.origin or ""]:
            treat_as_own(place)
    places = _own_lines(error)
    # Some errors of declarations begin with their place.
    return f"{places[0]}: " if places and places[0] not in text_of(error) else ""


def _way(error: BaseException) -> str:
    """Return the lines of the user's own code that led to the line at which an import failed, one on a line."""
    is_syntax = type(error) in (SyntaxError, IndentationError, TabError)
    return "".join(f"\nimported at {place}" for place in _own_lines(error)[0 if is_syntax else 1 :])


def _own_lines(error: BaseException) -> list[str]:
    return [place.rpartition(" in ")[0] for place in places_of(error, are_own=True)]


def _hint(error: BaseException, path: str) -> str:
    """Return how to import the file beside it that an import missed, or the name that was meant; or nothing."""
    name = error.name if type(error) is ModuleNotFoundError else None
    if name and (Path(path).parent / f"{name}.py").is_file():
        return f". It is a file beside it: write `from .{name} import …`"
    if type(error) is ImportError and (found := _NO_EXPORT.match(text_of(error))) is not None:
        return did_you_mean(found[1], dir(sys.modules["runtime"]))
    return ""


def _origin(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or module.__name__
