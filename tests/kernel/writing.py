"""What do writers do? They send, insert and lock, in one go or in transactions that stay open."""

from contextlib import suppress
from typing import Any

import asyncpg
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.kernel.actors import STRICT, Busy, Serialization, Writer
from tests.kernel.drawing import Drawing, drafts
from tests.kernel.model import Draft

WRITERS = 2


class Writing(Drawing):
    """The steps of writers."""

    @rule(batch=st.lists(drafts, min_size=1, max_size=4), flood=st.integers(0, 12), plain=st.booleans())
    def send(self, batch: list[dict[str, Any]], flood: int, plain: bool) -> None:
        """A batch by stream_send, with many of one key at times; or one row by plain SQL."""
        self._begin()
        connection = self.database.operator
        with suppress(Busy, asyncpg.UniqueViolationError):
            if plain:
                self._look([self._insert(connection, self._drafts(batch[:1])[0], self.model.step, {})])
            else:
                many = self._drafts([*batch, *([{"key": "k.a"}] * flood if flood > 5 else [])])
                self._look(self._send(connection, many, self.model.step, {})[0])

    @rule(
        data=st.data(),
        place=st.integers(0, WRITERS - 1),
        isolation=st.sampled_from(["read committed", *STRICT]),
        verb=st.sampled_from(["send", "send", "insert", "lock", "look"]),
    )
    def write(self, data: st.DataObject, place: int, isolation: str, verb: str) -> None:
        """A writer looks, writes or holds rows in a transaction that stays open."""
        self._begin()
        writer = self.writers[place]
        self._open_writer(writer, isolation)
        try:
            if verb in ("send", "insert"):
                self._write(writer, self._drafts(data.draw(st.lists(drafts, min_size=1, max_size=2))), verb)
            elif verb == "lock" and self.model.messages:
                # Best such as are about to be marked.
                awaited = {d.message.id for d in self.model.deliveries.values() if d.marks}
                among = st.sampled_from(sorted(awaited or self.model.messages))
                ids = data.draw(st.sets(among, min_size=1, max_size=6))
                statement = "select id from public.consciousness_stream where id = any ($1) for update"
                self._run(writer.connection.fetch(statement, list(ids)))
                writer.locks = True
                writer.locked |= ids
        except (Busy, Serialization, asyncpg.UniqueViolationError):
            self._close(writer, "rollback")
        self._look()

    def _open_writer(self, writer: Writer, isolation: str) -> None:
        if writer.isolation is None:
            look = "select 1 from public.consciousness_stream limit 1"
            self._run(writer.connection.execute(f"begin isolation level {isolation}; {look}"))
            writer.isolation, writer.begun = isolation, self.model.step

    def _write(self, writer: Writer, given: list[Draft], verb: str) -> None:
        view = writer.begun if writer.isolation in STRICT else self.model.step
        # A key in use is locked, too: its row stays as it is until this writer ends.
        writer.locks = writer.locks or any(draft.dedup_key for draft in given)
        if verb == "insert":
            writer.messages.append(self._insert(writer.connection, given[0], view, writer.dedup))
        else:
            stored, kept = self._send(writer.connection, given, view, writer.dedup)
            writer.messages += stored
            writer.dedup |= kept
        # So are the waits that it ends.
        writer.locks = writer.locks or any(self.model.answers(m) for m in writer.messages)

    @precondition(lambda self: any(writer.isolation for writer in self.writers))
    @rule(data=st.data(), how=st.sampled_from(["commit", "commit", "commit", "rollback"]))
    def close(self, data: st.DataObject, how: str) -> None:
        """A writer ends its transaction."""
        self._begin()
        self._close(self._one_of(data, [w for w in self.writers if w.isolation]), how)
