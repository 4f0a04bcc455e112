"""How does the database carry a call out? The plans of all its statements, also of those inside functions."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """One statement that ran, and its plan."""

    statement: str
    nodes: list[dict[str, Any]]

    def scans_of(self, table: str) -> set[str]:
        """How it reads a table: the names of the indexes, or the kind of scan where it is none by an index."""
        return {
            node.get("Index Name", node["Node Type"])
            for node in self.nodes
            if node.get("Relation Name") == table and "Scan" in node["Node Type"]
        }

    def conditions_on(self, index: str) -> str:
        """What it looks up in an index."""
        return " ".join(node["Index Cond"] for node in self.nodes if node.get("Index Name") == index)

    def rows_read(self, table: str) -> float:
        """How many rows of a table it looked at, those that a filter removed included; needs `analyze`."""
        return sum(
            node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
            for node in self.nodes
            if node.get("Relation Name") == table and "Scan" in node["Node Type"]
        )

    @property
    def sorted_by(self) -> str:
        """What it puts in order itself, where no index has the order."""
        return " ".join(key for node in self.nodes for key in node.get("Sort Key", ()))


@dataclass
class Plans:
    """Every statement that ran, in the order they ended."""

    all: list[Plan] = field(default_factory=list)

    def of(self, piece: str) -> list[Plan]:
        """Those whose statement has this piece."""
        return [plan for plan in self.all if piece in " ".join(plan.statement.split())]


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


@asynccontextmanager
async def explained(superuser: Any, *, analyze: bool = False) -> AsyncIterator[Plans]:
    """Collect the plans of what this connection runs meanwhile.

    Args:
        superuser: only a superuser may load the module that tells.
        analyze: also count the rows that each node saw.
    """
    plans = Plans()

    def take(_connection: object, message: Any) -> None:
        _, found, text = message.message.partition("plan:\n")
        if found:
            told = json.loads(text)
            plans.all.append(Plan(told["Query Text"], list(_nodes(told["Plan"]))))

    await superuser.execute(
        "load 'auto_explain'; set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on; "
        "set auto_explain.log_format = json; set auto_explain.log_level = notice; set client_min_messages = notice"
    )
    await superuser.execute(f"set auto_explain.log_analyze = {analyze}; set auto_explain.log_timing = off")
    superuser.add_log_listener(take)
    try:
        yield plans
    finally:
        superuser.remove_log_listener(take)
        await superuser.execute("set auto_explain.log_min_duration = -1")
