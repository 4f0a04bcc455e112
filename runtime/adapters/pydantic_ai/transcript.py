"""What readers follow of a run: the words that the model writes, and the events, each in a text of the message."""

import json
from collections.abc import AsyncIterable
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic_ai import RunContext
from pydantic_ai.messages import AgentStreamEvent, PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta

from runtime.agent.text import MAX_CHARACTERS, OpenText

# The result of a tool may take a megabyte, which is all that a text has.
MAX_EVENT_CHARACTERS: Final = 20_000
_EVENT: Final[TypeAdapter[Any]] = TypeAdapter(AgentStreamEvent)


class Transcript:
    """Writes the texts of one run.

    Args:
        words: the text that gets what the model writes.
        events: the text that gets the events.
    """

    def __init__(self, words: OpenText | None = None, events: OpenText | None = None) -> None:
        self._words = words
        self._events = events
        self._full: set[str] = set()
        self._is_part_new = False

    async def write_all(self, _: RunContext[Any], stream: AsyncIterable[AgentStreamEvent]) -> None:
        """Write the events of a model's response as they come."""
        async for event in stream:
            await self.write(event)

    async def write(self, event: AgentStreamEvent) -> None:
        """Write an event.

        Raises:
            LeaseLost: the delivery belongs to another worker by now.
        """
        if self._words is not None and (piece := self._piece_of(event)):
            is_next = self._is_part_new and self._words.length
            self._is_part_new = False
            await self._put(self._words, f"\n\n{piece}" if is_next else piece)
        # A part is in the events when it is whole: an attempt that goes on has it so, and writes the same.
        if self._events is not None and not isinstance(event, PartStartEvent | PartDeltaEvent):
            await self._put(self._events, _line_of(event))

    def _piece_of(self, event: AgentStreamEvent) -> str:
        """Return what a model has written with this event."""
        if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
            self._is_part_new = True
            return event.part.content
        if isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
            return event.delta.content_delta
        return ""

    async def _put(self, text: OpenText, piece: str) -> None:
        # The run does not end for what its readers get no more of: all of it is kept in its steps, too.
        if text.length + len(piece) > MAX_CHARACTERS:
            self._full.add(text.name)
        if text.name not in self._full:
            await text.write(piece)


def _line_of(event: AgentStreamEvent) -> str:
    """Return an event as JSON in a line: the same in every attempt that comes to it."""
    data = _EVENT.dump_python(event, mode="json", warnings=False, fallback=lambda value: type(value).__name__)
    for part in ("part", "result"):
        if isinstance(data.get(part), dict):
            data[part].pop("timestamp", None)
    line = json.dumps(data, ensure_ascii=False)
    if len(line) > MAX_EVENT_CHARACTERS:
        line = json.dumps({"event_kind": data["event_kind"], "cut": line[: MAX_EVENT_CHARACTERS // 2]})
    return f"{line}\n"
