"""One changed row as the `data` of a `postgres_changes` frame: JSON text, identical to the letter."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from runtime.local.gateway.encoding import json_object, json_value, quoted
from runtime.local.gateway.pgoutput import UNCHANGED, Change, Relation, Row
from runtime.local.gateway.visibility import ColumnType

_MAX_RECORD_BYTES: Final = 1 << 20
_SMALL_VALUE_BYTES: Final = 64
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Values = dict[str, str | None]


@dataclass(frozen=True, slots=True)
class VisibleColumns:
    """Which columns a subscriber sees: of the row, and of the row as it was before."""

    now: frozenset[str]
    before: frozenset[str]


@dataclass(slots=True)
class PayloadWriter:
    """Writes rows; `types` must know the types of their columns."""

    types: dict[int, ColumnType] = field(default_factory=dict)
    _columns: dict[tuple[Relation, frozenset[str]], str] = field(default_factory=dict)

    def unknown_types(self, relation: Relation) -> set[int]:
        """The types of these columns that must be learnt first."""
        return {column.type_oid for column in relation.columns if column.type_oid not in self.types}

    def write(self, change: Change, shown: VisibleColumns) -> str:
        """Return the row with the visible columns only, and above 1 MiB with its small values only."""
        relation = change.relation
        is_large = _wal_bytes(change) > _MAX_RECORD_BYTES
        rows = ""
        if change.new is not None:
            rows += f'"record":{self._object(relation, values(change, change.new), shown.now, is_large)},'
        if change.kind != "INSERT":
            # An UPDATE that left the key alone does not repeat it in the log.
            old = values(change, change.old if change.old is not None else change.new)
            rows += f'"old_record":{self._object(relation, old, shown.before, is_large)},'
        errors = '["Error 413: Payload Too Large"]' if is_large else "null"
        return (
            f'{{"table":{quoted(relation.table)},"type":"{change.kind}",{rows}'
            f'"columns":[{self._column_list(relation, shown.now)}],"errors":{errors},'
            f'"schema":{quoted(relation.schema)},"commit_timestamp":"{_timestamp(change.committed_us)}"}}'
        )

    def _column_list(self, relation: Relation, names: frozenset[str]) -> str:
        known = self._columns.get((relation, names))
        if known is None:
            known = self._columns[relation, names] = ", ".join(
                f'{{"name": {quoted(column.name)}, "type": {quoted(self.types[column.type_oid].shown)}}}'
                for column in relation.columns
                if column.name in names
            )
        return known

    def _object(
        self, relation: Relation, row: Mapping[str, str | None], names: frozenset[str], is_large: bool
    ) -> str:
        members = {
            column.name: json_value(row[column.name], self.types[column.type_oid].written)
            for column in relation.columns
            if column.name in names and column.name in row
        }
        if is_large:
            small = {name for name, text in members.items() if len(text.encode()) <= _SMALL_VALUE_BYTES}
            members = {name: members[name] for name in small}
        return json_object(members)


def refused(change: Change, why: str) -> str:
    """Return the payload in place of a row that cannot be shown at all."""
    relation = change.relation
    return (
        f'{{"table":{quoted(relation.table)},"type":"{change.kind}","record":{{}},"columns":[],'
        f'"errors":[{quoted(why)}],"schema":{quoted(relation.schema)},"commit_timestamp":null}}'
    )


def values(change: Change, cells: Row | None) -> Values:
    """The values by column; one that the log left out is taken from the old row, if that is there."""
    row: Values = {}
    for place, (column, cell) in enumerate(zip(change.relation.columns, cells or (), strict=False)):
        if cell is UNCHANGED and change.old is not None:
            cell = change.old[place]
        if cell is not UNCHANGED:
            row[column.name] = cell
    return row


@lru_cache(maxsize=64)
def _timestamp(committed_us: int) -> str:
    moment = _EPOCH + timedelta(microseconds=committed_us)
    return f"{moment.strftime('%Y-%m-%dT%H:%M:%S.%f')[:-3]}Z"


def _wal_bytes(change: Change) -> int:
    """About how long wal2json's text of this change would be: the server's limit is measured in it."""
    around = 300 + 90 * len(change.relation.columns)
    rows = [row for row in (change.new, change.old) if row is not None]
    cells = [cell for row in rows for cell in row if isinstance(cell, str)]
    plain = around + sum(map(len, cells))
    # Escaping and UTF-8 can make it six times as long at most; most rows need no closer look.
    if plain * 6 < _MAX_RECORD_BYTES:
        return plain
    return around + sum(len(quoted(cell).encode()) for cell in cells)
