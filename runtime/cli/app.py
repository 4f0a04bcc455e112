"""The commands and groups of the command line: one form of help, one end of a command that fails."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from runtime.cli import help
from runtime.cli.errors import told

Function = TypeVar("Function", bound=Callable[..., Any])


class Command(TyperCommand):
    """A command with the help of this command line."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        formatter.write(help.whole(self, ctx))

    def get_usage(self, ctx: Any) -> str:
        """Return the usage, as an error of the command line shows it."""
        return f"Usage: {help.usage(self, ctx)}"


class Commands(TyperGroup):
    """A group of commands; an error of the runtime is one line, any other one is a bug and keeps its traceback.

    Attributes:
        sections: the names of its commands by the title they stand under in the help; under one title when empty.
    """

    _as_json = False

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.sections: dict[str, list[str]] = {}

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        formatter.write(help.whole(self, ctx))

    def get_usage(self, ctx: Any) -> str:
        """Return the usage, as an error of the command line shows it."""
        return f"Usage: {help.usage(self, ctx)}"

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Read the arguments, which `--help` and `--version` answer at once.

        Raises:
            typer.Exit: the reader of the output has left, or an error was printed.
        """
        self._as_json = "--json" in args[: args.index("--") if "--" in args else None]
        if self._as_json:
            # Not at the top: it loads Rich, which the list of commands does without.
            from runtime.cli.output import start_logs

            # Until a command starts its own log: warnings of the settings are JSON lines too.
            start_logs("warning", as_json=True)
        elif parent is None and (output := sys.modules.get("runtime.cli.output")) is not None:
            # A command that was called before in this process may have asked for JSON.
            output.err.is_json = False
        with told(as_json=self._as_json):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was called.

        Raises:
            typer.Exit: the reader of the output has left, or an error was printed.
        """
        with told(as_json=self._as_json):
            return super().invoke(ctx)


class App(typer.Typer):
    """An app whose commands are of these classes."""

    def __init__(self, **options: Any) -> None:
        # Without Rich: it loads a Markdown parser, which doubles the time of `--help`.
        defaults = {"cls": Commands, "add_completion": False, "rich_markup_mode": None}
        super().__init__(**{**defaults, "pretty_exceptions_enable": False, **options})

    def command(self, name: str | None = None, **options: Any) -> Callable[[Function], Function]:
        """Return a decorator that makes a function a command."""
        return super().command(name, **{"cls": Command, **options})
