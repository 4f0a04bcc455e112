"""The end of a command that fails: one line with the cure, and exit code 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from runtime.cli import streams
from runtime.encoding.printable import printable
from runtime.errors import RuntimeFault


class Commands(TyperGroup):
    """A group of commands; an error of the runtime is one line, any other one is a bug and keeps its traceback."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the arguments, which `--help` and `--version` answer at once.

        Raises:
            typer.Exit: with code 0, if the reader of the output has left.
        """
        with _quiet_without_reader():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was called.

        Raises:
            typer.Exit: with code 1, after an error was printed.
        """
        try:
            with _quiet_without_reader():
                return super().invoke(ctx)
        except RuntimeFault as error:
            _tell(str(error))
            raise typer.Exit(1) from None
        except BaseExceptionGroup as group:
            faults, others = group.split(RuntimeFault)
            if faults is None or others is not None:
                raise
            for text in dict.fromkeys(str(error) for error in _leaves(faults)):
                _tell(text)
            raise typer.Exit(1) from None


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


def _tell(text: str) -> None:
    """Print an error; its text may hold foreign text of a server, a file or a row."""
    typer.echo("Error: " + "\n  ".join(printable(line) for line in text.split("\n")), err=True)


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    """Return the errors in a group, at any depth."""
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
