"""Can a person read what `runtime run` prints, however fast the agents are?"""

import anyio
import pytest

from runtime import Agent, Message
from runtime.cli.attempts import AttemptLines
from runtime.store import Delivery, Report
from runtime.worker.execution.attempt import Attempt

pytestmark = pytest.mark.anyio

agent = Agent("writer")


@agent.on("note.found")
async def draft(note: object) -> None:
    """Never called here."""


def attempt(number: int, outcome: str | None = None) -> Attempt:
    delivery = Delivery(1, Message(number, "note.found", None), "lease")
    return Attempt(agent.handlers[0], delivery, 0.0, Report(delivery, 0.001, outcome))  # type: ignore[arg-type]


async def test_a_flood_is_counted_instead_of_printed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = AttemptLines()
    for number in range(500):
        lines(attempt(number, "failed" if number % 100 == 99 else None))
    lines.flush()
    printed = capsys.readouterr().out.splitlines()
    single = [line for line in printed if "note.found" in line]
    # One second may have passed into the next.
    assert 40 <= len(single) <= 80
    counted = sum(int(word.replace(",", "")) for line in printed if line not in single
                  for word in line.split() if word.replace(",", "").isdigit())  # fmt: skip
    assert len(single) + counted == 500
    assert any("writer.draft" in line and "failed" in line for line in printed if line not in single)


async def test_a_count_is_printed_though_nothing_comes_any_more(capsys: pytest.CaptureFixture[str]) -> None:
    lines = AttemptLines()
    for number in range(90):
        lines(attempt(number))
    printed = ""
    with anyio.fail_after(60):
        while "… and writer.draft" not in printed:
            printed += capsys.readouterr().out
            await anyio.sleep(0.01)
