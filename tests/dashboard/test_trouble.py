"""Is what to mend told in its order, once, and only where it is a fault?"""

from typing import Any

from runtime.dashboard.activity import SubscriptionActivity
from runtime.dashboard.listeners import silence
from runtime.dashboard.schemas import Declared
from runtime.dashboard.trouble import severity, troubles

WELL: dict[str, Any] = {
    "id": 1, "name": "desk.sort", "agent": "desk", "patterns": ["ticket.*"], "paused": False, "held": None,
    "workers": 1, "settled": True, "waiting": 0, "scheduled": 0, "about": False, "lag_seconds": None,
    "last_error": None,
}  # fmt: skip
QUIET: dict[str, Any] = {"written": []}


def told(
    *subscriptions: dict[str, Any], groups: Any = (), flow: Any = QUIET, failed: int = 0
) -> list[tuple[str, str]]:
    """The level and the sentence of each trouble; the first subscription failed so often."""
    hour = SubscriptionActivity()
    hour.done[59], hour.failed[59] = 10, failed
    stats = {"warnings": [], "subscriptions": subscriptions}
    return [(each.level, each.what) for each in troubles(stats, {1: hour}, groups, flow, {})]


def test_nothing_is_told_of_what_is_well() -> None:
    assert told(WELL, {**WELL, "id": 2, "workers": 0}, {**WELL, "id": 3, "paused": True}) == []
    assert told(WELL, failed=1) == []


def test_what_stands_still_comes_before_what_is_late() -> None:
    late = {**WELL, "id": 2, "name": "desk.answer", "waiting": 3, "lag_seconds": 90}
    stuck = {**WELL, "id": 3, "name": "desk.mail", "workers": 0, "waiting": 1}
    assert told(late, stuck) == [
        ("bad", "1 message of desk.mail waits: no worker runs it"), ("busy", "desk.answer is 2 min behind"),
    ]  # fmt: skip
    empty = SubscriptionActivity()
    assert [severity(each, empty) for each in (WELL, late, stuck)] == [0, 1, 3]


def test_a_failing_handler_and_its_dead_letters_are_one_trouble() -> None:
    group = {"subscription": "desk.sort", "count": 2, "errors": ["KeyError"]}
    other = {"subscription": "desk.mail", "count": 1, "errors": ["OSError"]}
    assert told(WELL, failed=5, groups=[other, group]) == [
        ("bad", "desk.sort fails: 5 of 15 attempts of the last hour, 2 dead letters"),
        ("bad", "desk.mail has 1 dead letter"),
    ]


def test_what_fails_more_often_comes_first() -> None:
    hours = {number: SubscriptionActivity() for number in (1, 2, 3)}
    for number, failures in ((1, 3), (2, 9), (3, 0)):
        hours[number].failed[59] = failures
    more = {**WELL, "id": 2, "name": "desk.answer"}
    stuck = {**WELL, "id": 3, "name": "desk.mail", "workers": 0, "waiting": 1}
    found = troubles({"warnings": [], "subscriptions": [WELL, more, stuck]}, hours, (), QUIET, {})
    assert [each.what.partition(" fails")[0] for each in found] == [
        "1 message of desk.mail waits: no worker runs it", "desk.answer", "desk.sort",
    ]  # fmt: skip


def test_silence_is_a_fault_only_of_what_came_from_outside() -> None:
    written = [
        {"agent": None, "key": "tiket.opened", "count": 2}, {"agent": None, "key": "ticket.opened", "count": 9},
        {"agent": "desk", "key": "mail.sent", "count": 9},
    ]  # fmt: skip
    assert told(WELL, flow={"written": written}) == [("busy", "No handler listens to tiket.opened")]
    message = {"key": "mail.sent", "parent_id": None, "handled": []}
    each = {"cache.forget": Declared(("mail.>",), deliver="each")}
    assert silence(message, [WELL], {}) == "nobody"
    assert silence(message, [WELL], each) is None
    assert silence({**message, "parent_id": 4}, [WELL], {}) == "end"
    assert silence({**message, "parent_id": 4, "key": "approval.requested"}, [WELL], {}) == "people"
    assert silence({**message, "key": "ticket.opened"}, [WELL], {}) == "early"
    assert silence({**message, "handled": [{"state": "done"}]}, [WELL], {}) is None
