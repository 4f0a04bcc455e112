"""The texts of handlers: broadcast as they are written, and stored about once a second, on the runtime's own loop."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias

import anyio

from runtime.agent.text import BegunText, TextEnding
from runtime.backoff import Outage
from runtime.broadcast import text_topic
from runtime.client.broadcaster import Broadcaster
from runtime.encoding.json import encode
from runtime.errors import LeaseLost, StoreError, StoreUnavailable
from runtime.settings import Settings
from runtime.store import Delivery, Store
from runtime.worker.event_loop import call_soon
from runtime.worker.execution.text_rate import SharedRate

_log = logging.getLogger("runtime.handlers")
_PACE_SECONDS: Final = 1.0
# Texts of more characters together are stored by several calls.
_CALL_CHARACTERS: Final = 2**20
# A character takes six bytes of JSON at most; what else is in a piece takes less than these.
_CHARACTER_BYTES: Final = 6
_FRAME_BYTES: Final = 1_200

Submit: TypeAlias = Callable[[Callable[[], Awaitable[Any]]], "Future[Any]"]


class WrittenText:
    """A text that a handler writes; the lock of its keeper guards it.

    Attributes:
        stored: how many characters of it are stored.
        sent: how many were broadcast.
        row: what was handed to the store and is not answered yet: it is sent again as it is.
        ending: how it ended; None while it is written.
        is_whole: its end is stored.
        is_lost: its delivery is another worker's.
    """

    __slots__ = (
        "_texts", "about", "ended", "ending", "is_lost", "is_whole", "kept", "place", "row", "sent", "stored", "unsent",
        "unstored",
    )  # fmt: skip

    def __init__(
        self, texts: "HandlerTexts", place: dict[str, object], about: dict[str, object], kept: str | None
    ) -> None:
        self._texts = texts
        self.place = place
        self.about = about
        self.kept = kept
        self.stored = self.sent = len(kept or "")
        self.unstored: list[str] = []
        self.unsent: list[str] = []
        self.row: tuple[str, TextEnding | None] | None = None
        self.ending: TextEnding | None = None
        self.ended: Future[None] = Future()
        self.is_lost = self.is_whole = False

    def add(self, piece: str) -> None:
        """Write on; see `BegunText.add`."""
        self._texts.add(self, piece)

    def end(self, ending: TextEnding) -> "Future[None]":
        """Write what is left; see `BegunText.end`."""
        self._texts.end(self, ending)
        return self.ended

    def next_row(self) -> dict[str, object]:
        """Return what is to be stored next."""
        if self.row is None:
            self.row = "".join(self.unstored), self.ending
            self.unstored.clear()
        text, ending = self.row
        end = {} if ending is None else {"state": ending}
        return {**self.place, "start": self.stored, "text": text, **end}

    def next_piece(self, most: int) -> str:
        """Return what is to be broadcast next, as JSON: so many characters at most."""
        text = "".join(self.unsent)
        state = {"state": self.ending} if self.is_whole and len(text) <= most else {}
        self.unsent = [text]
        return encode({**self.about, "offset": self.sent, "text": text[:most], **state})

    def note_sent(self, most: int) -> bool:
        """Note that this piece is on its way. Returns whether there is more to send."""
        text = self.unsent.pop()
        self.sent += len(text[:most])
        if rest := text[most:]:
            self.unsent.append(rest)
        return bool(rest)

    def note_stored(self) -> bool:
        """Note that the row is stored. Returns whether it was the last one."""
        assert self.row is not None
        (text, ending), self.row = self.row, None
        self.stored += len(text)
        self.is_whole = ending is not None
        return self.is_whole

    def lost(self) -> LeaseLost:
        """Say that its delivery is another worker's."""
        return LeaseLost(
            f"The text {self.place['name']!r} of message {self.place['message']} is not written on: the delivery "
            "belongs to another worker by now, since its lease was not renewed in time. Was this process frozen, or "
            "its loop blocked?"
        )


