"""A conversation as a thread: who wrote what to whom and how each attempt ended, in order of time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Literal

from runtime.dashboard.filters import clock, duration, is_open
from runtime.dashboard.listeners import is_own
from runtime.message import moment

_FIELDS = 24
_DAY_SECONDS = 86_400
NARROW = "\N{NARROW NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a thread.

    Attributes:
        kind: a message, an attempt that ended, or a delivery that is not finished.
        seconds: since the first message; None for what is not finished.
        at: the time as the database tells it.
        message: the message written or handled.
        handled: its state at one subscription; None for the message itself.
        run: the attempt.
    """

    kind: Literal["message", "attempt", "open"]
    seconds: float | None
    at: str | None
    message: Mapping[str, Any]
    handled: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None


def entries_of(messages: Sequence[Mapping[str, Any]], began_at: str | None) -> list[Entry]:
    """Return the messages and attempts in order of time, and in the end what waits or runs.

    Args:
        messages: from `stream_conversation`.
        began_at: when the conversation began.
    """
    zero = moment(began_at) if began_at else None
    ended: list[Entry] = []
    pending: list[Entry] = []

    def since(at: str) -> float:
        return (moment(at) - zero).total_seconds() if zero else 0.0

    for message in messages:
        at = message["created_at"]
        ended.append(Entry("message", since(at), at, message))
        for handled in message["handled"]:
            for run in handled["runs"]:
                ended.append(Entry("attempt", since(run["ended_at"]), run["ended_at"], message, handled, run))
            if is_open([handled]):
                pending.append(Entry("open", None, None, message, handled))
    # At the same moment a message comes before its attempts.
    ended.sort(key=lambda each: (each.seconds, each.message["id"], each.kind != "message"))
    return ended + pending


def is_answer(key: str) -> bool:
    """Whether a message under this key is the answer to a request."""
    return is_own(key) and key.startswith("answer.")


