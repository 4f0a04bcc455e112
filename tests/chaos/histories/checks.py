"""What must hold of a history that has ended, and of the database it was played on."""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from runtime.keys import is_exact, matches
from tests.chaos.histories.clients import SUBSCRIPTIONS
from tests.chaos.histories.history import History, Place, Run

_BY_NAME = {each["name"]: each for each in SUBSCRIPTIONS}


def judge(history: History, left: dict[str, Any]) -> list[str]:
    """Everything that is wrong, one sentence each; nothing, where all is well.

    Args:
        left: what the database holds after everything was drained, as `play.leftovers` reads it.
    """
    return [
        *history.problems,
        *_finished(history, left),
        *_one_at_a_time(history),
        *_in_order(history),
        *_nothing_left(left),
        *_processed(history, left),
    ]


def _wanted(history: History) -> Iterator[tuple[Place, str]]:
    for message in history.messages.values():
        for each in SUBSCRIPTIONS:
            if any(matches(pattern, message.key) for pattern in each["patterns"]):
                yield (message.id, each["name"]), message.key


def _finished(history: History, left: dict[str, Any]) -> Iterator[str]:
    """G1: once each, as often as replays allow; else expired, as many as the kernel has counted."""
    missing, slack = 0, 0
    stories: list[str] = []
    wanted = dict(_wanted(history))
    for place in wanted:
        due, ended = 1 + history.replays[place], history.ends[place]
        if ended > due:
            yield f"G1: {place} ended {ended} times, and was to be handled {due} times: {history.notes[place]}"
        elif place in history.fuzzy:
            slack += due - ended
        else:
            missing += due - ended
            if due > ended and history.notes[place]:
                stories.append(f"{place}: {history.notes[place]}")
    for run in history.runs:
        if run.place not in wanted and run.place[0] not in history.uncertain:
            yield f"G1: {run.place} ran, and was never committed"
    slack += len(SUBSCRIPTIONS) * len(history.uncertain)
    # Pruned while a dead letter of it was kept, and that was redriven or discarded later.
    slack += sum(len(moments) for moments in history.releases.values())
    if not missing <= left["expired"] <= missing + slack:
        yield (
            f"G1: {missing} deliveries (and up to {slack} more) ended without a word, "
            f"and {left['expired']} have expired. Some of them: {stories[:9]}"
        )


def _lanes(history: History) -> dict[tuple[str, str], list[Run]]:
    lanes: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in history.runs:
        if _BY_NAME[run.place[1]].get("ordered"):
            lanes[run.place[1], run.key].append(run)
    return lanes


def _one_at_a_time(history: History) -> Iterator[str]:
    """K9: no two of one key run at once; and of a limited subscription no more than its limit."""
    for lane, runs in _lanes(history).items():
        for run, following in itertools.pairwise(runs):
            if run.ended is None or run.ended > following.began:
                yield f"K9: {run.place} and {following.place} of {lane} ran at once: {run}, {following}"
    for name, each in _BY_NAME.items():
        limit = each.get("concurrency_total")
        if limit is None:
            continue
        moments = [(run.began, 1) for run in history.runs if run.place[1] == name]
        moments += [(run.ended or history.now, -1) for run in history.runs if run.place[1] == name]
        at_once = most = 0
        for _, change in sorted(moments):
            at_once += change
            most = max(most, at_once)
        if most > limit:
            yield f"limits: {most} of {name} ran at once, {limit} may"


def _let_go(history: History, place: Place, *, died: int) -> int:
    """When a dead letter that holds up its key may first have let it go, by an operator or by a prune."""
    moments = [at for at in history.releases.get(place, []) if at > died]
    # Retention ends what nobody has taken for long, dead letters' deliveries too. It may have begun before the death.
    moments += [
        max(each.began, died) for each in history.prunes if place[0] in each.ids and each.committed > died
    ]
    return min(moments, default=history.now)


def _in_order(history: History) -> Iterator[str]:
    """G8: if A was committed before B was inserted, A ends before B starts; only what never came back is judged."""
    for (name, key), runs in _lanes(history).items():
        first_start: dict[int, int] = {}
        last_end: dict[int, int] = {}
        for run in runs:
            message, place = run.place[0], run.place
            came_back = min(history.revivals.get(place) or [history.now + 1])
            if run.began > came_back or message not in history.messages:
                continue
            first_start.setdefault(message, run.began)
            last_end[message] = run.ended or history.now
            # Not one that an operator cancelled while it ran: it may have ended so.
            if (
                run.outcome in ("dead", "undone")
                and _BY_NAME[name].get("dead_blocks")
                and place not in history.fuzzy
            ):
                last_end[message] = _let_go(history, place, died=last_end[message])
        # The latest end of all that were committed before this one was begun.
        ended = sorted((history.messages[m].committed, end, m) for m, end in last_end.items())
        started = sorted((history.messages[m].began, start, m) for m, start in first_start.items())
        latest, place_in = (0, 0), 0
        for began, start, message in started:
            while place_in < len(ended) and ended[place_in][0] < began:
                latest = max(latest, (ended[place_in][1], ended[place_in][2]))
                place_in += 1
            if latest[0] > start:
                yield f"G8: {message} of {name}, {key} started at {start}, before {latest[1]} had ended at {latest[0]}"


def _nothing_left(left: dict[str, Any]) -> Iterator[str]:
    """Every lane reached its end without a sweep's help, and no helper table holds anything."""
    if left["stood still"]:
        yield f"K9: these stood still until a sweep healed their keys: {left['stood still']}"
    if left["waiting"]:
        yield f"G13: these went on waiting for messages that are there: {left['waiting']}"
    for table in ("deliveries", "unmarked", "dead_letters", "leases"):
        if left[table]:
            yield f"{table}: {left[table]} are left"


def _processed(history: History, left: dict[str, Any]) -> Iterator[str]:
    """K10: true where a subscription by an exact key had it, else false."""
    marking = [p for each in SUBSCRIPTIONS if all(map(is_exact, each["patterns"])) for p in each["patterns"]]
    wrong = [
        id_
        for id_, processed in left["processed"].items()
        if id_ in history.messages and processed != (history.messages[id_].key in marking)
    ]
    if wrong:
        stories = [f"{place}: {notes}" for place, notes in history.notes.items() if place[0] == min(wrong)]
        yield f"K10: processed is wrong of {len(wrong)} messages, the first of them {min(wrong)}: {stories}"
