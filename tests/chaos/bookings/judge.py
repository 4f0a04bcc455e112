"""Is a booking there without its step or end, or twice; or an end without its booking?"""

import json
from collections import Counter
from typing import Any

from tests.chaos.judge import Problem, some
from tests.chaos.ledger import Ledger


async def judge(connection: Any, ledger: Ledger) -> list[Problem]:
    """Hold the table against the stream and its steps."""
    orders = ledger.driven["bookings"]
    rows = await connection.fetch("select number, part from public.bookings")
    parts = {
        part: Counter(row["number"] for row in rows if row["part"] == part) for part in ("reserved", "ended")
    }
    ends = [
        json.loads(row["value"])
        for row in await connection.fetch(
            "select value from public.consciousness_stream where key = 'bookings.ended'"
        )
    ]
    ended = Counter(each["number"] for each in ends)
    booked = Counter(each["number"] for each in ends if each["is_booked"])
    steps = Counter(
        row["number"]
        for row in await connection.fetch(
            "select (m.value #>> '{}')::bigint as number from runtime.steps s "
            "join public.consciousness_stream m on m.id = s.message_id where m.key = 'bookings.order'"
        )
    )
    problems = [
        None if len(orders) > 1 else Problem("lost", f"only {len(orders)} bookings were ordered in all"),
        some("lost", "bookings were ordered and never ended", [each for each in orders if not ended[each]]),
        some("doubled", "bookings ended twice", [number for number, count in ended.items() if count > 1]),
        some("results", "ends have other rows than one in a table", _differing(parts["ended"], booked)),
        some("results", "steps have other rows than one in a table", _differing(parts["reserved"], steps)),
    ]  # fmt: skip
    return [each for each in problems if each is not None]


def _differing(found: Counter[int], wanted: Counter[int]) -> list[int]:
    return [number for number in found | wanted if found[number] != wanted[number]]
