"""The output of commands: results on stdout, everything else on stderr."""

import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from runtime.agent.handler import Handler
from runtime.broadcast import Broadcast
from runtime.cli.tables import Rows, on_one_line
from runtime.cli.times import clock
from runtime.connection.environment import environment
from runtime.encoding.json import decode, encode, legible
from runtime.encoding.printable import printable
from runtime.extras import needing
from runtime.message import PRIORITIES, Message, Priority
from runtime.worker.execution.log_context import of_attempt
from runtime.worker.execution.loggers import steady

_ENDLESS: Final = 1 << 20
# A terminal in which columns would leave no room for the last one.
_NARROW: Final = 60


class Terminal(Console):
    """A console that prints foreign text literally: escape sequences and markup have no effect.

    Nothing is cut or wrapped but at the edge of a terminal: a file or pipe has none.
    """

    _is_json = False

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, stderr=stderr)

    @property
    def is_json(self) -> bool:
        """Whether each print is a line of the JSON log; then no spinner and no bar is drawn."""
        return self._is_json

    @is_json.setter
    def is_json(self, is_json: bool) -> None:
        # Rich draws nothing on a quiet console.
        self._is_json = self.quiet = is_json

    @property
    def is_terminal(self) -> bool:
        """Whether a person watches; a spinner would take over the streams that the JSON lines go to."""
        return super().is_terminal and not self._is_json

    @property
    def size(self) -> ConsoleDimensions:
        """The columns and lines there are."""
        found = super().size
        return found if self.is_terminal else ConsoleDimensions(_ENDLESS, found.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        raise NotImplementedError

    def on_broken_pipe(self) -> None:
        """Raise the error again, for the command to handle; Rich itself would end the process with code 1."""
        raise

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; the further lines of a text are indented, so that none looks like a line of its own."""
        if self._is_json:
            print_note(" ".join(map(str, objects)).strip(), _level_of(str(options.get("style") or "")))
            return
        super().print(*(_set_in(each) if isinstance(each, str) else each for each in objects), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, with control characters escaped."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text == "\n" or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable_lines(segment.text), segment.style)


def _set_in(text: str) -> str:
    body = text.strip("\n")
    return text.replace(body, printable_lines(body, "  ")) if "\n" in body else text


out = Terminal()
err = Terminal(stderr=True)

# For the lines of a traceback, so that none looks like a line of the log.
_INDENT = "    "
_LEVEL_STYLES = {"DEBUG": "dim", "INFO": "", "WARNING": "yellow", "ERROR": "bold red", "CRITICAL": "bold red"}


def print_line(line: Text) -> None:
    """Print one line: cut at the edge of a terminal, whole into a file or pipe."""
    out.print(on_one_line(line), no_wrap=True, overflow="ellipsis")


def printed_line(line: Text) -> str:
    """Return what `print_line` would print, with its end."""
    with out.capture() as printed:
        print_line(line)
    return printed.get()


def print_json(data: Any, *, indent: int | None = None) -> None:
    """Print one JSON text at once: on a line of its own, or indented."""
    sys.stdout.write(json_text(data, indent=indent) + "\n")
    sys.stdout.flush()


def json_text(data: Any, *, indent: int | None = None) -> str:
    """Return data as JSON text without unprintable characters: on one line, or indented."""
    text = json.dumps(data, ensure_ascii=False, default=_plain, indent=indent)
    if not text.isprintable():
        # Unprintable characters occur only within JSON strings, which have escapes for them.
        text = "".join(
            each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text
        )
    return text


def print_found(
    found: Sequence[dict[str, Any]], *, as_json: bool, table: Callable[[Any], Rows], nothing: str
) -> None:
    """Print the rows as JSON lines or as a table; if there are none, say so on stderr."""
    if as_json:
        for each in found:
            print_json(each)
    elif found:
        out.print(table(found))
    else:
        err.print(nothing, style="dim")


def plain(text: str | None) -> str:
    """Return the text on one line, with control characters escaped."""
    return printable(text or "")


def printable_lines(text: str, indent: str = "") -> str:
    """Return the text with control characters escaped and its lines kept; those after the first are indented."""
    return f"\n{indent}".join(printable(line) for line in text.split("\n"))


def message_line(message: Message[Any]) -> Text:
    """Return one message on one line."""
    return line_of(
        (clock(message.created_at), 8, "dim"),
        (f"#{message.id}", 7, "cyan"),
        (message.key, 20, "bold"),
        (plain(message.agent) or "-", 12, "magenta"),
        (plain(legible(message.value)), 0, ""),
    )


def line_of(*parts: tuple[str, int, str]) -> Text:
    """Return the parts, each with its width and style, on one line; without the widths in a narrow terminal."""
    is_narrow = out.width < _NARROW
    line = Text()
    for text, width, style in parts:
        line.append("  " if line and not is_narrow else " " if line else "")
        line.append(text if is_narrow else f"{text:<{width}}", style)
    line.rstrip()
    return line


def message_json(message: Message[Any]) -> dict[str, Any]:
    """Return one message as JSON data, under the names of the table's columns."""
    # Not asdict, which copies the value, level by level.
    return with_words(
        {each.name: getattr(message, each.name) for each in fields(message) if each.name != "attempt"}
    )


def with_words(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message's columns with its priority as the word that `runtime send --priority` takes."""
    priority = PRIORITIES.get(message.get("priority", Priority.NORMAL))
    return message if priority is None else {**message, "priority": priority.name.lower()}


def print_message(message: Message[Any], *, as_json: bool) -> None:
    """Print one message."""
    if as_json:
        print_json(message_json(message))
    else:
        print_line(message_line(message))


def print_broadcast(broadcast: Broadcast[Any], *, as_json: bool) -> None:
    """Print one broadcast: its sender numbers it, and its time is now."""
    if as_json:
        print_json({each.name: getattr(broadcast, each.name) for each in fields(broadcast)})
        return
    print_line(
        line_of(
            (f"{datetime.now():%H:%M:%S}", 8, "dim"),
            (f"~{broadcast.number}", 7, "dim"),
            (broadcast.key, 20, "bold"),
            (plain(broadcast.agent) or "-", 12, "magenta"),
            (plain(legible(broadcast.value)), 0, ""),
        )
    )


def print_handlers(handlers: Iterable[Handler]) -> None:
    """Print which handler runs for which keys, on stderr."""
    for handler in handlers:
        err.print(f"{handler.name} for {', '.join(handler.patterns)}", style="dim", soft_wrap=True)


def print_note(text: str, level: int = logging.INFO, logger: str = "runtime.cli") -> None:
    """Print what a command says beside its results on stderr, as a line of the JSON log."""
    record = logging.makeLogRecord(
        {"name": logger, "levelno": level, "levelname": logging.getLevelName(level), "msg": text}
    )
    sys.stderr.write(_JsonFormatter().format(record) + "\n")
    sys.stderr.flush()


def print_last_words(text: str) -> None:
    """Print why the process ends now; it takes no lock of the log or of Rich, which a dead thread may hold."""
    if err.is_json:
        print_note(text, logging.WARNING)
    else:
        sys.stderr.write(f"{text}.\n")


def _level_of(style: str) -> int:
    """Return the level of a text printed in a style."""
    return logging.ERROR if "red" in style else logging.WARNING if "yellow" in style else logging.INFO


def start_logs(level: str, *, as_json: bool) -> None:
    """Send the log to stderr, and with it what the command says there: lines for people, or JSON lines."""
    handler: logging.Handler
    err.is_json = as_json
    logging.captureWarnings(as_json)
    if as_json:
        handler = logging.StreamHandler()
        handler.setFormatter(_JsonFormatter())
    else:
        handler = _Lines()
    handler.addFilter(of_attempt)
    root = logging.getLogger()
    root.handlers = [handler]
    # Only warnings of libraries: their lower levels may hold URLs and headers.
    root.setLevel(logging.WARNING)
    logging.getLogger("runtime").setLevel(level.upper())
    steady()


def begin_log(*, as_json: bool) -> None:
    """Start the log in its form before the settings are read: their warnings belong to it."""
    form = environment().get("RUNTIME_LOG_FORMAT", "auto").lower()
    start_logs("warning", as_json=as_json or logs_are_json(form))


def export_telemetry() -> None:
    """Send spans and metrics where the variables `OTEL_…` say, and name the current span in each log record.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """
    with needing("RUNTIME_TELEMETRY", "otel"):
        from runtime.client.telemetry import current_ids, start_exporting

        start_exporting()

    def correlate(record: logging.LogRecord) -> bool:
        record.__dict__.update(current_ids())
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(correlate)


def logs_are_json(form: str) -> bool:
    """Whether a log in this form (auto, lines or json) is JSON; auto is JSON if stderr is no terminal."""
    return form == "json" or (form == "auto" and not err.is_terminal)


# The attributes of every record; the others are fields of the attempt, or the `extra` of the code that logs.
_RECORD_ATTRIBUTES = {*vars(logging.makeLogRecord({})), "message", "asctime"}


class _JsonFormatter(logging.Formatter):
    """One JSON object per record, with its traceback and its extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        fields = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        taken = _RECORD_ATTRIBUTES | fields.keys()
        fields |= {name: value for name, value in vars(record).items() if name not in taken}
        if record.exc_info:
            fields["exc_info"] = self.formatException(record.exc_info)
        elif record.exc_text:
            fields["exc_info"] = record.exc_text
        if record.stack_info:
            fields["stack_info"] = self.formatStack(record.stack_info)
        return json.dumps(fields, default=str, skipkeys=True)


class _Lines(logging.Handler):
    """One line per record on stderr, in colour on a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record."""
        try:
            line = Text.assemble(
                (f"{datetime.fromtimestamp(record.created):%H:%M:%S}", "dim"),
                "  ",
                (f"{record.levelname.lower():<8}", _LEVEL_STYLES.get(record.levelname, "")),
                (plain(_attempt_of(record)), "dim"),
                # On one line: no text of a handler's error looks like a line of its own.
                plain(record.getMessage()),
            )
            err.print(line, soft_wrap=True)
            if record.exc_info and not record.exc_text:
                record.exc_text = logging.Formatter().formatException(record.exc_info)
            if record.exc_text:
                err.print(Text(_INDENT + printable_lines(record.exc_text, _INDENT)), soft_wrap=True)
        except Exception:  # noqa: BLE001 - logging never ends a program; handleError tells of it
            self.handleError(record)


def _attempt_of(record: logging.LogRecord) -> str:
    """Return the attempt of a record in short; nothing for the runtime's own records, whose texts name it."""
    is_own = record.name.startswith("runtime.") and not record.name.startswith("runtime.handlers.")
    if is_own or not hasattr(record, "message_id"):
        return ""
    attempt = getattr(record, "attempt", 1)
    return f"{getattr(record, 'handler', '')} #{record.message_id}{f', attempt {attempt}' * (attempt > 1)}  "


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    return decode(encode(value))