def decision_of(message: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what a person has decided, where a message is a decision; an agent's own message is none."""
    value = message["value"]
    if message["key"] != "approval.decided" or message["agent"] or not isinstance(value, dict):
        return None
    return value if isinstance(value.get("approved"), bool) and isinstance(value.get("by"), str) else None


def awaited(waits: Sequence[Mapping[str, Any]] | None) -> str:
    """Return what a suspended handler waits for, in words: a decision about #12, an answer to #12, payment.settled."""
    words = []
    for each in waits or ():
        about = each["where"].get("request") if isinstance(each["where"], dict) else None
        if each["pattern"] == "approval.decided" and isinstance(about, int):
            words.append(f"a decision about #{about}")
        elif each["parent"] is not None:
            words.append(f"an answer to #{each['parent']}")
        else:
            words.append(each["pattern"] or "its time")
    return " and ".join(dict.fromkeys(words))


def parts_of(value: Any) -> list[tuple[str, Any]]:
    """Return a value as labelled parts, so that a template shows text as text: a label is empty for a whole value."""
    if (
        isinstance(value, dict)
        and 0 < len(value) <= _FIELDS
        and any(isinstance(each, str) for each in value.values())
    ):
        return list(value.items())
    return [("", value)]


def request_parts(value: Any) -> list[tuple[str, Any]]:
    """Return what a request asks people: the question, what it is about, and until when it is open.

    The schema of the answer is left out: it is for the form that takes the answer.
    """
    if not isinstance(value, dict) or not isinstance(value.get("title"), str):
        return parts_of(value)
    until = value.get("until")
    open_until = clock(until) if isinstance(until, str) else until
    told = (("", value["title"]), ("details", value.get("details")), ("open until", open_until))
    return [(label, each) for label, each in told if each is not None]


def spent_text(usage: Mapping[str, Any] | None) -> str:
    """Return what models took, in words: `1 200 + 340 tokens, 0.0021 USD, model-4`; empty if nothing was told."""
    told = usage or {}
    words = []
    tokens_in, tokens_out, cost = (_figure(told.get(name)) for name in ("tokens_in", "tokens_out", "cost"))
    if tokens_in or tokens_out:
        words.append(f"{tokens_in:,.0f} + {tokens_out:,.0f} tokens".replace(",", NARROW))
    if cost:
        words.append(cost_text(cost))
    models = told.get("models") or ([told["model"]] if told.get("model") else [])
    words += [str(each) for each in models]
    return ", ".join(words)


def cost_text(cost: float) -> str:
    """Return a price with as many digits as say something: 0.0021 USD, 1.20 USD, 340 USD."""
    shown = (
        f"{cost:,.0f}" if cost >= 100 else f"{cost:.2f}" if cost >= 0.1 else f"{cost:.2g}" if cost else "0"
    )
    return f"{shown.replace(',', NARROW)}\N{NO-BREAK SPACE}USD"


def budget_text(budget: Mapping[str, Any]) -> str:
    """Return a budget as it is declared: 5 USD/day."""
    per = f" for each {budget['per']} segment{'s' if budget['per'] > 1 else ''}" if budget["per"] else ""
    return f"{budget['cost']:.10g} USD/{budget['period']}{per}"


def held_text(held: Mapping[str, Any]) -> str:
    """Return what holds a handler, and until when: held by its budget until 00:00 UTC."""
    ends = moment(held["until"]).astimezone(UTC)
    far = f"{ends:%Y-%m-%d} " if held["seconds"] > _DAY_SECONDS else ""
    return f"held by its {held['by']} until {far}{ends:%H:%M} UTC"


def _figure(told: Any) -> float:
    return told if isinstance(told, (int, float)) and not isinstance(told, bool) else 0.0


def as_markdown(correlation: str, messages: Sequence[Mapping[str, Any]], totals: Mapping[str, Any]) -> str:
    """Return a conversation as a page of Markdown."""
    began, ended = totals["began_at"], totals["ended_at"]
    lines = [f"# Conversation {_inline(correlation)}", ""]
    if began:
        seconds = (moment(ended) - moment(began)).total_seconds()
        lines.append(
            f"{totals['messages']} messages and {totals['attempts']} attempts, {totals['failed']} of them failed, "
            f"within {duration(seconds)} from {clock(began)}."
        )
    if spent := spent_text(totals["spent"]):
        lines.append(f"Models took {spent}.")
    for entry in entries_of(messages, began):
        lines += ["", *_lines_of(entry)]
    return "\n".join(lines) + "\n"


def _lines_of(entry: Entry) -> list[str]:
    message, handled, run = entry.message, entry.handled, entry.run
    if handled is None:
        decision = decision_of(message)
        writer = message["agent"] or ("from outside" if decision is None else decision["by"])
        head = f"## {_inline(writer)}: `{message['key']}` #{message['id']}"
        if message["large"]:
            return [head, "", f"{clock(entry.at)}, a value of {message['large']} bytes"]
        lines = [head, "", clock(entry.at)]
        for label, value in parts_of(message["value"]):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
            lines += [
                "",
                *([f"**{_inline(label)}**", ""] if label else []),
                *_fenced(text, isinstance(value, str)),
            ]
        return lines
    name = _inline(handled["subscription"])
    if run is None:
        waits = f", waits for {_inline(awaited(handled['waits']))}" if handled["state"] == "suspended" else ""
        return [f"- **{name}** on #{message['id']}: {handled['state']}{waits}"]
    spent = spent_text(run["usage"])
    how = f"attempt {run['attempt']}: {run['outcome']} after {duration(run['seconds'])}"
    text = f"- **{name}** on #{message['id']}, {how}"
    lines = [f"{text}; {_inline(spent)}" if spent else text]
    if run["error"]:
        lines += ["", *_fenced(run["traceback"] or run["error"], True)]
    return lines


def _inline(text: str) -> str:
    return " ".join(str(text).split()).replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def _fenced(text: str, is_text: bool) -> list[str]:
    """Return a block of code that the text itself cannot end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence + ("text" if is_text else "json"), text, fence]


THREAD_FILTERS = {
    "is_answer": is_answer, "decision": decision_of, "awaited": awaited, "parts": parts_of,
    "request_parts": request_parts, "spent": spent_text, "cost": cost_text, "budget": budget_text, "held": held_text,
}  # fmt: skip
