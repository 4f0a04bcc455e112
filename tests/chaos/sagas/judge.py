"""Was too little or too much undone, or in another order, or does the dead letter not say so?"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.chaos.judge import Problem, some
from tests.chaos.ledger import Ledger
from tests.chaos.sagas.fates import Fate, fate_of

# Times are those of the database, whose clock no fault moves.
_ORDERS = """
    select m.id, m.value::text::bigint as number, m.headers ->> 'forks' as forks,
           array(select s.name from runtime.steps s where s.message_id = m.id and s.undo is not null
                 order by s.created_at) as finished,
           array(select substr(s.name, 6) from runtime.steps s
                 where s.message_id = m.id and starts_with(s.name, 'undo.') and s.value = 'true'
                 order by s.created_at) as undone,
           array(select l.error from runtime.dead_letters l where l.message_id = m.id) as errors,
           (select count(*) from public.consciousness_stream e
            where e.parent_id = m.id and e.key = 'sagas.made') as made,
           exists (select from runtime.steps s join runtime.steps o using (subscription, name, value, created_at)
                   where s.message_id = m.id and s.name = 'flight' and s.undo is null
                     and o.message_id = (m.headers ->> 'forks')::bigint) as has_shared
    from public.consciousness_stream m where m.key = 'sagas.order'
"""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What has to be there of one order."""

    finished: list[str]
    is_undone: bool
    is_made: bool


def _wanted(fate: Fate, *, has_shared: bool) -> _Wanted:
    # A step that a fork shares is the first message's to undo.
    parts = ["flight"] * (not has_shared) + ["hotel"] + ["car"] * (fate is not Fate.GIVEN_UP_EARLY)
    return _Wanted(parts, fate in (Fate.GIVEN_UP_EARLY, Fate.GIVEN_UP), fate is Fate.MADE)


async def judge(connection: Any, ledger: Ledger) -> list[Problem]:
    """Hold steps, undos, dead letters and results against what was to become of each order."""
    rows = await connection.fetch(_ORDERS)
    stored = Counter(row["number"] for row in rows if row["forks"] is None)
    ordered: list[int] = ledger.driven["sagas"]
    noted = ledger.by_message()
    problems = [
        None if len(ordered) > 4 else Problem("lost", f"only {len(ordered)} journeys were ordered in all"),
        None if any(row["forks"] for row in rows) else Problem("lost", "no journey was forked"),
        some("lost", "journeys were ordered and are not there", [each for each in ordered if not stored[each]]),
        some("doubled", "journeys are there twice", [number for number, count in stored.items() if count > 1]),
        # One that was undone by then is done again.
        some("results", "forks do not share the step before", [
            row["id"] for row in rows
            if row["forks"] and not (row["has_shared"] or _wanted(fate_of(row["number"]), has_shared=True).is_undone)
        ]),
    ]  # fmt: skip
    wrong = [(row["id"], fault) for row in rows for fault in _faults(row, noted)]
    by_fault = Counter(fault for _, fault in wrong)
    problems += [
        some("results", f"journeys of which {fault}", [id_ for id_, other in wrong if other == fault])
        for fault in by_fault
    ]
    return [each for each in problems if each is not None]


def _faults(row: Any, noted: Any) -> Iterator[str]:
    """Yield what is wrong with one order."""
    wanted = _wanted(fate_of(row["number"]), has_shared=row["has_shared"])
    reverse = wanted.finished[::-1] if wanted.is_undone else []
    if row["finished"] != wanted.finished:
        yield "other steps are finished than were to be"
    if row["undone"] != reverse:
        yield "other steps are undone, or in another order"
    if (row["made"], len(row["errors"])) != (int(wanted.is_made), int(not wanted.is_made)):
        yield "the end is another one"
    accounts = [error.splitlines()[1:] for error in row["errors"]]
    if accounts != [[f"Undone: {', '.join(reverse)}"] if reverse else []] * (not wanted.is_made):
        yield "the dead letter says something else"
    called = {step for step in wanted.finished if noted[f"agency.undo.{step}", row["id"]]}
    if called != set(reverse):
        yield "undos were called that had not to be, or not called"
