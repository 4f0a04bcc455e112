"""Texts: what a handler writes piece by piece, such as the tokens of a model; readers follow it as it grows."""

from asyncio import wrap_future
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, TypeAlias

from runtime.agent.transaction import Transactional
from runtime.agent.waiting import Suspended
from runtime.errors import InvalidValue, RuntimeFault

TextEnding: TypeAlias = Literal["closed", "suspended", "broken"]
# A follower that comes late gets all of it in one answer.
MAX_CHARACTERS: Final = 1_000_000
_MAX_NAME_BYTES: Final = 255


class BegunText(Protocol):
    """A text in the hands of the worker. From any thread."""

    kept: str | None
    """What stands there, where the same attempt runs again after a wait; None for a text that begins anew."""

    def add(self, piece: str) -> None:
        """Write on; returns at once. Raises LeaseLost once the delivery is known to belong to another worker."""

    def end(self, ending: TextEnding) -> "Future[None]":
        """Write what is left; the future is done when it is stored."""


class TextKeeper(Protocol):
    """Keeps the texts of one delivery. From any thread."""

    def begin(self, name: str) -> "Future[BegunText]":
        """Begin a text, or go on with it after a wait."""


class Text:
    """A text that is being written; `context.stream` and `context.stream_blocking` open it.

    Attributes:
        name: its name.
        length: how many characters were written so far.
    """

    def __init__(self, name: str, keeper: TextKeeper | None, open_names: set[str]) -> None:
        if (
            not isinstance(name, str)
            or not 0 < len(name.encode(errors="replace")) <= _MAX_NAME_BYTES
            or "\0" in name
        ):
            raise InvalidValue(f"The name of a text has 1 to {_MAX_NAME_BYTES} bytes, not {name!r:.100}.")
        self.name = name
        self.length = 0
        self._keeper = keeper
        self._open_names = open_names
        self._begun: BegunText | None = None
        self._is_open = False

    def __repr__(self) -> str:
        return f"<Text {self.name!r} [{'open' if self._is_open else 'closed'}, {self.length} characters]>"

    # Each step of the work yields the futures that it waits for: a task awaits them, a thread blocks.
    def _open(self) -> Generator["Future[Any]", Any, None]:
        if self.name in self._open_names:
            raise InvalidValue(
                f"The text {self.name!r} is being written already: write it in one place at a time."
            )
        self._open_names.add(self.name)
        try:
            if self._keeper is not None:
                self._begun = yield self._keeper.begin(self.name)
        except BaseException:
            self._open_names.discard(self.name)
            raise
        self._is_open = True

    def _write(self, piece: str) -> Generator["Future[Any]", Any, None]:
        if not self._is_open:
            raise RuntimeFault(f"The text {self.name!r} is closed: write within its block.")
        if not isinstance(piece, str):
            raise InvalidValue(f"A text is written in pieces of type str, not {type(piece).__name__}.")
        if self.length + len(piece) > MAX_CHARACTERS:
            raise InvalidValue(
                f"The text {self.name!r} would have more than {MAX_CHARACTERS:,} characters: write it in several texts."
            )
        # One character for another: readers count them.
        piece = piece.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
        written, self.length = self.length, self.length + len(piece)
        if self._begun is None or not piece:
            return
        if (kept := self._begun.kept) is not None and written < len(kept):
            known = kept[written : self.length]
            if piece.startswith(known):
                # It stands there from before the wait.
                piece = piece[len(known) :]
            else:
                piece = kept[:written] + piece
                yield from self._begin_anew()
        if piece:
            self._begun.add(piece)

    def _begin_anew(self) -> Generator["Future[Any]", Any, None]:
        assert self._keeper is not None
        self._begun = yield self._keeper.begin(self.name)

    def _end(self, error: BaseException | None) -> Generator["Future[Any]", Any, None]:
        self._is_open = False
        begun = self._begun
        try:
            if begun is None:
                return
            if isinstance(error, Suspended):
                # What could not be stored is begun anew when the handler goes on.
                with suppress(RuntimeFault):
                    yield begun.end("suspended")
            elif error is not None:
                begun.end("broken")
            else:
                if begun.kept is not None and self.length < len(begun.kept):
                    written = begun.kept[: self.length]
                    yield from self._begin_anew()
                    begun = self._begun
                    assert begun is not None
                    if written:
                        begun.add(written)
                yield begun.end("closed")
        finally:
            self._open_names.discard(self.name)


class OpenText(Text):
    """A text that an async handler writes."""

    async def write(self, piece: str) -> None:
        """Write on. Readers get it within a tenth of a second; it is stored within about a second.

        Args:
            piece: of any length; a text has up to 1,000,000 characters.

        Raises:
            LeaseLost: the delivery belongs to another worker by now, which begins the text anew.
            InvalidValue: it is no str, or the text gets too long.
        """
        await _awaited(self._write(piece))

    async def __aenter__(self) -> Self:
        await _awaited(self._open())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _awaited(self._end(error))


class OpenTextBlocking(Text):
    """A text that a plain handler writes, in its thread."""

    def write(self, piece: str) -> None:
        """Write on; see `OpenText.write`."""
        _blocked(self._write(piece))

    def __enter__(self) -> Self:
        _blocked(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _blocked(self._end(error))


class TextWriting(Transactional):
    """The part of a context that writes texts."""

    __slots__ = ("_open_texts",)

    _open_texts: set[str]

    def stream(self, name: str) -> OpenText:
        """Write a text piece by piece, such as the tokens of a model, for readers that follow it.

            async with context.stream("answer") as out:
                async for token in model:
                    await out.write(token)

        `stream.follow(message, "answer")` reads it, and so does a browser. The end of the block returns when the whole
        text is stored, and closes it. An attempt that comes after a failure begins the text anew, and readers are told.
        One that goes on after a wait writes the same text again from the top: what stands there is not written twice,
        and at the first character that differs the text is begun anew. What a finished step wrote stays as it is.

        Args:
            name: tells the texts of one message apart.

        Raises:
            InvalidValue: the name is too long or empty, or the text is being written already.
            LeaseLost: the delivery belongs to another worker by now.
            StoreError: it could not be stored.
        """
        return OpenText(name, self._text_keeper(), self._open_texts)

    def stream_blocking(self, name: str) -> OpenTextBlocking:
        """Do the same as `stream` in a handler that is a plain function, with a plain `with` and `out.write(…)`."""
        self._check_thread("stream")
        return OpenTextBlocking(name, self._text_keeper(), self._open_texts)

    def _text_keeper(self) -> TextKeeper | None:
        raise NotImplementedError


async def _awaited(steps: Generator["Future[Any]", Any, None]) -> None:
    """Await the futures of some work, one after the other."""
    with suppress(StopIteration):
        future = next(steps)
        while True:
            try:
                result = await wrap_future(future)
            except BaseException as error:  # noqa: BLE001 - the work decides what is raised
                future = steps.throw(error)
            else:
                future = steps.send(result)


def _blocked(steps: Generator["Future[Any]", Any, None]) -> None:
    """Wait for the futures of some work in this thread, one after the other."""
    with suppress(StopIteration):
        future = next(steps)
        while True:
            try:
                result = future.result()
            except BaseException as error:  # noqa: BLE001 - the work decides what is raised
                future = steps.throw(error)
            else:
                future = steps.send(result)
