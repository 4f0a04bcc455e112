"""Names of modules: a file is one module, under its real name, by whichever path it is imported."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Final

# Files that mark the root of a project.
_ROOT_MARKERS: Final = ("pyproject.toml", "setup.py", "setup.cfg", ".git")
_RELATIVE: Final = re.compile(r"^[ \t]*from[ \t]+(\.+)", re.MULTILINE)


def loaded_from(file: Path) -> ModuleType | None:
    """Return the module that is, or is being, loaded from a file; None if there is none."""
    for name, module in list(sys.modules.items()):
        known = getattr(module, "__file__", None)
        # `resolve` asks the file system: only for paths with the same ending.
        is_like = isinstance(known, str) and known.endswith(file.name) and name != "__main__"
        if is_like and Path(str(known)).resolve() == file:
            return module
    return None


def root_of(file: Path) -> Path:
    """Return the folder in which a file's dotted name begins: the one that holds the outermost package.

    A folder of agents is a package also without an `__init__.py`, except the root of a project. So are the folders
    around it, as far as its files reach with `from ..models import …`.
    """
    folder = file.parent
    depth = _depth(folder) if _is_package(folder) or not _is_project(folder) else 0
    while folder.parent != folder and (_is_package(folder) or depth > 0):
        folder, depth = folder.parent, depth - 1
    return folder


def real_name(file: Path) -> str:
    """Return the dotted name of a file's module in its project, such as `agents.writer` or `shop.agents.writer`."""
    return ".".join(file.relative_to(root_of(file)).with_suffix("").parts)


def leads_to(name: str, file: Path) -> bool:
    """Whether importing this name would load this file: another module may have the name, or its package's."""
    importlib.invalidate_caches()
    top, *inner = name.split(".")
    if not inner and any(_RELATIVE.search(_text(each)) for each in file.parent.glob("*.py")):
        # `from .x import …` needs a package around it.
        return False
    try:
        spec = importlib.util.find_spec(top)
        if spec is not None and inner:
            places = {Path(each).resolve() for each in spec.submodule_search_locations or ()}
            # Python makes one package of two folders of one name without an `__init__.py`.
            return places == {root_of(file) / top}
    except (ValueError, ImportError):
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == file


def make_importable(file: Path) -> None:
    """Extend `sys.path` so that a file can import what its project can: from the project's root, `src` and packages.

    Spawned processes inherit the path, so they find the modules by the same names.
    """
    root = root_of(file)
    project = next((each for each in file.parents if _is_project(each)), Path.cwd())
    for folder in (root, project, project / "src", Path.cwd()):
        if str(folder) in sys.path or not folder.is_dir():
            continue
        # The file's own package comes first, as for `python -m`; other folders come after the installed packages.
        is_first = folder == root and _is_package(root / file.relative_to(root).parts[0])
        sys.path.insert(0 if is_first else len(sys.path), str(folder))


def _is_package(folder: Path) -> bool:
    return (folder / "__init__.py").exists()


def _is_project(folder: Path) -> bool:
    return folder == Path.cwd() or any((folder / marker).exists() for marker in _ROOT_MARKERS)


def _depth(folder: Path) -> int:
    """Return how many packages the files of a folder need around them: `from .x import` one, `from ..x` two."""
    dots = [len(found) for file in sorted(folder.glob("*.py")) for found in _RELATIVE.findall(_text(file))]
    return max([1, *dots])


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


class AliasFinder(MetaPathFinder):
    """Imports the files of some folders under their real names when only the last part of the name is given.

    With the folder itself in the path, Python imports `writer` without a package: `from .shared import` would fail in
    it, and the file would be a second module beside `agents.writer`.

    Args:
        folders: in the path.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [str(folder) for folder in folders]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a second name of a module; None for any other name."""
        if "." in fullname:
            return None
        spec = PathFinder.find_spec(fullname, self._folders)
        origin = "" if spec is None or spec.submodule_search_locations else spec.origin or ""
        if not origin.endswith(".py"):
            return None
        file = Path(origin).resolve()
        if loaded_from(file) is None:
            if not _RELATIVE.search(_text(file)) or real_name(file) == fullname:
                return None
            make_importable(file)
            if not leads_to(real_name(file), file):
                return None
        return ModuleSpec(fullname, _AliasLoader(file), origin=origin)


class _AliasLoader(Loader):
    def __init__(self, file: Path) -> None:
        self._file = file

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = loaded_from(self._file) or importlib.import_module(real_name(self._file))
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec
