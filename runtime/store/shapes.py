"""The shape of what each SQL function returns, checked where anybody could have answered in the database's place.

Over HTTP a 200 may come from a captive portal, a login page, a firewall's polite refusal or another service. Over a
direct connection the answer can only be the function's own.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from runtime.store.exchange import WireRow

OBJECTS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "stream_version": ("version", "serves", "incarnation"),
    "stream_subscribe": ("worker", "subscriptions"),
    "stream_exchange": ("n",),
    "stream_beat": ("nonce",),
    "stream_horizon": ("drawn", "xid", "xmin"),
    "stream_leave": ("worker", "left"),
    "stream_stats": ("now", "messages", "subscriptions", "workers"),
    "stream_pause": ("subscription", "paused"),
    "stream_resume": ("subscription", "paused"),
    "stream_replay": ("subscription", "matching", "replayed"),
    "stream_redrive": ("matching", "redriven"),
    "stream_discard": ("matching", "discarded"),
    "stream_remove": ("subscription", "removed"),
    "stream_cancel": ("message", "known", "deliveries"),
    "stream_prune": ("pruned", "last"),
    "stream_maintain": ("elected", "last"),
    "stream_schedule": ("now", "known", "schedules"),
    "stream_tick": ("current", "now"),
    "stream_add_webhook": ("name", "secret"),
    "stream_remove_webhook": ("name", "removed"),
    "stream_rotate_webhook": ("name", "secret"),
    "stream_due": ("due",),
    "stream_install_realtime": ("postgres_changes", "broadcast"),
    "stream_examine": ("now", "migrations"),
    "stream_trace": ("message", "messages"),
    "stream_page": ("messages",),
    "stream_activity": ("minute", "minutes"),
    "stream_flow": ("messages", "written"),
    "stream_amend": ("id", "letter"),
    # By names of their own.
    "stream_handling": (),
    "stream_note_webhooks": (),
    # Or null, where there is none.
    "stream_last_good": ("id", "value"),
})  # fmt: skip
"""Functions that return an object, and members that it always has."""

LISTS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "stream_send": ("id", "duplicate"),
    "stream_read": ("id", "key", "value", "created_at"),
    "stream_dead": ("id", "message_id"),
    "stream_schedules": ("name",),
    "stream_serve_webhooks": ("name", "url"),
    "stream_webhooks": ("name", "url"),
    "stream_dead_groups": ("subscription",),
    "stream_answers": ("request",),
})  # fmt: skip
"""Functions that return a list, and members that each object in it always has."""

# A null says that there is none.
NULLABLE = frozenset({"stream_last_good"})


def strangeness(function: str, arguments: Mapping[str, Any], answer: Any) -> str | None:
    """What is strange about an answer, in words; None where it is one that the function can give."""
    if answer is None:
        return None if function in NULLABLE else "null"
    if (members := OBJECTS.get(function)) is not None:
        if type(answer) is not dict:
            return _named(answer)
        if any(name not in answer for name in members):
            return "another object"
        return _of_exchange(arguments, answer) if function == "stream_exchange" else None
    if (members := LISTS.get(function)) is not None:
        if type(answer) is not list:
            return _named(answer)
        is_strange = any(type(row) is not dict or any(name not in row for name in members) for row in answer)
        return "another list" if is_strange else None
    # What `stream_broadcast` returns.
    return None if answer is True else _named(answer)


def _of_exchange(arguments: Mapping[str, Any], answer: dict[str, Any]) -> str | None:
    """Whether an object answers this very exchange."""
    if answer.get("stale"):
        return None
    taken = answer.get("taken")
    if answer["n"] != arguments["n"] or type(taken) is not list:
        return "the answer to another request"
    if any(type(row) is not list or len(row) < len(WireRow._fields) for row in taken):
        return "deliveries of another form"
    return None


def _named(answer: Any) -> str:
    """What kind of JSON it is; never what it holds."""
    kinds = {dict: "another object", list: "a list", str: "a text", bool: "a boolean"}
    return kinds.get(type(answer), "a number")
