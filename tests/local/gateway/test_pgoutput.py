"""The decoder understands what `pgoutput` writes, and says so when it does not."""

import struct

import pytest

from runtime.local.gateway.pgoutput import UNCHANGED, Decoder, PgOutputError, PublishedColumn, Relation

# A transaction as a PostgreSQL 17 wrote it: Begin, Relation, then rows.
BEGIN = b"B" + struct.pack("!qqi", 1, 817_084_800_123_456, 742)
RELATION = (
    b"R" + struct.pack("!I", 16_400) + b"public\0notes\0d" + struct.pack("!h", 3)
    + b"\x01id\0" + struct.pack("!Ii", 20, -1)
    + b"\x00body\0" + struct.pack("!Ii", 25, -1)
    + b"\x00size\0" + struct.pack("!Ii", 23, -1)
)  # fmt: skip


def text(value: str) -> bytes:
    return b"t" + struct.pack("!i", len(value.encode())) + value.encode()


def row(kind: bytes, *cells: bytes) -> bytes:
    return kind + struct.pack("!h", len(cells)) + b"".join(cells)


@pytest.fixture
def decoder() -> Decoder:
    decoder = Decoder()
    assert decoder.decode(BEGIN) is None
    assert decoder.decode(RELATION) is None
    return decoder


def test_insert(decoder: Decoder) -> None:
    change = decoder.decode(b"I" + struct.pack("!I", 16_400) + row(b"N", text("7"), text("grüße"), b"n"))
    assert change is not None
    assert (change.kind, change.new, change.old) == ("INSERT", ("7", "grüße", None), None)
    assert change.committed_us == 946_684_800_000_000 + 817_084_800_123_456
    assert change.relation == Relation(
        16_400, "public", "notes", False,
        (PublishedColumn("id", 20, True), PublishedColumn("body", 25, False), PublishedColumn("size", 23, False)),
    )  # fmt: skip


def test_update_with_its_old_key_and_a_large_value_left_alone(decoder: Decoder) -> None:
    change = decoder.decode(
        b"U" + struct.pack("!I", 16_400)
        + row(b"K", text("7"), b"n", b"n") + row(b"N", text("8"), b"u", text("3"))
    )  # fmt: skip
    assert change is not None
    assert (change.kind, change.old, change.new) == ("UPDATE", ("7", None, None), ("8", UNCHANGED, "3"))


def test_update_without_an_old_row(decoder: Decoder) -> None:
    change = decoder.decode(b"U" + struct.pack("!I", 16_400) + row(b"N", text("7"), text(""), b"n"))
    assert change is not None
    assert (change.old, change.new) == (None, ("7", "", None))


def test_delete(decoder: Decoder) -> None:
    change = decoder.decode(b"D" + struct.pack("!I", 16_400) + row(b"O", text("7"), text("x"), b"n"))
    assert change is not None
    assert (change.kind, change.old, change.new) == ("DELETE", ("7", "x", None), None)


@pytest.mark.parametrize(
    "message", [b"C" + bytes(25), b"O" + bytes(9), b"T" + bytes(9), b"Y" + bytes(8), b"M", b""]
)
def test_what_is_no_row_is_no_change(decoder: Decoder, message: bytes) -> None:
    assert decoder.decode(message) is None


@pytest.mark.parametrize(
    "message",
    [
        b"I" + struct.pack("!I", 99) + row(b"N", text("7")),
        b"I" + struct.pack("!I", 16_400) + row(b"N", text("7"), text("grüße"))[:-3],
        b"I" + struct.pack("!I", 16_400) + row(b"N", b"?"),
        b"I",
        RELATION[:-1][:20],
    ],
)
def test_nonsense_is_said_to_be_nonsense(decoder: Decoder, message: bytes) -> None:
    with pytest.raises(PgOutputError):
        decoder.decode(message)
