"""The lines of messages and of attempts in one order: a message first, then what became of it.

`runtime dev` hears of messages from the stream, and its agents' process tells it of attempts through a pipe: two
processes that print on their own would print a fast attempt before the message.
"""

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio

from runtime.cli.output import print_message
from runtime.message import Message

Find = Callable[[int], Awaitable[Message[Any] | None]]

# How long the stream may take to show a message by itself, before the message is read.
_PATIENCE_SECONDS: Final = 1.0
# How many messages are remembered as shown; a later attempt of an older one shows it once more.
_REMEMBERED: Final = 10_000
_CHUNK: Final = 65_536


class MessageFirst:
    """Prints messages as they are heard of, and holds the line of an attempt until its message was printed.

    Args:
        as_json: whether messages are printed as JSON lines.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._shown: OrderedDict[int, None] = OrderedDict()
        self._held: dict[int, list[str]] = {}

    @property
    def is_holding(self) -> bool:
        """Whether lines wait for their messages."""
        return bool(self._held)

    def show(self, message: Message[Any]) -> None:
        """Print a message that was not printed yet, and then the lines that were held for it."""
        if message.id not in self._shown:
            print_message(message, as_json=self._as_json)
            self._shown[message.id] = None
            if len(self._shown) > _REMEMBERED:
                self._shown.popitem(last=False)
        self._print(message.id)

    def tell(self, message: int, line: str) -> None:
        """Print a line, with its end, about an attempt on this message, now or after it; about none at all with 0."""
        self._held.setdefault(message, []).append(line)
        if message == 0 or message in self._shown:
            self._print(message)

    async def find_late(self, find: Find) -> None:
        """Read what the stream does not show, such as messages from before it was listened to; never returns.

        Args:
            find: reads a message by its id.

        Raises:
            StoreError: it cannot be read.
        """
        while True:
            waiting = set(self._held)
            await anyio.sleep(_PATIENCE_SECONDS)
            await self.find(find, waiting & self._held.keys())

    async def find(self, find: Find, ids: set[int] | None = None) -> None:
        """Read the messages of these ids, by default of all lines that are held, and print message and lines.

        Raises:
            StoreError: one cannot be read.
        """
        for message_id in sorted(self._held if ids is None else ids):
            message = await find(message_id)
            if message is None:
                self._print(message_id)
            elif message_id in self._held:
                self.show(message)

    def give_up(self) -> None:
        """Print every line that is held: nobody knows when the messages can be read."""
        for message_id in sorted(self._held):
            self._print(message_id)

    def _print(self, message: int) -> None:
        for line in self._held.pop(message, ()):
            sys.stdout.write(line)
        sys.stdout.flush()


class AttemptPipe:
    """The pipe through which the agents' processes tell lines about attempts, one process after the other.

    Args:
        tell: is called with a message's id and the line.

    Attributes:
        number: the descriptor that a process is given.
    """

    def __init__(self, tell: Callable[[int, str], None]) -> None:
        self._tell = tell
        # This process keeps the writing end too, so that the pipe outlives a process of agents.
        self._reading, self.number = os.pipe()
        os.set_blocking(self._reading, False)
        self._rest = b""

    async def listen(self) -> None:
        """Pass on lines until cancelled."""
        while True:
            await anyio.wait_readable(self._reading)
            self.take()

    def take(self) -> None:
        """Pass on the lines that are there."""
        while True:
            try:
                self._rest += os.read(self._reading, _CHUNK)
            except BlockingIOError:
                return
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                self._tell(*json.loads(line))

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reading)
        os.close(self.number)


class AttemptTeller:
    """The end of that pipe in the agents' process.

    Args:
        number: its descriptor.
    """

    def __init__(self, number: int) -> None:
        # A program that a handler starts must not keep it open.
        os.set_inheritable(number, False)
        self._number = number

    def __call__(self, message: int, line: str) -> None:
        """Tell a line, with its end, about an attempt on this message; print it if nobody listens any more."""
        left = memoryview(json.dumps([message, line]).encode() + b"\n")
        try:
            while left:
                left = left[os.write(self._number, left) :]
        except OSError:
            sys.stdout.write(line)
            sys.stdout.flush()
