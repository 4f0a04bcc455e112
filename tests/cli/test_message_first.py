"""Does a reader of `runtime dev` see every message before what became of it?"""

from typing import Any

import anyio
import pytest

from runtime import Message
from runtime.cli.message_first import AttemptPipe, AttemptTeller, MessageFirst

pytestmark = pytest.mark.anyio


async def find(number: int) -> Message[Any] | None:
    """The messages that can be read: those with an odd id."""
    return Message(number, "note.found", None) if number % 2 else None


async def test_a_line_waits_for_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    lines = MessageFirst(as_json=False)
    pipe = AttemptPipe(lines.tell)
    tell = AttemptTeller(pipe.number)
    for number in (1, 2, 3, 0):
        tell(number, f"end of {number}\n")
    pipe.take()
    assert capsys.readouterr().out == "end of 0\n"
    lines.show(Message(1, "note.found", None))
    first, second = capsys.readouterr().out.splitlines()
    assert ("#1 " in first, second) == (True, "end of 1")
    # The stream has a message that it does not show, and has no more of another one.
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lines.find_late, find)
            while lines.is_holding:
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    alone, read, last = capsys.readouterr().out.splitlines()
    assert (alone, "#3 " in read, last) == ("end of 2", True, "end of 3")
    # A message is printed once, and a later attempt at once.
    lines.show(Message(3, "note.found", None))
    tell(3, "again\n")
    tell(4, "never\n")
    pipe.take()
    assert capsys.readouterr().out == "again\n"
    lines.give_up()
    assert capsys.readouterr().out == "never\n"
    pipe.close()
