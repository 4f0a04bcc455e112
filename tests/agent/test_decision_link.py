"""Signed links: what they hold, how long they count, and what is refused."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from runtime.agent.approval import request_value
from runtime.agent.context import Context
from runtime.agent.decision_link import DecisionLinks
from runtime.errors import BadSignature, InvalidValue, SettingsError
from runtime.message import Message

NOW = datetime(2026, 12, 2, 9, tzinfo=UTC)
NEW, OLD = ("new-secret-of-thirty-two-bytes-and-more", "old-secret-of-thirty-two-bytes-and-more")
LINKS = DecisionLinks([NEW, OLD], "https://agents.example/approval")


def asked(until: object = None, **more: Any) -> Message[Any]:
    """A request for approval."""
    value = {**request_value("Refund it?", None, None, None), **({} if until is None else {"until": until})}
    return Message(**{"id": 2, "key": "approval.requested", "value": value, "created_at": NOW, **more})


def token(links: DecisionLinks, request: Message[Any], by: str | None = None) -> str:
    """The signed part of a link."""
    page, _, signed = links.url(request, by=by, now=NOW).partition("?token=")
    assert page == "https://agents.example/approval"
    return signed


def test_a_link_names_its_request_and_whom_it_is_for() -> None:
    link = LINKS.read(token(LINKS, asked(), "Ada Ørsted <ada@example.com>"), now=NOW.timestamp())
    assert (link.request, link.identity, link.by) == (
        2,
        asked().idempotency_key,
        "Ada Ørsted <ada@example.com>",
    )
    assert LINKS.read(token(LINKS, asked()), now=NOW.timestamp()).by is None
    rotated = token(DecisionLinks([OLD], LINKS.page), asked())
    assert LINKS.read(rotated, now=NOW.timestamp()).request == 2
    assert NEW not in repr(LINKS)


@pytest.mark.parametrize(
    ("until", "days"),
    [
        (None, 7),
        ((NOW + timedelta(days=2)).isoformat(), 2),
        ("2027-06-01T00:00:00Z", 7),
        ("soon", 7),
        ([1], 7),
    ],
)
def test_it_counts_until_the_deadline_and_for_a_week_at_most(until: object, days: int) -> None:
    signed, end = token(LINKS, asked(until)), NOW + timedelta(days=days)
    assert LINKS.read(signed, now=end.timestamp() - 1).request == 2
    with pytest.raises(BadSignature) as refused:
        LINKS.read(signed, now=end.timestamp())
    assert refused.value.is_stale


def test_no_change_of_a_link_and_no_other_secret_counts() -> None:
    signed = token(LINKS, asked(), "ada")
    changed = {
        signed[:place] + other + signed[place + 1 :] for place in range(len(signed)) for other in "1AZ.-é"
    }
    parts = signed.split(".")
    changed |= {
        "",
        ".",
        "..",
        signed[:-1],
        signed + "A",
        ".".join(parts[:-1]),
        ".".join([*parts[:2], "", parts[3]]),
    }
    changed.add(token(DecisionLinks(["another-secret-of-thirty-two-bytes"], LINKS.page), asked(), "ada"))
    for other in changed - {signed}:
        with pytest.raises(BadSignature) as refused:
            LINKS.read(other, now=NOW.timestamp())
        assert not refused.value.is_stale


def test_only_a_request_has_a_link_and_only_with_a_secret() -> None:
    for request, by in (
        (asked(key="approval.decided"), None),
        (2, None),
        (asked(), ""),
        (asked(), "a\nb"),
        (asked(), "x" * 256),
    ):
        with pytest.raises(InvalidValue):
            LINKS.url(request, by=by)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="RUNTIME_APPROVAL_SECRET"):
        Context(asked(), "desk.tell").decision_link(asked())
