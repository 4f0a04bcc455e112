"""Was a request lost, asked twice, left without an answer, answered twice or answered wrongly?"""

import json
from collections import Counter
from typing import Any

from tests.chaos.judge import Problem, some
from tests.chaos.ledger import Ledger

_WHOLE, _PART = "requests.whole", "requests.part"
# Who answers what, as the agents declare it, and with what.
_ANSWERS = {
    _WHOLE: {"desk.bill": lambda number: [-number, number]},
    _PART: {"left.answer": lambda number: number, "right.answer": lambda number: -number},
}


async def judge(connection: Any, ledger: Ledger) -> list[Problem]:
    """Hold the requests and answers in the stream against what the script asked and heard."""
    requests = await connection.fetch(
        "select id, key, value::int as number, parent_id from public.consciousness_stream "
        "where key in ('requests.whole', 'requests.part')"
    )
    answers = await connection.fetch(
        "select parent_id, headers ->> 'handler' as handler, value from public.consciousness_stream "
        "where key like 'answer.%' and headers ? 'answers'"
    )
    problems = [*_asked(requests, ledger), *_answered(requests, answers)]
    return [each for each in problems if each is not None]


def _asked(requests: list[Any], ledger: Ledger) -> list[Problem | None]:
    """What the script asked is there once and was heard; each of those made one request in turn."""
    asked = ledger.driven["requests"]
    whole = Counter(row["number"] for row in requests if row["key"] == _WHOLE)
    parts = Counter(row["number"] for row in requests if row["key"] == _PART)
    right = _ANSWERS[_WHOLE]["desk.bill"]
    return [
        None if len(asked) > 1 else Problem("lost", f"only {len(asked)} requests were asked in all"),
        some("lost", "requests are not in the stream", [each.number for each in asked if not whole[each.number]]),
        some("lost", "requests were never answered", [each.number for each in asked if each.heard is None]),
        some("results", "requests were answered wrongly",
             [each.number for each in asked if each.heard not in (None, right(each.number))]),
        some("doubled", "requests are stored twice", [number for number, n in whole.items() if n > 1]),
        some("doubled", "handlers asked again instead of finding what they had asked",
             [number for number, n in parts.items() if n > 1]),
    ]  # fmt: skip


def _answered(requests: list[Any], answers: list[Any]) -> list[Problem | None]:
    """Each request has one right answer of each handler, and no other."""
    given: dict[tuple[int, str], list[Any]] = {}
    for row in answers:
        given.setdefault((row["parent_id"], row["handler"]), []).append(json.loads(row["value"]))
    missing, doubled, wrong = [], [], []
    for row in requests:
        for handler, value in _ANSWERS[row["key"]].items():
            found = given.get((row["id"], handler), [])
            missing += [row["number"]] if not found else []
            doubled += [row["number"]] if len(found) > 1 else []
            wrong += [row["number"]] if any(each != value(row["number"]) for each in found) else []
    return [
        some("lost", "requests lack an answer in the stream", missing),
        some("doubled", "requests were answered twice by one handler", doubled),
        some("results", "requests have a wrong answer in the stream", wrong),
    ]
