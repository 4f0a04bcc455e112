"""Did a handler wait for ever, go on with the wrong message, or go on twice?"""

import json
from collections import Counter
from typing import Any

from tests.chaos.judge import Problem, some
from tests.chaos.ledger import Ledger


async def judge(connection: Any, ledger: Ledger) -> list[Problem]:
    """Hold what was sold against what was ordered and paid."""
    orders = ledger.driven["waits"]
    paid = {
        row["number"]: row["id"]
        for row in await connection.fetch(
            "select id, (value ->> 'number')::int as number from public.consciousness_stream where key = 'waits.paid'"
        )
    }
    sold = [
        json.loads(row["value"])
        for row in await connection.fetch(
            "select value from public.consciousness_stream where key = 'waits.sold'"
        )
    ]
    count = Counter(each["number"] for each in sold)
    suspended = await connection.fetchval("select count(*) from runtime.runs where outcome = 'suspended'")
    left = await connection.fetchval(
        "select (select count(*) from runtime.waits) + (select count(*) from runtime.unsettled_waits)"
    )
    problems = [
        None if len(orders) > 1 else Problem("lost", f"only {len(orders)} orders were made in all"),
        None if suspended else Problem("lost", "no handler was ever suspended"),
        None if not left else Problem("lost", f"{left} waits are left though every delivery has ended"),
        some("lost", "orders were paid and never sold", [each for each in orders if not count[each]]),
        some("doubled", "orders were sold twice", [number for number, n in count.items() if n > 1]),
        some("results", "orders were sold for the payment of another",
             [each["number"] for each in sold if each["paid"] != paid.get(each["number"])]),
    ]  # fmt: skip
    return [each for each in problems if each is not None]
