"""The extras of the distribution, and the error that names the one which is missing.

A library of an extra is imported where it is used and nowhere else, so that a worker runs without it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from runtime.errors import SettingsError


@contextmanager
def needing(what: str, *extras: str) -> Iterator[None]:
    """Tell of a library that the imports in this block do not find.

    Of two blocks, one within the other, the outer one is named: a user has called the command, not its modules.

    Args:
        what: the command, setting or module that needs the library: "runtime dashboard".
        extras: the extras that bring it; without any, the block changes no error.

    Raises:
        SettingsError: a library is not installed; the message says which `pip install` brings it.
    """
    try:
        yield
    except (ModuleNotFoundError, SettingsError) as error:
        # The error of an inner block keeps its own as the context.
        missing = error.__context__ if isinstance(error, SettingsError) else error
        name = missing.name if isinstance(missing, ModuleNotFoundError) else None
        # A module of our own that is missing is a bug, which keeps its traceback.
        if not extras or name is None or name.partition(".")[0] == "runtime":
            raise
        raise _missing(what, name, extras) from None


def need(what: str, extra: str, module: str) -> None:
    """Raise the error of `needing` where a module is not there, and import none: another process will.

    Raises:
        SettingsError: the module is not installed.
    """
    try:
        is_there = find_spec(module) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        raise _missing(what, module, (extra,))


def _missing(what: str, module: str, extras: tuple[str, ...]) -> SettingsError:
    return SettingsError(
        f"{what} needs {module.partition('.')[0]}, which is not installed: "
        f'pip install "agent-runtime[{",".join(extras)}]".'
    )
