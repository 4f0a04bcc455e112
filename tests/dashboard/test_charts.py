"""The waterfall of a message: attempts, the stretches between them, and steps, along one axis of time."""

from typing import Any

from runtime.dashboard.charts import waterfall


def run(attempt: int, outcome: str, ended_at: str, seconds: float) -> dict[str, Any]:
    return {
        "attempt": attempt, "outcome": outcome, "seconds": seconds, "error": None,
        "ended_at": f"2026-12-01T10:{ended_at}Z",
    }  # fmt: skip


def test_a_stretch_that_is_over_lies_between_the_attempts_that_it_parted() -> None:
    handled = {
        "subscription": "cashier.refund", "state": "done", "waits": [],
        "runs": [run(1, "suspended", "00:10", 10), run(1, "done", "01:40", 10)],
        "steps": [{"name": "charge", "key": "7", "occurrence": 1, "created_at": "2026-12-01T10:00:05Z"}],
    }  # fmt: skip
    message = {"id": 1, "key": "refund.wanted", "created_at": "2026-12-01T10:00:00Z", "handled": [handled]}
    _, lane = waterfall([message], width=108, label=0).lanes
    # A second is a unit wide: 100 seconds on what is left of the width.
    assert [(bar.kind, bar.x, bar.width) for bar in lane.bars] == [
        ("held", 10.0, 80.0), ("calm", 0.0, 10.0), ("good", 90.0, 10.0), ("kept", 5.0, 2),
    ]  # fmt: skip
    assert lane.bars[0].title == "suspended for 80 s"
    assert lane.bars[-1].title == "step charge [7] finished after 5.000 s"


def test_no_attempt_begins_after_a_step_of_its_own() -> None:
    steps = [
        {"name": name, "key": "", "occurrence": 1, "created_at": f"2026-12-01T10:00:{at}Z"}
        for name, at in (("draft", "04"), ("send", "55"))
    ]
    handled = {
        "subscription": "writer.write", "state": "done", "waits": [],
        # Each was reported a while after it had ended.
        "runs": [run(1, "failed", "00:10", 2), run(2, "done", "01:40", 10)], "steps": steps,
    }  # fmt: skip
    message = {"id": 1, "key": "note.added", "created_at": "2026-12-01T10:00:00Z", "handled": [handled]}
    _, lane = waterfall([message], width=108, label=0).lanes
    assert [(bar.x, bar.width) for bar in lane.bars[:2]] == [(4.0, 6.0), (55.0, 45.0)]
