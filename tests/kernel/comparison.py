"""Is what is committed what the model predicts, to the last row?"""

from collections import Counter

from tests.kernel.kept import FAR
from tests.kernel.model import HOUR, Delivery, Model
from tests.kernel.state import FRESH, PARKED, State

_DEAD_LEASE = "00000000-0000-0000-0000-000000000000"
_TOLERANCE = 0.9 * HOUR
"""Seconds of real time an example may take."""


def compare(model: Model, state: State) -> None:
    """All that is committed is as predicted, and nothing else is there."""
    assert set(state.messages) == set(model.messages), "G4: stored or pruned otherwise"
    for id_, message in model.messages.items():
        row = state.messages[id_]
        assert (row["key"], row["value"]) == (message.draft.key, message.draft.token)
        assert (row["parent"], row["agent"]) == (message.parent, message.agent)
        late = message.processed and id_ in state.unmarked
        assert row["processed"] == message.processed or late, f"K10: processed of {message}"
    assert set(state.deliveries) == set(model.deliveries), (
        f"deliveries: {set(state.deliveries) - set(model.deliveries)} too many, "
        f"{set(model.deliveries) - set(state.deliveries)} missing"
    )
    for delivery in model.deliveries.values():
        _compare_delivery(model, delivery, state)
    runs = Counter((*r[:3], 0 if r[2] == "expired" else r[3]) for r in state.runs.elements())
    assert runs == model.runs, f"runs: {runs - model.runs} too many, {model.runs - runs} missing"
    assert state.dedup == {key: id_ for key, (id_, _) in model.dedup.items()}, "G10"
    model.compare_kept(state)
    for number, subscription in model.subscriptions.items():
        row = state.subscriptions[number]
        assert (row["paused"], row["expired"]) == (subscription.paused, subscription.expired), subscription
    _compare_dead(model, state)


def _compare_delivery(model: Model, delivery: Delivery, state: State) -> None:
    row = state.deliveries[delivery.place]
    lease = _DEAD_LEASE if delivery.is_blocking else delivery.lease
    expected = (delivery.attempts, delivery.crashes, lease, delivery.marks)
    assert (row["attempts"], row["crashes"], row["lease"], row["marks"]) == expected, delivery
    if delivery.is_unsettled:
        # The next looks put it off and call it back as they need.
        return
    if delivery.is_blocking:
        assert row["due"] == PARKED, delivery
    elif row["due"] == PARKED:
        waited_for = [*model.before(delivery), *model.beside(delivery)]
        is_safe = any(d.is_blocking or state.deliveries[d.place]["due"] != PARKED for d in waited_for)
        assert is_safe, f"K9: {delivery} is parked, and nothing will let it go"
    elif row["due"] == FRESH:
        was_parked = (
            delivery.subscription.was_ordered and delivery.due is not None and delivery.due <= model.now
        )
        assert delivery.due is None or was_parked, delivery
    elif delivery.due is not None and delivery.due - model.now > FAR / 2:
        assert row["due"] > FAR / 2, delivery
    elif delivery.due is not None and (delivery.lease is not None or delivery.due > model.now):
        assert -_TOLERANCE < delivery.due - model.now - row["due"] < _TOLERANCE, (delivery, row["due"])
    else:
        # Due since when is nobody's business: what is let go after it was parked is due from then on.
        assert row["due"] <= 0, delivery


def _compare_dead(model: Model, state: State) -> None:
    for id_, row in state.dead.items():
        if id_ in model.dead:
            continue
        place = (row["message"], row["subscription"])
        assert (place, row["reason"]) in model.buried, f"G5: no reason for dead letter {row}"
        model.buried.remove((place, row["reason"]))
        model.dead[id_] = place
        assert row["value"] == model.messages[place[0]].draft.token, row
        assert row["attempts"] == sum(n for run, n in model.runs.items() if run[:2] == place)
    assert not model.buried, f"G5: no dead letter of {model.buried}"
    assert set(state.dead) == set(model.dead), "G5: dead letters"
