"""The end of a command that fails: one line with the cure, or one JSON object, and the exit code."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import typer

from runtime.cli import streams
from runtime.encoding.printable import printable
from runtime.errors import RuntimeFault
from runtime.tracebacks import trace_of

# The error of a command line that makes no sense, which typer does not export.
UsageError: Final[Any] = typer.BadParameter.__mro__[1]


@contextmanager
def told(*, as_json: bool) -> Iterator[None]:
    """Print an error of the block and end with its exit code: as one line, or as one JSON object.

    Args:
        as_json: whether the command was called with `--json`; without it, and without a log of JSON lines, Typer prints
            what is wrong with the usage, and Python the traceback of a bug.

    Raises:
        typer.Exit: with the error's code after it was printed, or 0 if the reader of the output has left.
    """
    try:
        with _quiet_without_reader():
            yield
    except (typer.Exit, typer.Abort):
        raise
    except UsageError as error:
        if not (as_json or _log_is_json()):
            raise
        _tell(error.format_message(), "UsageError", 2, as_json=True)
    except RuntimeFault as error:
        _tell(str(error), type(error).__name__, 1, as_json=as_json)
    except Exception as error:
        found = _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
        if all(isinstance(each, RuntimeFault) for each in found):
            texts = "\n".join(dict.fromkeys(str(each) for each in found))
            _tell(texts, type(found[0]).__name__, 1, as_json=as_json)
        if not (as_json or _log_is_json()):
            raise
        _tell(str(error), type(error).__name__, 1, as_json=True, traceback=trace_of(error))


@contextmanager
def _quiet_without_reader() -> Iterator[None]:
    """End with code 0 if the reader of the output has left, as `head` does: that is no error."""
    try:
        yield
    except BaseException as error:
        leaves = _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
        # Rich turns a broken pipe into an exit with 1.
        broken = (each.__context__ if isinstance(each, SystemExit) else each for each in leaves)
        if not any(isinstance(each, BrokenPipeError) for each in broken):
            raise
        streams.fall_silent()
        raise typer.Exit(0) from None


def _tell(text: str, kind: str, code: int, *, as_json: bool, traceback: str | None = None) -> NoReturn:
    """Print an error on stderr and end; its text may hold foreign text of a server, a file or a row."""
    if as_json or _log_is_json():
        more = {} if traceback is None else {"traceback": traceback}
        typer.echo(json.dumps({"error": text, "type": kind, "exit_code": code, **more}), err=True)
    else:
        typer.echo("Error: " + "\n  ".join(printable(line) for line in text.split("\n")), err=True)
    raise typer.Exit(code) from None


def _log_is_json() -> bool:
    """Whether the command has begun to write its log as JSON lines, among which an error is one more."""
    output = sys.modules.get("runtime.cli.output")
    return output is not None and bool(output.err.is_json)


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    """Return the errors in a group, at any depth."""
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
