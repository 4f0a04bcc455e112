"""Was an answer lost, or written twice, or asked for under two ids? By what the target itself has seen."""

from collections import Counter, defaultdict
from typing import Any

from tests.chaos.judge import Problem, some
from tests.chaos.ledger import Ledger
from tests.chaos.outgoing.driver import REQUESTS, close


async def judge(connection: Any, ledger: Ledger) -> list[Problem]:
    """Hold the stream against what was written, and what the target was asked."""
    close()
    answers = Counter(
        row["number"]
        for row in await connection.fetch(
            "select (value ->> 'number')::int as number from public.consciousness_stream where key = 'outgoing.answer'"
        )
    )
    sent = ledger.driven["outgoing"]
    ids, numbers = defaultdict(set), defaultdict(set)
    for webhook_id, number in ledger.driven[REQUESTS]:
        ids[number].add(webhook_id)
        numbers[webhook_id].add(number)
    problems = [
        None if sent else Problem("lost", "nothing was posted in the whole campaign"),
        some("lost", "orders have no answer in the stream", [number for number in sent if not answers[number]]),
        some("doubled", "orders have more than one answer", [number for number, n in answers.items() if n > 1]),
        some("lost", "orders never came to the target", [number for number in sent if not ids[number]]),
        some("doubled", "orders came under more than one id", [each for each in sent if len(ids[each]) > 1]),
        some("lost", "ids stood for more than one order", [min(each) for each in numbers.values() if len(each) > 1]),
    ]  # fmt: skip
    return [each for each in problems if each is not None]
