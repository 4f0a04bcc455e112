"""Tables that keep every column at any width.

Into a file or pipe, each row is one whole line. In a terminal where that is too wide, the columns of text go below
their row, across the whole width; where the figures do not fit beside each other either, columns of nothing but zeros
are left out; where that is not enough, each row is a paragraph.
"""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from runtime.encoding.printable import printable

# Two blanks between columns; one where that makes room.
_GAPS: Final = (2, 1)
_INDENT: Final = "  "
# Narrower columns are not worth their place: a text goes below its row then, and the name above it.
_LEAST_TEXT: Final = 16
_LEAST_SHORTENED: Final = 40
_LEAST_NAME: Final = 12
# Cells of figures that tell nothing.
_NOTHING: Final = ("", "0", "0.0")


def on_one_line(text: Any) -> Any:
    """Return a text or styled text with its line ends escaped."""
    if isinstance(text, str):
        return printable(text)
    if isinstance(text, Text) and "\n" in text.plain:
        return Text("\\x0a").join(text.split("\n"))
    return text


class Rows:
    """A table of names, figures and texts; line ends in the cells are escaped.

    Args:
        title: the head of the first column, which names a row.
        figures: the heads of the columns that are never shortened.
        texts: the heads of the columns of text, the last ones.
        shortened: those texts of which the beginning is enough: in a terminal they end at the edge.
    """

    def __init__(
        self,
        title: str,
        *,
        figures: Sequence[str] = (),
        texts: Sequence[str] = (),
        shortened: Sequence[str] = (),
    ) -> None:
        self._heads = [title, *figures, *texts]
        self._figures = range(1, 1 + len(figures))
        self._texts = range(1 + len(figures), len(self._heads))
        self._shortened = {self._heads.index(each) for each in shortened}
        self._rows: list[list[Text]] = []

    def add(self, *cells: str | Text) -> None:
        """Add a row: its name, its figures, its texts."""
        self._rows.append([Text() + on_one_line(each) for each in cells])

    def __len__(self) -> int:
        return len(self._rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render for the width there is."""
        width = options.max_width
        table = self._as_table(console, width)
        if table is None:
            table = self._without_zeros()._as_table(console, width)
        yield from self._paragraphs(console, width) if table is None else table

    def _as_table(self, console: Console, width: int) -> Iterable[Text] | None:
        """Return the lines of a table with all figures side by side; None if there is no room."""
        for gap in _GAPS:
            if (fitted := self._fitted(width, gap)) is not None:
                return self._side_by_side(console, fitted, gap)
        for gap in _GAPS:
            room = width - sum(self._natural(each) + gap for each in self._figures)
            if room >= _LEAST_NAME:
                return self._with_texts_below(console, width, room, gap)
        return None

    def _without_zeros(self) -> "Rows":
        """Return the table without the columns of figures in which no row has one."""
        kept = [
            column
            for column in range(len(self._heads))
            if column not in self._figures or any(row[column].plain not in _NOTHING for row in self._rows)
        ]
        heads = [self._heads[column] for column in kept]
        texts = len(self._texts)
        shorter = Rows(
            heads[0],
            figures=heads[1 : len(heads) - texts],
            texts=heads[len(heads) - texts :],
            shortened=[self._heads[column] for column in self._shortened],
        )
        shorter._rows = [[row[column] for column in kept] for row in self._rows]
        return shorter

    def _natural(self, column: int) -> int:
        return max([cell_len(self._heads[column]), *(row[column].cell_len for row in self._rows)])

    def _fitted(self, width: int, gap: int) -> dict[int, int] | None:
        """Return the widths of the columns side by side, texts shortened or wrapped; None if there is no room."""
        found = {column: self._natural(column) for column in range(len(self._heads))}
        if sum(found.values()) + gap * len(found) > width:
            # A column of text without a text is left out.
            found = {
                column: each
                for column, each in found.items()
                if column not in self._texts or any(row[column] for row in self._rows)
            }
        over = sum(found.values()) + gap * (len(found) - 1) - width
        for column in reversed(self._texts):
            if over > 0 and column in found:
                least = _LEAST_SHORTENED if column in self._shortened else self._longest_word(column)
                taken = min(over, max(0, found[column] - max(_LEAST_TEXT, least)))
                found[column] -= taken
                over -= taken
        return found if over <= 0 else None

    def _longest_word(self, column: int) -> int:
        return max((cell_len(word) for row in self._rows for word in row[column].plain.split()), default=0)

    def _side_by_side(self, console: Console, widths: dict[int, int], gap: int) -> Iterable[Text]:
        yield self._line({column: Text(self._heads[column], "dim") for column in widths}, widths, gap)
        for row in self._rows:
            cells = [self._in_lines(console, row[column], column, width) for column, width in widths.items()]
            for line in zip_longest(*cells, fillvalue=Text()):
                yield self._line(dict(zip(widths, line, strict=True)), widths, gap)

    def _with_texts_below(self, console: Console, width: int, room: int, gap: int) -> Iterable[Text]:
        """Yield rows of figures with their texts below them; a name that is too long has a line of its own."""
        widths = {0: min(room, self._natural(0)), **{each: self._natural(each) for each in self._figures}}
        yield self._line({column: Text(self._heads[column], "dim") for column in widths}, widths, gap)
        for row in self._rows:
            name = row[0]
            if name.cell_len > widths[0]:
                yield from name.wrap(console, width)
                name = Text()
            yield self._line({0: name, **{each: row[each] for each in self._figures}}, widths, gap)
            yield from self._below(console, row, width)

    def _paragraphs(self, console: Console, width: int) -> Iterable[Text]:
        for row in self._rows:
            yield from row[0].wrap(console, width)
            line = Text(_INDENT)
            for column in self._figures:
                if not row[column]:
                    continue
                part = Text.assemble((f"{self._heads[column]} ", "dim"), row[column])
                if line.cell_len > len(_INDENT) and line.cell_len + _GAPS[0] + part.cell_len > width:
                    yield line
                    line = Text(_INDENT)
                line = line + (" " * _GAPS[0] if line.cell_len > len(_INDENT) else "") + part
            if line.plain.strip():
                yield line
            yield from self._below(console, row, width)

    def _below(self, console: Console, row: Sequence[Text], width: int) -> Iterable[Text]:
        """Yield the lines of a row's texts below it."""
        for column in self._texts:
            if row[column]:
                whole = Text.assemble((f"{self._heads[column]} ", "dim"), row[column])
                for line in self._in_lines(console, whole, column, width - len(_INDENT)):
                    yield Text(_INDENT) + line

    def _in_lines(self, console: Console, cell: Text, column: int, width: int) -> list[Text]:
        if column in self._shortened:
            cell = cell.copy()
            cell.truncate(width, overflow="ellipsis")
        return [cell] if cell.cell_len <= width else list(cell.wrap(console, width))

    def _line(self, cells: dict[int, Text], widths: dict[int, int], gap: int) -> Text:
        line = Text()
        for column, cell in cells.items():
            blanks = Text(" " * (widths[column] - cell.cell_len))
            between = Text(" " * (gap if column else 0))
            line = line + between + (blanks + cell if column in self._figures else cell + blanks)
        line.rstrip()
        return line
