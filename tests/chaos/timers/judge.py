"""Was a slot ticked twice, or left out? The slots are the seconds that passed: nothing of the kernel is believed."""

from collections import Counter
from itertools import pairwise
from typing import Any

from tests.chaos.judge import Problem, some
from tests.chaos.ledger import Ledger

# The seconds between two slots of each timer, as the agents declare it.
STEPS = {"clock.each": 1, "clock.some": 2}


async def judge(connection: Any, _: Ledger) -> list[Problem]:
    """Hold the ticks in the stream against the slots that passed."""
    problems = []
    for name, step in STEPS.items():
        rows = await connection.fetch(
            "select m.id, extract(epoch from (m.value ->> 'slot')::timestamptz)::int as slot, "
            "(m.value ->> 'missed')::int as missed, "
            "(select count(*) from runtime.runs r join runtime.subscriptions s on s.id = r.subscription "
            " where r.message_id = m.id and r.outcome = 'done' and s.name = $1) as finished, "
            "exists (select from runtime.deliveries d where d.message_id = m.id) as is_waiting "
            "from public.consciousness_stream m where m.key = 'timers.' || $1 order by slot, m.id",
            name,
        )
        problems += [each for each in _ticked(name, step, rows) if each is not None]
    return problems


def _ticked(name: str, step: int, rows: list[Any]) -> list[Problem | None]:
    counts = Counter(row["slot"] for row in rows)
    gaps = [
        after["slot"]
        for before, after in pairwise(rows)
        # What was passed over is told, so that nothing may be missing between two ticks.
        if after["slot"] > before["slot"] + step * (after["missed"] + 1)
    ]
    return [
        None if len(rows) > 1 else Problem("lost", f"{name} has ticked {len(rows)} times in all"),
        some("doubled", f"slots of {name} ticked more than once", [each for each, n in counts.items() if n > 1]),
        some("lost", f"slots of {name} come after others that never ticked", gaps),
        some("lost", f"ticks of {name} have no finished run", [
            row["slot"] for row in rows if not row["finished"] and not row["is_waiting"]
        ]),
        some("doubled", f"ticks of {name} were handled twice", [row["slot"] for row in rows if row["finished"] > 1]),
    ]  # fmt: skip
