"""How are the results shown? Tables for people."""

from rich.console import Console
from rich.table import Table

from tests.bench.bars import BARS
from tests.bench.contestants import OURS
from tests.bench.sample import Results, Summary


def show(results: Results, console: Console) -> None:
    """Print every figure beside those of the peers, and the bars."""
    names = list(dict.fromkeys([OURS, *(each.contestant for each in results.samples)]))
    table = Table(title="Medians", caption="~ others took CPU meanwhile, in every run", title_justify="left")
    table.add_column("figure", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for figure in results.figures:
        table.add_row(figure, *(_cell(results.summary(figure, name)) for name in names))
    console.print(table)

    table = Table(title="Bars", title_justify="left")
    for column in ("", "reached", "bar", ""):
        table.add_column(column, justify="right" if column else "left")
    for bar in BARS:
        reached = bar.ratio(results)
        if reached is not None:
            sign = "≤" if bar.is_ceiling else "≥"
            met = "[green]met[/green]" if bar.is_met(results) else "[bold red]missed[/bold red]"
            table.add_row(bar.text, f"{reached:,.2f} {bar.unit}", f"{sign} {bar.limit:g} {bar.unit}", met)
    if table.row_count:
        console.print(table)


def number(value: float) -> str:
    """A value with as many digits as say something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.2f}"


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return ""
    return f"{'~' * (not summary.is_quiet)}{number(summary.value)} {summary.unit}"
