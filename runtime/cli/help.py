"""The help of every command: usage, purpose, arguments, options and commands, as plain text.

Not Typer's own: its boxes leave no room for the texts in a narrow terminal, and it names Python's types.
"""

import inspect
import shutil
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from textwrap import TextWrapper
from typing import Any, Final

_WIDEST: Final = 100
# A narrower terminal gets the text about a name below the name.
_NARROW: Final = 60
_NAMES: Final = 28

Entry = tuple[str, str]


def choices(values: type[Enum]) -> str:
    """Return the values to choose from, as they stand for an option's value."""
    return "|".join(str(each.value) for each in values)


def usage(command: Any, context: Any) -> str:
    """Return the usage of a command in one line, without the word usage."""
    arguments = [_argument(each) for each in command.params if each.param_type_name == "argument"]
    of_group = ["COMMAND ..."] if hasattr(command, "commands") else []
    return " ".join([context.command_path, "[OPTIONS]", *arguments, *of_group])


def arguments(command: Any) -> list[Entry]:
    """Return the arguments of a command, each with what it means."""
    found = [each for each in command.params if each.param_type_name == "argument" and not each.hidden]
    return [(_argument(each).strip("[]."), _meaning(each)) for each in found if each.help]


def options(command: Any, context: Any) -> list[Entry]:
    """Return the options of a command, each with what it means and its default."""
    found = [each for each in command.get_params(context) if each.param_type_name == "option"]
    return [(_option(each), _meaning(each)) for each in found if not each.hidden]


def commands(command: Any) -> list[Entry]:
    """Return the commands of a group, each with its purpose."""
    return [
        (name, each.short_help or paragraphs(each.help)[0].split("; ")[0].rstrip(".") + ".")
        for name, each in getattr(command, "commands", {}).items()
        if not each.hidden
    ]


def paragraphs(text: str | None) -> list[str]:
    """Return the paragraphs of a docstring, each on one line."""
    return [" ".join(each.split()) for each in inspect.cleandoc(text or "").split("\n\n")]


def whole(command: Any, context: Any) -> str:
    """Return the help of a command, for a terminal as wide as this one."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    return "\n".join(_lines(command, context, width))


def _lines(command: Any, context: Any, width: int) -> Iterator[str]:
    yield from _wrapped(f"Usage: {usage(command, context)}", width, "", " " * 4)
    for each in paragraphs(command.help):
        yield ""
        yield from _wrapped(each, width)
    parts = {
        "Arguments": arguments(command),
        "Options": options(command, context),
    }
    for title, entries in parts.items():
        if entries:
            yield ""
            yield f"{title}:"
            yield from _entries(entries, width)
    entries = commands(command)
    for title, names in (
        getattr(command, "sections", {}) or {"Commands": [name for name, _ in entries]}
    ).items():
        if entries:
            yield ""
            yield f"{title}:"
            # All sections have the column of the longest name.
            yield from _entries([each for each in entries if each[0] in names], width, among=entries)
    if command.epilog:
        yield ""
        yield from _wrapped(command.epilog, width)


def _entries(entries: Sequence[Entry], width: int, *, among: Sequence[Entry] = ()) -> Iterator[str]:
    names = [name for name, _ in among or entries if len(name) <= _NAMES]
    column = 4 if width < _NARROW else max(map(len, names), default=0) + 4
    for name, meaning in entries:
        if width < _NARROW or len(name) > _NAMES:
            yield from _wrapped(name, width, "  ", " " * 6)
            yield from _wrapped(meaning, width, " " * (column + 2 if width < _NARROW else column))
        else:
            yield from _wrapped(meaning, width, f"  {name:<{column - 2}}", " " * column)


def _wrapped(text: str, width: int, first: str = "", further: str | None = None) -> Iterable[str]:
    wrapper = TextWrapper(
        width, initial_indent=first, subsequent_indent=first if further is None else further,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return wrapper.wrap(text) or [first.rstrip()]


def _argument(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).strip("[].…")
    several = "..." if argument.nargs != 1 else ""
    return f"{name}{several}" if argument.required else f"[{name}]{several}"


def _option(option: Any) -> str:
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        names += f" / {', '.join(option.secondary_opts)}"
    return names if option.is_flag else f"{names} {option.metavar or names.rpartition('-')[2].upper()}"


def _meaning(parameter: Any) -> str:
    """Return the text about an argument or option, with its default and its variable."""
    notes = []
    if isinstance(parameter.show_default, str):
        notes.append(f"default: {parameter.show_default}")
    elif parameter.show_default and not getattr(parameter, "is_flag", False):
        default = parameter.default
        if default is not None and not callable(default) and default != []:
            notes.append(f"default: {default.value if isinstance(default, Enum) else default}")
    if parameter.envvar:
        notes.append(f"variable: {parameter.envvar}")
    text = " ".join((parameter.help or "").split())
    return f"{text} ({'; '.join(notes)})" if notes else text
