"""Has each unruly delivery ended, done or dead, once? What they cost others, the judges of the others tell."""

from typing import Any

from tests.chaos.judge import Problem, some
from tests.chaos.ledger import Ledger

_HANDLERS = {"unruly.raises", "unruly.lingers", "unruly.forks", "unruly.leaves"}


async def judge(connection: Any, ledger: Ledger) -> list[Problem]:
    """Hold what became of each message against what was sent."""
    rows = await connection.fetch(
        "select m.id, array(select s.name from runtime.runs r join runtime.subscriptions s on s.id = r.subscription "
        " where r.message_id = m.id and r.outcome = 'done') as done, "
        "array(select d.subscription_name from runtime.dead_letters d where d.message_id = m.id) as dead "
        "from public.consciousness_stream m where m.key = 'unruly.message'"
    )
    sent: dict[int, int] = dict(ledger.driven["unruly"])
    stored = {row["id"] for row in rows}
    ended = {row["id"]: sorted([*row["done"], *row["dead"]]) for row in rows}
    problems = [
        None if sent else Problem("lost", "nothing was sent"),
        some("lost", "messages sent are not stored", [id_ for id_ in sent.values() if id_ not in stored]),
        some("lost", "deliveries have not ended", [id_ for id_, names in ended.items() if _HANDLERS - set(names)]),
        some("doubled", "deliveries have ended twice",
             [id_ for id_, names in ended.items() if len(names) > len(set(names))]),
        some("results", "what always fails was finished",
             [row["id"] for row in rows if "unruly.raises" in row["done"]]),
    ]  # fmt: skip
    return [problem for problem in problems if problem is not None]
