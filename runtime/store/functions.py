"""The SQL functions that the stores call."""

from collections.abc import Mapping
from functools import cache

# Select the dead letters that an operation is about.
_FILTER = {
    "ids": "bigint[]", "subscription": "text", "pattern": "text", "older_than_seconds": "double precision",
    "error": "text", "max": "integer",
}  # fmt: skip

FUNCTIONS: Mapping[str, Mapping[str, str]] = {
    "stream_send": {"messages": "jsonb", "require_listener": "boolean"},
    "stream_read": {
        "pattern": "text", "after": "bigint", "before": "bigint", "max": "integer", "latest": "boolean",
        "since": "timestamptz", "until": "timestamptz", "correlation_id": "text",
    },
    "stream_version": {},
    "stream_subscribe": {"worker": "jsonb", "subscriptions": "jsonb"},
    "stream_exchange": {
        "worker": "uuid", "pump": "uuid", "n": "bigint", "done": "json", "failed": "json", "renew": "json",
        "want": "jsonb", "options": "jsonb",
    },
    "stream_step": {
        "message": "bigint", "subscription": "integer", "lease": "uuid", "name": "text", "key": "text",
        "occurrence": "integer", "value": "jsonb", "version": "text", "undo": "jsonb", "asking": "boolean",
    },
    "stream_steps": {"steps": "jsonb"},
    "stream_status": {"statuses": "jsonb"},
    "stream_begin_text": {
        "message": "bigint", "subscription": "integer", "lease": "uuid", "name": "text", "attempt": "integer",
    },
    "stream_write_texts": {"texts": "jsonb"},
    "stream_follow": {
        "message": "bigint", "name": "text", "since": "integer", "beginning": "integer", "handler": "text",
    },
    "stream_wait": {"message": "bigint", "subscription": "integer", "lease": "uuid", "waits": "jsonb"},
    "stream_waits": {"subscription": "text", "pattern": "text", "max": "integer"},
    "stream_decide": {"request": "bigint", "approved": "boolean", "answer": "jsonb", "by": "text", "why": "text"},
    "stream_approvals": {"max": "integer"},
    "stream_beat": {"worker": "uuid", "nonce": "text"},
    "stream_broadcast": {"payload": "text"},
    "stream_horizon": {"look": "integer"},
    "stream_leave": {"worker": "uuid"},
    "stream_stats": {},
    "stream_tools": {},
    "stream_usage": {"days": "integer"},
    "stream_pause": {"subscription": "text"},
    "stream_resume": {"subscription": "text"},
    "stream_replay": {
        "subscription": "text", "since": "timestamptz", "until": "timestamptz", "pattern": "text",
        "ids": "bigint[]", "dry_run": "boolean",
    },
    "stream_dead": {**_FILTER, "before": "bigint", "details": "boolean"},
    "stream_redrive": {**_FILTER, "dry_run": "boolean", "from_step": "text", "edits": "jsonb"},
    "stream_fork": {"message": "bigint", "from_step": "text", "subscription": "text", "edits": "jsonb"},
    "stream_discard": {**_FILTER, "dry_run": "boolean"},
    "stream_remove": {"subscription": "text", "dry_run": "boolean"},
    "stream_cancel": {"message": "bigint", "subscription": "text", "outcome": "text"},
    "stream_prune": {"older_than_seconds": "double precision", "max": "integer", "after": "bigint"},
    "stream_maintain": {
        "worker": "uuid", "retention_seconds": "double precision", "after": "bigint", "max": "integer",
    },
    "stream_schedule": {"worker": "uuid", "schedules": "jsonb"},
    "stream_tick": {
        "schedule": "text", "spec": "text", "after": "timestamptz", "reached": "timestamptz", "ticks": "jsonb",
    },
    "stream_schedules": {},
    "stream_add_webhook": {
        "name": "text", "url": "text", "patterns": "text[]", "emits": "text", "ordered": "boolean",
        "concurrency": "integer", "max_attempts": "integer", "start": "text", "secret": "text", "replace": "boolean",
    },
    "stream_remove_webhook": {"name": "text", "dry_run": "boolean"},
    "stream_rotate_webhook": {"name": "text", "keep_seconds": "double precision"},
    "stream_serve_webhooks": {},
    "stream_webhooks": {},
    "stream_note_webhooks": {"targets": "jsonb", "notes": "jsonb"},
    "stream_due": {"subscriptions": "text[]", "versions": "jsonb"},
    "stream_install_realtime": {},
    "stream_examine": {},
    "stream_trace": {"message": "bigint", "max": "integer"},
    "stream_conversation": {"correlation": "text", "after": "bigint", "max": "integer"},
    "stream_page": {
        "pattern": "text", "before": "bigint", "after": "bigint", "max": "integer", "agent": "text", "state": "text",
        "text": "text", "since": "timestamptz", "until": "timestamptz", "look": "integer",
    },
    "stream_handling": {"ids": "bigint[]"},
    "stream_activity": {"since_seconds": "double precision", "until_seconds": "double precision"},
    "stream_flow": {"look": "integer"},
    "stream_dead_groups": {"look": "integer", "subscription": "text", "since": "timestamptz"},
    "stream_last_good": {"letter": "bigint"},
    "stream_amend": {"letter": "bigint", "value": "jsonb"},
    "stream_answers": {"requests": "bigint[]"},
}  # fmt: skip
"""The types of the arguments of each function, by name. JSON arguments travel as text, encoded once."""

MOST: Mapping[tuple[str, str], int] = {
    ("stream_usage", "days"): 400,
    ("stream_read", "max"): 10_000, ("stream_waits", "max"): 10_000, ("stream_approvals", "max"): 10_000,
    ("stream_trace", "max"): 2_000, ("stream_conversation", "max"): 1_000, ("stream_page", "max"): 500,
    ("stream_page", "look"): 20_000, ("stream_flow", "look"): 20_000, ("stream_dead_groups", "look"): 100_000,
}  # fmt: skip
"""The most of what the functions count, as they bound it themselves."""

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "stream_pause": ("subscription",), "stream_resume": ("subscription",), "stream_replay": ("subscription",),
    "stream_remove": ("subscription",), "stream_cancel": ("message",), "stream_trace": ("message",),
    "stream_fork": ("message",), "stream_conversation": ("correlation",), "stream_handling": ("ids",),
    "stream_last_good": ("letter",), "stream_amend": ("letter", "value"), "stream_decide": ("request", "approved"),
    "stream_prune": ("older_than_seconds",), "stream_add_webhook": ("name", "url", "patterns"),
    "stream_remove_webhook": ("name",), "stream_rotate_webhook": ("name",),
}  # fmt: skip
"""The arguments without a default, of functions that scripts call with what they are given."""

ONCE = frozenset({
    "stream_replay", "stream_beat", "stream_amend", "stream_fork", "stream_broadcast",
    "stream_add_webhook", "stream_rotate_webhook", "stream_note_webhooks",
})  # fmt: skip
"""Functions that are never called again after a lost answer: a second call would do it all again, book a nonce that
is booked once, or draw another secret."""


@cache
def statement_of(function: str, arguments: tuple[str, ...]) -> str:
    """Return the statement that calls a function with these arguments, in their order."""
    kinds = FUNCTIONS[function]
    named = ", ".join(f"{name} => ${place}::{kinds[name]}" for place, name in enumerate(arguments, start=1))
    return f"select public.{function}({named})"
