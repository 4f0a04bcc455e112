"""Was a message of a batch lost or done twice, or is what it caused another one's? The sender's notes are believed."""

from collections import Counter
from typing import Any

from tests.chaos.judge import Problem, some
from tests.chaos.ledger import Ledger


async def judge(connection: Any, ledger: Ledger) -> list[Problem]:
    """Hold the entries, what was booked and the runs of both against what was sent and what handlers did."""
    rows = await connection.fetch(
        "select m.id, m.key, m.value::int as number, m.parent_id, array(select r.attempt from runtime.runs r "
        " join runtime.subscriptions s on s.id = r.subscription where r.message_id = m.id and r.outcome = 'done' "
        " and s.name = case m.key when 'batches.entry' then 'gather.book' else 'gather.tally' end) as done "
        "from public.consciousness_stream m where m.key like 'batches.%'"
    )
    sent: dict[int, int] = dict(ledger.driven["batches"])
    entries = {row["id"]: row["number"] for row in rows if row["key"] == "batches.entry"}
    booked = [row for row in rows if row["key"] == "batches.booked"]
    stored = Counter(entries.values())
    caused = Counter(row["parent_id"] for row in booked)
    known = ledger.by_message()
    handlers = {"batches.entry": "gather.book", "batches.booked": "gather.tally"}
    ghosts = [
        row["id"]
        for row in rows
        for attempt in row["done"]
        if attempt not in {each.attempt for each in known[handlers[row["key"]], row["id"]]}
    ]
    problems = [
        None if sent else Problem("lost", "nothing was sent"),
        some("lost", "messages sent are not stored under their ids",
             [number for number, id_ in sent.items() if entries.get(id_) != number]),
        some("doubled", "messages are stored twice", [number for number, count in stored.items() if count > 1]),
        some("lost", "messages have no finished run", [row["id"] for row in rows if not row["done"]]),
        some("doubled", "messages have more than one finished run",
             [row["id"] for row in rows if len(row["done"]) > 1]),
        some("lost", "entries are not booked", [id_ for id_ in entries if not caused[id_]]),
        some("doubled", "entries are booked twice", [id_ for id_, count in caused.items() if count > 1]),
        some("results", "entries are booked as another", [
            row["id"] for row in booked if entries.get(row["parent_id"]) != row["number"]
        ]),
        some("ledger", "finished runs are of attempts that no handler knows of", ghosts),
    ]  # fmt: skip
    return [problem for problem in problems if problem is not None]
