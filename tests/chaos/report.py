"""What does a person read in the end? A row for each fault, and what must not be."""

from collections import defaultdict
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.campaign import CHAIN_MESSAGES, Outcome

_LOST = frozenset({"lost", "results"})
_DOUBLED = frozenset({"doubled"})


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """One row for each fault that struck or could not be had: strikes, messages under it, and what became of them."""
    windows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for struck in outcome.strikes:
        windows[struck.fault].append((struck.began, struck.ended))
    lost = {number for problem in outcome.problems if problem.check in _LOST for number in problem.numbers}
    doubled = {
        number for problem in outcome.problems if problem.check in _DOUBLED for number in problem.numbers
    }
    found = []
    for fault, spans in sorted(windows.items()):
        under = [
            chain for chain in outcome.ledger.chains
            if any(
                chain.sent_at <= ended and outcome.finished_at.get(chain.number, float("inf")) >= began
                for began, ended in spans
            )
        ]  # fmt: skip
        numbers = {chain.number for chain in under}
        delays = [
            outcome.finished_at[chain.number] - chain.sent_at
            for chain in under
            if chain.number in outcome.finished_at
        ]
        found.append({
            "fault": fault, "strikes": len(spans), "messages": len(under) * CHAIN_MESSAGES,
            "lost": len(numbers & lost), "doubled": len(numbers & doubled),
            "worst_delay_seconds": round(max(delays, default=0.0), 2),
        })  # fmt: skip
    return found


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The whole outcome as JSON data."""
    return {
        "settings": outcome.settings,
        "messages": _messages(outcome),
        "chains": len(outcome.ledger.chains),
        "deliveries": outcome.deliveries,
        "faults": rows(outcome),
        "not_run": outcome.not_run,
        "problems": [{"check": problem.check, "text": problem.text} for problem in outcome.problems],
    }


def show(outcome: Outcome, console: Console) -> None:
    """Print the table."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("fault")
    for name in ("strikes", "messages", "lost", "doubled", "worst delay"):
        table.add_column(name, justify="right")
    for row in rows(outcome):
        table.add_row(
            row["fault"], str(row["strikes"]), f"{row['messages']:,}", str(row["lost"]), str(row["doubled"]),
            f"{row['worst_delay_seconds']:.1f} s",
        )  # fmt: skip
    console.print(table)
    for name, why in outcome.not_run.items():
        console.print(f"not run: {name}: {why}", style="yellow")
    chains = len(outcome.ledger.chains)
    console.print(
        f"\n{_messages(outcome):,} messages in {chains:,} chains and "
        f"{len(outcome.ledger.bulks)} huge transactions, {outcome.deliveries:,} deliveries finished, "
        f"{len(outcome.strikes)} strikes; workers by {', '.join(outcome.settings)}"
    )
    for problem in outcome.problems:
        console.print(f"{problem.check}: {problem.text}", style="bold red", highlight=False)
    if not outcome.problems:
        console.print("Nothing lost, nothing done twice, order held, nothing left behind.", style="green")


def _messages(outcome: Outcome) -> int:
    """How many the senders and handlers wrote in all."""
    return len(outcome.ledger.chains) * CHAIN_MESSAGES + sum(outcome.ledger.bulks.values())
