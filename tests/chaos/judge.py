"""Was anything lost, doubled or out of order? The ledger against the database, by checks that know no kernel rule."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.chaos.ledger import Entry, Ledger

_SHOWN = 5

# Who gets what, as the agents declare it.
_READERS = {
    "lane": ("orderly.begin",),
    "step": ("wide.left", "wide.right"),
    "half": ("last.join",),
    "bulk": ("bulk.count",),
    "result": (),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that must not be.

    Attributes:
        check: which check found it: lost, doubled, results, order, leases, processed, dead, ledger or processes.
        numbers: the chains it is about, where that is known.
    """

    check: str
    text: str
    numbers: tuple[int, ...] = ()


async def judge(connection: Any, ledger: Ledger) -> list[Problem]:
    """Hold what the database says against what was written down beside it."""
    messages = await connection.fetch(
        "select id, split_part(key, '.', 2) as kind, value, processed, agent, "
        "case when jsonb_typeof(value) = 'object' then (value ->> 'number')::int "
        "     when jsonb_typeof(value) = 'number' then value::int end as number "
        "from public.consciousness_stream where key like 'chaos.%'"
    )
    runs = await connection.fetch(
        "select r.message_id, s.name, r.attempt from runtime.runs r "
        "join runtime.subscriptions s on s.id = r.subscription where r.outcome = 'done'"
    )
    dead = await connection.fetch(
        "select message_id, subscription_name, error from runtime.dead_letters "
        # What is written or handled to die is another judge's.
        "where key not in ('hostile.row', 'unruly.message', 'sagas.order')"
    )
    left = await connection.fetchval("select count(*) from runtime.deliveries where lease is not null")
    return [
        *_sent(messages, ledger),
        *_finished(messages, runs),
        *_results(messages, ledger),
        *_noted(runs, ledger),
        *_order(runs, ledger),
        *_processed(messages),
        *[
            Problem("dead", f"{row['subscription_name']} on #{row['message_id']}: {row['error']}")
            for row in dead[:_SHOWN]
        ],
        *([Problem("leases", f"{left} leases are left")] if left else []),
    ]


def _sent(messages: list[Any], ledger: Ledger) -> list[Problem]:
    """What senders saw committed is there once, and nothing else is."""
    stored = Counter(row["number"] for row in messages if row["kind"] == "lane")
    sent = {chain.number for chain in ledger.chains}
    ids = {row["id"] for row in messages}
    bulks = Counter(row["agent"] for row in messages if row["kind"] == "bulk")
    twice = sorted(number for number, count in stored.items() if count > 1)
    unknown = sorted(chain.number for chain in ledger.chains if chain.message not in ids)
    problems = [
        some("lost", "committed messages are not in the stream", sorted(sent - stored.keys())),
        some("lost", "ids that a sender was given are not in the stream", unknown),
        some("doubled", "messages are stored twice under one dedup_key", twice),
        *(
            Problem("lost", f"of the {rows} rows of {name} {bulks[name]} are there")
            for name, rows in ledger.bulks.items() if bulks[name] != rows
        ),
    ]  # fmt: skip
    return [problem for problem in problems if problem is not None]


def _finished(messages: list[Any], runs: list[Any]) -> list[Problem]:
    """Every message has exactly one finished run for each that reads it."""
    finished = Counter((row["message_id"], row["name"]) for row in runs)
    expected = {
        (row["id"], name): row["number"] for row in messages for name in _READERS.get(row["kind"], ())
    }
    lost = sorted(number for place, number in expected.items() if not finished[place])
    doubled = sorted(expected.get(place, -1) for place, count in finished.items() if count > 1)
    problems = (
        some("lost", "deliveries have no finished run", lost),
        some("doubled", "deliveries have more than one finished run", doubled),
    )
    return [problem for problem in problems if problem is not None]


def _results(messages: list[Any], ledger: Ledger) -> list[Problem]:
    """Every chain has one step, two halves and two results: emits are there with their finish, and only once."""
    problems = []
    for kind, wanted in (("step", 1), ("half", 2), ("result", 2)):
        counts = Counter(row["number"] for row in messages if row["kind"] == kind)
        wrong = sorted(chain.number for chain in ledger.chains if counts[chain.number] != wanted)
        if problem := some("results", f"chains have not exactly {wanted} messages chaos.{kind}", wrong):
            problems.append(problem)
    return problems


def _noted(runs: list[Any], ledger: Ledger) -> list[Problem]:
    """What the kernel calls finished was really done: the very attempt stands in the ledger."""
    entries = ledger.by_message()
    ghosts = [
        f"{row['name']} on #{row['message_id']}"
        for row in runs
        if row["name"] != "bulk.count"
        and row["attempt"] not in {entry.attempt for entry in entries[row["name"], row["message_id"]]}
    ]
    return (
        [Problem("ledger", f"{len(ghosts)} finished runs no handler knows of: {', '.join(ghosts[:_SHOWN])}")]
        if ghosts
        else []
    )


def _order(runs: list[Any], ledger: Ledger) -> list[Problem]:
    """In each lane a message begins only after the finished attempt of the one sent before it has ended."""
    final = {row["message_id"]: row["attempt"] for row in runs if row["name"] == "orderly.begin"}
    by_number: dict[int, list[Entry]] = defaultdict(list)
    for entry in ledger.entries:
        if entry.handler == "orderly.begin":
            by_number[entry.number].append(entry)
    wrong = []
    lanes: dict[int, list[int]] = defaultdict(list)
    for chain in ledger.chains:
        lanes[chain.lane].append(chain.number)
    for numbers in lanes.values():
        numbers.sort()
        for before, after in pairwise(numbers):
            ends = [each.ended for each in by_number[before] if each.attempt == final.get(each.message)]
            begins = [each.began for each in by_number[after] if each.attempt == final.get(each.message)]
            if ends and begins and min(begins) < min(ends):
                wrong.append(after)
    problem = some("order", "messages began before the one sent before them in their lane had ended", wrong)
    return [problem] if problem else []


def _processed(messages: list[Any]) -> list[Problem]:
    """`processed` is set where a handler listens to exactly that key, and nowhere else."""
    wrong = sorted(row["id"] for row in messages if row["processed"] != (row["kind"] in ("step", "bulk")))
    return (
        [Problem("processed", f"{len(wrong)} messages are marked wrongly: {wrong[:_SHOWN]}")] if wrong else []
    )


def some(check: str, what: str, numbers: list[int]) -> Problem | None:
    """One problem with so many numbers, the first of them shown; none where there are none."""
    if not numbers:
        return None
    return Problem(check, f"{len(numbers)} {what}: {numbers[:_SHOWN]}", tuple(numbers))
