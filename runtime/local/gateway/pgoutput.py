"""A decoder for PostgreSQL's `pgoutput` plugin, protocol version 1, text values; no I/O."""

import struct
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal

Kind = Literal["INSERT", "UPDATE", "DELETE"]


class Unchanged(Enum):
    """The one value of a large column that an UPDATE left alone: the log does not repeat it."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED

Cell = str | None | Unchanged
Row = tuple[Cell, ...]


class PgOutputError(ValueError):
    """The bytes are not what the protocol promises: a bug here, or a server far newer than this decoder."""


@dataclass(frozen=True, slots=True)
class PublishedColumn:
    """One published column; `in_identity` says that it is part of the replica identity."""

    name: str
    type_oid: int
    in_identity: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as it was when the change was written; `full_identity` is REPLICA IDENTITY FULL."""

    oid: int
    schema: str
    table: str
    full_identity: bool
    columns: tuple[PublishedColumn, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One row of one committed transaction. `committed_us` counts microseconds since the Unix epoch."""

    kind: Kind
    relation: Relation
    new: Row | None
    old: Row | None
    committed_us: int


_EPOCH_US: Final = 946_684_800_000_000
"""2000-01-01, where PostgreSQL's clock begins, on the Unix clock."""

_BEGIN: Final = struct.Struct("!qqi")
_LENGTH: Final = struct.Struct("!i")
_COUNT: Final = struct.Struct("!h")
_OID: Final = struct.Struct("!I")


@dataclass(slots=True)
class Decoder:
    """Turns the messages of one stream into changes; it remembers the relations announced so far."""

    _relations: dict[int, Relation] = field(default_factory=dict)
    _committed_us: int = 0

    def decode(self, message: bytes) -> Change | None:
        """The change in this message, or None when it holds none.

        Raises:
            PgOutputError: the message is cut short, or speaks of a relation that was never announced.
        """
        try:
            match message[:1]:
                case b"I" | b"U" | b"D":
                    return self._change(message)
                case b"B":
                    self._committed_us = _BEGIN.unpack_from(message, 1)[1] + _EPOCH_US
                case b"R":
                    relation = _relation(message)
                    self._relations[relation.oid] = relation
        except (struct.error, IndexError, KeyError, ValueError) as error:
            raise PgOutputError(
                f"A {message[:1]!r} message of {len(message)} bytes cannot be read: {error!r}"
            ) from error
        return None

    def _change(self, message: bytes) -> Change:
        relation = self._relations[_OID.unpack_from(message, 1)[0]]
        old: Row | None = None
        new: Row | None = None
        offset = 5
        if message[offset] in b"KO":
            old, offset = _row(message, offset + 1)
        if offset < len(message) and message[offset] == ord("N"):
            new, offset = _row(message, offset + 1)
        kind: Kind = "INSERT" if message[:1] == b"I" else "UPDATE" if message[:1] == b"U" else "DELETE"
        return Change(kind, relation, new, old, self._committed_us)


def _row(message: bytes, offset: int) -> tuple[Row, int]:
    (count,) = _COUNT.unpack_from(message, offset)
    offset += 2
    cells: list[Cell] = []
    for _ in range(count):
        match message[offset]:
            case 0x74:  # t: text
                (length,) = _LENGTH.unpack_from(message, offset + 1)
                end = offset + 5 + length
                if end > len(message):
                    raise ValueError("a value is cut short")
                cells.append(message[offset + 5 : end].decode())
                offset = end
            case 0x6E:  # n: null
                cells.append(None)
                offset += 1
            case 0x75:  # u: unchanged
                cells.append(UNCHANGED)
                offset += 1
            case other:
                raise ValueError(f"no such kind of value: {other}")
    return tuple(cells), offset


def _relation(message: bytes) -> Relation:
    (oid,) = _OID.unpack_from(message, 1)
    schema, offset = _text(message, 5)
    table, offset = _text(message, offset)
    full_identity = message[offset] == ord("f")
    (count,) = _COUNT.unpack_from(message, offset + 1)
    offset += 3
    columns: list[PublishedColumn] = []
    for _ in range(count):
        in_identity = bool(message[offset] & 1)
        name, offset = _text(message, offset + 1)
        columns.append(PublishedColumn(name, _OID.unpack_from(message, offset)[0], in_identity))
        offset += 8
    # An empty schema name means pg_catalog.
    return Relation(oid, schema or "pg_catalog", table, full_identity, tuple(columns))


def _text(message: bytes, offset: int) -> tuple[str, int]:
    end = message.index(b"\0", offset)
    return message[offset:end].decode(), end + 1
