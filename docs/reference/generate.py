"""Fills the reference's marks from the code itself: commands, settings and SQL functions cannot go stale.

A hook of MkDocs (`hooks` in mkdocs.yml): a page says `<!-- generate: commands -->`, and gets the text in its place.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo

from runtime.cli import COMMANDS, help, load
from runtime.local.migrations import migrations_folder
from runtime.settings import Settings

_MARK = re.compile(r"<!-- generate: (\w+) -->")
_FUNCTION = re.compile(
    r"create(?: or replace)? function (public\.stream_\w+)\((.*?)\)\s*returns (.*?)\nlanguage", re.S
)
_COMMENT = re.compile(r"comment on function (public\.stream_\w+)\([^)]*\) is\s*'((?:[^']|'')*)'", re.S)
_COLUMN = re.compile(r"comment on column public\.consciousness_stream\.(\w+) is\s*'((?:[^']|'')*)'", re.S)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the generated texts in the place of their marks, and let narrow screens break long names in tables."""
    filled = _MARK.sub(lambda mark: "\n".join(GENERATORS[mark[1]]()), markdown)
    return re.sub(r"^\| `(?:[A-Z]+_|\w+/).*$", lambda row: _breakable(row[0]), filled, flags=re.MULTILINE)


def _breakable(text: str) -> str:
    """Variables and paths as code that a narrow screen may break behind an underscore or a slash."""
    return re.sub(
        r"`([A-Z]+_[A-Z_]+|\w+/[\w/.]*)`", lambda name: f"<code>{_with_breaks(name[1])}</code>", text
    )


def _with_breaks(name: str) -> str:
    return re.sub(r"([_/])(?=.)", r"\1<wbr>", name)


def commands() -> Iterator[str]:
    """Every command with its arguments and options."""
    for name, text in COMMANDS.items():
        yield from _command(load(name), f"runtime {name}", text, depth=2)


def _command(command: Any, path: str, text: str, depth: int) -> Iterator[str]:
    context = command.make_context(path, [], resilient_parsing=True)
    yield f"{'#' * depth} `{path}`\n"
    yield from (f"{_prose(each)}\n" for each in help.paragraphs(command.help or text))
    yield f"```text\n{help.usage(command, context)}\n```\n"
    yield "| | |\n|---|---|"
    for name, about in [*help.arguments(command), *help.options(command, context)]:
        yield f"| `{_cell(name)}` | {_cell(html.escape(about, quote=False))} |"
    yield ""
    for name, each in getattr(command, "commands", {}).items():
        if not each.hidden:
            yield from _command(each, f"{path} {name}", each.help or "", depth + 1)


def settings() -> Iterator[str]:
    """The table of settings, as the page on settings holds it: people read that page on GitHub too."""
    yield "| variable | default | means |\n|---|---|---|"
    for name, setting in Settings.model_fields.items():
        variables = ", ".join(f"`{variable}`" for variable in variables_of(name, setting))
        described = html.escape(setting.description or "", quote=False)
        yield f"| {variables} | {default_of(setting.default)} | {described} |"


def variables_of(name: str, setting: FieldInfo) -> list[str]:
    """The names of a setting in the environment."""
    alias = setting.validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [f"{Settings.model_config['env_prefix']}{name}".upper()]


def default_of(value: Any) -> str:
    """A default as one would write it into the environment."""
    if value is None or value == "" or isinstance(value, SecretStr):
        return ""
    text = (
        str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
    )
    return f"`{text}`"


def columns() -> Iterator[str]:
    """The columns of the stream that have a comment."""
    yield "| column | |\n|---|---|"
    for name, comment in _COLUMN.findall(_sql()):
        yield f"| `{name}` | {_cell(_unquoted(comment))} |"


def functions() -> Iterator[str]:
    """The functions by name, as they are after the last migration."""
    sql = _sql()
    comments = {name: _unquoted(text) for name, text in _COMMENT.findall(sql)}
    last = {name: (arguments, answer) for name, arguments, answer in _FUNCTION.findall(sql)}
    for name, (arguments, answer) in sorted(last.items()):
        short = name.removeprefix("public.")
        listed = [argument.strip() for argument in re.split(r",(?![^(]*\))", re.sub(r"--.*", "", arguments))]
        shown = ",\n    ".join(argument for argument in listed if argument)
        inner = f"\n    {shown}\n" if shown else ""
        yield f"## `{short}`\n\n{_prose(comments[name])}\n"
        yield f"```text\n{short}({inner}) returns {' '.join(answer.split())}\n```\n"


def _sql() -> str:
    """All migrations, in their order."""
    folder: Path = migrations_folder()
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.sql")))


def _unquoted(text: str) -> str:
    return " ".join(text.replace("''", "'").split())


def _prose(text: str) -> str:
    """Plain text as Markdown: nothing in it is markup."""
    return re.sub(r"([*_<\[])", r"\\\1", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


GENERATORS = {"commands": commands, "settings": settings, "columns": columns, "functions": functions}
