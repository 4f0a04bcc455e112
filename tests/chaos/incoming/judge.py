"""Was a webhook lost, or stored twice, or handled twice? By the numbers that its sender was told are stored."""

from collections import Counter
from typing import Any

from tests.chaos.judge import Problem, some
from tests.chaos.ledger import Ledger


async def judge(connection: Any, ledger: Ledger) -> list[Problem]:
    """Hold the stream against what the sender knows."""
    rows = await connection.fetch(
        "select m.id, (m.value ->> 'number')::bigint as number, "
        "(select count(*) from runtime.runs r join runtime.subscriptions s on s.id = r.subscription "
        " where r.message_id = m.id and r.outcome = 'done' and s.name = 'counter.note') as finished "
        "from public.consciousness_stream m where m.key like 'incoming.%' order by m.id"
    )
    told = dict(ledger.driven["incoming"])
    stored = {row["number"]: row["id"] for row in rows}
    counts = Counter(row["number"] for row in rows)
    problems = [
        None if told else Problem("lost", "no webhook was taken in the whole campaign"),
        some("lost", "webhooks their sender was told are stored are not", sorted(told.keys() - stored.keys())),
        some("lost", "webhooks were answered with an id that is another's", [
            number for number, message in told.items() if stored.get(number, message) != message
        ]),
        some("doubled", "webhooks are stored twice", [number for number, count in counts.items() if count > 1]),
        some("lost", "webhooks have no finished run", [row["number"] for row in rows if not row["finished"]]),
        some("doubled", "webhooks were handled twice", [row["number"] for row in rows if row["finished"] > 1]),
    ]  # fmt: skip
    return [each for each in problems if each is not None]