class HandlerTexts:
    """Stores and broadcasts the texts of all handlers of a worker. Made on the loop of the store.

    Args:
        store: where messages live.
        submit: runs work on the loop of the store, from any thread.
        rate: how many pieces may be broadcast.
        call: has `next_pieces` called soon; from any thread. None where nothing carries broadcasts.
        max_bytes: how large one broadcast may be.
    """

    def __init__(
        self, store: Store, submit: Submit, rate: SharedRate, call: Callable[[], None] | None, max_bytes: int
    ) -> None:
        self._store = store
        self._submit = submit
        self._rate = rate
        self._call = call
        self._max_characters = (max_bytes - _FRAME_BYTES) // _CHARACTER_BYTES
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        # In the order in which they were written, without doubles.
        self._unstored: dict[WrittenText, None] = {}
        self._unsent: dict[WrittenText, None] = {}
        self._is_called = self._is_hurried = False
        self._called = anyio.Event()
        self._hurried = anyio.Event()
        self._outage = Outage()

    @classmethod
    def beside(
        cls, broadcaster: Broadcaster | None, store: Store, submit: Submit, settings: Settings
    ) -> "HandlerTexts":
        """Return one whose pieces a broadcaster sends, where there is one."""
        rate = SharedRate(settings.text_pieces_per_second)
        if broadcaster is None:
            return cls(store, submit, rate, None, 0)
        texts = cls(store, submit, rate, broadcaster.call, broadcaster.max_bytes)
        broadcaster.next_pieces = texts.next_pieces
        return texts

    def of(self, handler: str, delivery: Delivery) -> "DeliveryTexts":
        """Return what keeps the texts of a delivery."""
        return DeliveryTexts(self, handler, delivery)

    def begin(self, place: dict[str, object], handler: str, attempt: int) -> "Future[BegunText]":
        """Begin a text; see `TextKeeper.begin`."""
        return self._submit(partial(self._begin, place, handler, attempt))

    async def _begin(self, place: dict[str, object], handler: str, attempt: int) -> WrittenText:
        begun = await self._store.operate("stream_begin_text", **place, attempt=attempt)
        about = {"message": place["message"], "handler": handler, "name": place["name"]}
        text = WrittenText(self, place, about, begun.get("text"))
        if not begun["held"]:
            raise text.lost()
        number = begun["beginning"]
        text.place, text.about = {**place, "beginning": number}, {**about, "beginning": number}
        return text

    def add(self, text: WrittenText, piece: str) -> None:
        """Write a text on. From any thread."""
        with self._lock:
            if text.is_lost:
                raise text.lost()
            text.unstored.append(piece)
            self._unstored[text] = None
            if self._call is not None:
                text.unsent.append(piece)
                self._unsent[text] = None
            is_called, self._is_called = self._is_called, True
        if not is_called:
            call_soon(self._loop, lambda: self._called.set())
        if self._call is not None:
            self._call()

    def end(self, text: WrittenText, ending: TextEnding) -> None:
        """End a text, and store it at once. From any thread."""
        with self._lock:
            if text.is_lost:
                return
            text.ending = ending
            self._unstored[text] = None
            self._is_called = True
        call_soon(self._loop, self._hurry)

    def _hurry(self) -> None:
        self._hurried.set()
        self._called.set()

    def next_pieces(self, room: int) -> tuple[list[tuple[str, str]], bool]:
        """Take what may be broadcast now: each as a topic and JSON, and whether there is more.

        Args:
            room: how many bytes they may take together.
        """
        pieces: list[tuple[str, str]] = []
        with self._lock:
            for text in [*self._unsent]:
                topic, piece = text_topic(text.about["message"]), text.next_piece(self._max_characters)
                if (size := len(piece.encode())) > room or not self._rate.take(1):
                    break
                room -= size
                pieces.append((topic, piece))
                del self._unsent[text]
                if text.note_sent(self._max_characters):
                    # The others come first.
                    self._unsent[text] = None
            return pieces, bool(self._unsent)

    async def run(self) -> None:
        """Store what is written, until cancelled."""
        while True:
            await self._called.wait()
            self._hurried = anyio.Event()
            await self._store_once()
            with anyio.move_on_after(_PACE_SECONDS):
                await self._hurried.wait()

    async def flush(self) -> None:
        """Store what was written so far, where the store answers."""
        await self._store_once()

    async def _store_once(self) -> None:
        with self._lock:
            self._called = anyio.Event()
            self._is_called = False
            texts, self._unstored = [*self._unstored], {}
            rows = [(text, text.next_row()) for text in texts]
        for part in _parts(rows):
            await self._store_part(part)

    async def _store_part(self, part: list[tuple[WrittenText, dict[str, object]]]) -> None:
        texts = [text for text, _ in part]
        try:
            answer = await self._store.operate("stream_write_texts", texts=encode([row for _, row in part]))
        except StoreUnavailable as error:
            self._say_trouble(error)
            with self._lock:
                self._unstored = {**dict.fromkeys(texts), **self._unstored}
                self._is_called = True
            self._called.set()
        except StoreError as error:
            self._say_trouble(error)
            for text in texts:
                self._fail(text, error)
        else:
            self._outage.over()
            self._rate.share_among(answer["workers"])
            for text, is_kept in zip(texts, answer["kept"], strict=True):
                if is_kept:
                    self._note_stored(text)
                else:
                    self._fail(text, text.lost())

    def _note_stored(self, text: WrittenText) -> None:
        with self._lock:
            has_ended = text.note_stored()
            if has_ended and self._call is not None:
                # Readers are told that it is whole.
                self._unsent[text] = None
        if has_ended:
            _settle(text.ended, None)
            if self._call is not None:
                self._call()

    def _fail(self, text: WrittenText, error: StoreError | LeaseLost) -> None:
        with self._lock:
            text.is_lost = True
            self._unstored.pop(text, None)
            self._unsent.pop(text, None)
        _settle(text.ended, error)

    def _say_trouble(self, error: StoreError) -> None:
        level = self._outage.level(error.nature, logging.WARNING)
        _log.log(level, "the texts of handlers cannot be stored now: %s", error)


class DeliveryTexts:
    """Keeps the texts of one delivery, as long as its lease is held.

    Args:
        texts: those of all handlers.
        handler: its subscription's name.
        delivery: whose texts they are.
    """

    def __init__(self, texts: HandlerTexts, handler: str, delivery: Delivery) -> None:
        self._texts = texts
        self._handler = handler
        self._delivery = delivery

    def begin(self, name: str) -> "Future[BegunText]":
        """Begin a text; see `TextKeeper.begin`."""
        message, subscription = self._delivery.place
        place = {
            "message": message, "subscription": subscription, "lease": str(self._delivery.lease), "name": name,
        }  # fmt: skip
        return self._texts.begin(place, self._handler, self._delivery.message.attempt)


def _settle(ended: "Future[None]", error: Exception | None) -> None:
    """Tell whoever waits for the end of a text, unless that was cancelled or told before."""
    with suppress(InvalidStateError):
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)


def _parts(
    rows: Iterable[tuple[WrittenText, dict[str, object]]],
) -> Iterable[list[tuple[WrittenText, dict[str, object]]]]:
    """Cut what is to be stored into parts of bounded size."""
    part: list[tuple[WrittenText, dict[str, object]]] = []
    size = 0
    for text, row in rows:
        characters = len(str(row["text"]))
        if part and size + characters > _CALL_CHARACTERS:
            yield part
            part, size = [], 0
        part.append((text, row))
        size += characters
    if part:
        yield part
