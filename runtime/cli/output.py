"""What does a command print, and how? Results go to stdout, everything about them to stderr."""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtime.cli.moments import clock
from runtime.errors import SettingsError
from runtime.loggers import steady
from runtime.logs import of_attempt
from runtime.message import Message, Priority
from runtime.said import Said
from runtime.values import decode, encode, legible

out = Console(highlight=False)
err = Console(highlight=False, stderr=True)

_LEVEL_STYLES = {"DEBUG": "dim", "INFO": "", "WARNING": "yellow", "ERROR": "bold red", "CRITICAL": "bold red"}


def print_line(line: Text) -> None:
    """Print one line: cut at the edge of a terminal, whole into a file or pipe."""
    if out.is_terminal:
        out.print(line, no_wrap=True, overflow="ellipsis")
    else:
        out.print(line, soft_wrap=True)


def print_json(data: Any) -> None:
    """Print one JSON text on a line of its own, at once."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, default=_plain) + "\n")
    sys.stdout.flush()


def print_found(
    found: Sequence[dict[str, Any]], *, as_json: bool, table: Callable[[Any], Table], nothing: str
) -> None:
    """Print what was found: as a JSON line each, as a table, or on stderr that there is nothing."""
    if as_json:
        for each in found:
            print_json(each)
    elif found:
        out.print(table(found))
    else:
        err.print(nothing, style="dim")


def plain(text: str | None) -> str:
    """The text without anything a terminal would obey."""
    return "".join(
        character if character.isprintable() else f"\\x{ord(character):02x}" for character in text or ""
    )


def message_line(message: Message[Any]) -> Text:
    """One message on one line."""
    return Text.assemble(
        (clock(message.created_at), "dim"),
        "  ",
        (f"#{message.id:<6}", "cyan"),
        " ",
        (f"{message.key:<20}", "bold"),
        "  ",
        (f"{plain(message.agent) or '-':<12}", "magenta"),
        "  ",
        legible(message.value),
    )


def message_json(message: Message[Any]) -> dict[str, Any]:
    """One message as JSON data, under the names of the table's columns."""
    # Not asdict, which copies the value, level by level.
    return {each.name: getattr(message, each.name) for each in fields(message) if each.name != "attempt"}


def print_message(message: Message[Any], *, as_json: bool) -> None:
    """Print one message."""
    if as_json:
        print_json(message_json(message))
    else:
        print_line(message_line(message))


def print_said(said: Said[Any], *, as_json: bool) -> None:
    """Print one message that was said and not stored: it has no number, and its time is now."""
    if as_json:
        print_json({each.name: getattr(said, each.name) for each in fields(said)})
        return
    print_line(
        Text.assemble(
            (f"{datetime.now():%H:%M:%S}", "dim"),
            "  ",
            (f"said {said.number:<2}", "dim"),
            " ",
            (f"{said.key:<20}", "bold"),
            "  ",
            (f"{plain(said.agent) or '-':<12}", "magenta"),
            "  ",
            legible(said.value),
        )
    )


def start_logs(level: str, *, as_json: bool) -> None:
    """Send the log to stderr: lines for people, or JSON lines."""
    handler: logging.Handler
    if as_json:
        handler = logging.StreamHandler()
        handler.setFormatter(
            JsonFormatter(
                "{levelname}{name}{message}",
                style="{",
                timestamp=True,
                rename_fields={"levelname": "level", "name": "logger"},
            )
        )
    else:
        handler = _Lines()
    handler.addFilter(of_attempt)
    root = logging.getLogger()
    root.handlers = [handler]
    # Libraries speak up only when something is wrong; their lower levels may hold URLs and headers.
    root.setLevel(logging.WARNING)
    logging.getLogger("runtime").setLevel(level.upper())
    steady()


def export_telemetry() -> None:
    """Send spans and metrics where the variables `OTEL_…` say, and name the current span in each log record.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """
    try:
        from runtime.telemetry import current_ids, start_exporting

        start_exporting()
    except ImportError as error:
        raise SettingsError(
            f"RUNTIME_TELEMETRY is set, and OpenTelemetry is not there ({error.name}): "
            'pip install "agent-runtime[otel]".'
        ) from None

    def correlate(record: logging.LogRecord) -> bool:
        record.__dict__.update(current_ids())
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(correlate)


def logs_are_json(form: str) -> bool:
    """Whether a log in this form (auto, lines or json) is JSON: by itself, where nobody reads it at a terminal."""
    return form == "json" or (form == "auto" and not err.is_terminal)


class _Lines(logging.Handler):
    """One line per record on stderr, coloured where that is wanted."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record."""
        try:
            line = Text.assemble(
                (f"{datetime.fromtimestamp(record.created):%H:%M:%S}", "dim"),
                "  ",
                (f"{record.levelname.lower():<8}", _LEVEL_STYLES.get(record.levelname, "")),
                (_attempt_of(record), "dim"),
                record.getMessage(),
            )
            err.print(line, soft_wrap=True)
            if record.exc_info and not record.exc_text:
                record.exc_text = logging.Formatter().formatException(record.exc_info)
            if record.exc_text:
                err.print(Text(record.exc_text), soft_wrap=True)
        except Exception:  # noqa: BLE001 - logging never ends a program; handleError tells of it
            self.handleError(record)


def _attempt_of(record: logging.LogRecord) -> str:
    """Which attempt a record is from, in short; the runtime's own texts say it themselves."""
    is_own = record.name.startswith("runtime.") and not record.name.startswith("runtime.handlers.")
    if is_own or not hasattr(record, "message_id"):
        return ""
    attempt = getattr(record, "attempt", 1)
    return f"{getattr(record, 'handler', '')} #{record.message_id}{f', attempt {attempt}' * (attempt > 1)}  "


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Priority):
        return int(value)
    return decode(encode(value))
