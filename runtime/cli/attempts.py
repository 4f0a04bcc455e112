"""The lines that `runtime run` prints of attempts: one each, and a count when they come too fast to read."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable

from rich.text import Text

from runtime.cli.output import line_of, printed_line
from runtime.worker.worker import Attempt

_LINES_A_SECOND = 40
_OUTCOME_STYLES = {
    "done": "green",
    "later": "yellow",
    "failed": "yellow",
    "dead": "bold red",
    "undone": "yellow",
}


# Takes the id of a message, or 0, and a line about it, with its end.
Tell = Callable[[int, str], None]


def write(message: int, line: str) -> None:
    """Print a line about an attempt."""
    sys.stdout.write(line)
    sys.stdout.flush()


class AttemptLines:
    """An observer that prints attempts as they end; above forty lines a second it counts them, and prints the count.

    Args:
        tell: prints a line.
    """

    def __init__(self, tell: Tell = write) -> None:
        self._tell = tell
        self._second = 0
        self._printed = 0
        self._counted: Counter[tuple[str, str]] = Counter()

    def __call__(self, attempt: Attempt) -> None:
        """Print the attempt, or count it. Called on a running loop."""
        second = int(time.monotonic())
        if second != self._second:
            self.flush()
            self._second, self._printed = second, 0
        if self._printed < _LINES_A_SECOND:
            self._printed += 1
            self._tell(attempt.delivery.message.id, printed_line(_line(attempt)))
            return
        if not self._counted:
            # This may be the last attempt: print it even if no other one follows.
            asyncio.get_running_loop().call_later(1.0, self.flush)
        self._counted[attempt.handler.name, attempt.report.outcome or "done"] += 1

    def flush(self) -> None:
        """Print the count of the attempts that were not printed."""
        if self._counted:
            counts = [
                Text.assemble(f"{handler} {count:,} ", (outcome, _OUTCOME_STYLES.get(outcome, "")))
                for (handler, outcome), count in sorted(self._counted.items())
            ]
            self._tell(0, printed_line(Text("… and ", style="dim").append_text(Text(", ").join(counts))))
            self._counted.clear()


def _line(attempt: Attempt) -> Text:
    message, report = attempt.delivery.message, attempt.report
    outcome = report.outcome or "done"
    line = line_of(
        (f"#{message.id}", 7, "cyan"),
        (message.key, 20, "bold"),
        (attempt.handler.name, 24, ""),
        (outcome, 6, _OUTCOME_STYLES.get(outcome, "")),
        (milliseconds(report.seconds), 0, "dim"),
    )
    if message.attempt > 1:
        line.append(f"  attempt {message.attempt}", style="yellow")
    return line


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds in a fixed width."""
    return f"{seconds * 1000:8.1f} ms"
