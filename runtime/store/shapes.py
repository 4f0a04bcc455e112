"""The shape of each SQL function's answer, checked over HTTP.

There a 200 may come from a captive portal, a login page, a firewall or another service. Over a direct connection only
the function itself can answer.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from runtime.store.exchange import WireRow

OBJECTS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "stream_version": ("version", "serves", "incarnation"), "stream_horizon": ("drawn", "xid", "xmin"),
    "stream_subscribe": ("worker", "subscriptions"), "stream_leave": ("worker", "left"),
    "stream_exchange": ("n",), "stream_step": ("held",), "stream_wait": ("held",), "stream_beat": ("nonce",),
    "stream_status": ("told",), "stream_begin_text": ("held",), "stream_write_texts": ("kept", "workers"),
    "stream_follow": ("beginning", "offset", "text"),
    "stream_due": ("due",), "stream_decide": ("request", "decided", "expired"),
    "stream_stats": ("now", "messages", "subscriptions", "workers"), "stream_examine": ("now", "migrations"),
    "stream_pause": ("subscription", "paused"), "stream_resume": ("subscription", "paused"),
    "stream_replay": ("subscription", "matching", "replayed"), "stream_remove": ("subscription", "removed"),
    "stream_redrive": ("matching", "redriven"), "stream_discard": ("matching", "discarded"),
    "stream_cancel": ("message", "known", "deliveries"), "stream_amend": ("id", "letter"),
    "stream_fork": ("id", "message", "subscriptions"),
    "stream_prune": ("pruned", "last"), "stream_maintain": ("elected", "last"),
    "stream_schedule": ("now", "known", "schedules"), "stream_tick": ("current", "now"),
    "stream_add_webhook": ("name", "secret"), "stream_rotate_webhook": ("name", "secret"),
    "stream_remove_webhook": ("name", "removed"), "stream_install_realtime": ("postgres_changes", "broadcast"),
    "stream_trace": ("message", "messages"), "stream_page": ("messages",), "stream_flow": ("messages", "written"),
    "stream_conversation": ("correlation", "totals", "messages"),
    "stream_activity": ("minute", "minutes"), "stream_last_good": ("id", "value"),
    # Their members are named by data.
    "stream_handling": (), "stream_note_webhooks": (),
})  # fmt: skip
"""Functions that return an object, with members that it always has."""

LISTS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "stream_send": ("id", "duplicate"), "stream_read": ("id", "key", "value", "created_at"),
    "stream_dead": ("id", "message_id"), "stream_dead_groups": ("subscription",), "stream_answers": ("request",),
    "stream_schedules": ("name",), "stream_webhooks": ("name", "url"), "stream_serve_webhooks": ("name", "url"),
    "stream_steps": ("held",), "stream_waits": ("message", "subscription", "pattern"),
    "stream_approvals": ("request", "title"), "stream_tools": ("subscription", "tool"),
    "stream_usage": ("day", "handler", "model", "cost"),
})  # fmt: skip
"""Functions that return a list, with members that each of its objects always has."""

# The function returns null if there is no such message.
NULLABLE = frozenset({"stream_last_good"})


def mismatch(function: str, arguments: Mapping[str, Any], answer: Any) -> str | None:
    """Return what is wrong with an answer's shape, in words; None if the function can give it."""
    if answer is None:
        return None if function in NULLABLE else "null"
    if (members := OBJECTS.get(function)) is not None:
        if type(answer) is not dict:
            return _kind_of(answer)
        if any(name not in answer for name in members):
            return "another object"
        return _exchange_mismatch(arguments, answer) if function == "stream_exchange" else None
    if (members := LISTS.get(function)) is not None:
        if type(answer) is not list:
            return _kind_of(answer)
        is_other = any(type(row) is not dict or any(name not in row for name in members) for row in answer)
        return "another list" if is_other else None
    # The one function left returns true.
    return None if answer is True else _kind_of(answer)


def _exchange_mismatch(arguments: Mapping[str, Any], answer: dict[str, Any]) -> str | None:
    """Check that an object answers the exchange with these arguments."""
    if answer.get("stale"):
        return None
    taken = answer.get("taken")
    if answer["n"] != arguments["n"] or type(taken) is not list:
        return "the answer to another request"
    if any(type(row) is not list or len(row) < len(WireRow._fields) for row in taken):
        return "deliveries of another form"
    return None


def _kind_of(answer: Any) -> str:
    """Return the kind of JSON, never its content."""
    kinds = {dict: "another object", list: "a list", str: "a text", bool: "a boolean"}
    return kinds.get(type(answer), "a number")
