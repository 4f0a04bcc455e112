"""The figures of subscriptions and workers as cells of tables, under the same heads in each command."""

from collections.abc import Iterable, Iterator
from datetime import UTC
from typing import Any, Final

from rich.filesize import decimal
from rich.text import Text

from runtime.cli.tables import Rows
from runtime.cli.times import amount, counted, duration
from runtime.client.queries import dollars
from runtime.encoding.json import legible
from runtime.message import moment

WORK: Final = ("waiting", "running", "scheduled")
HEADS: Final = (*WORK, "suspended", "dead", "lag")

_GONE_SECONDS: Final = 60
_LAG_SECONDS: Final = 1.0


def work(subscription: dict[str, Any]) -> Iterator[str]:
    """Yield the cells under the heads `WORK`."""
    is_about = subscription.get("about", False)
    yield amount(subscription["waiting"], is_about=is_about)
    yield f"{subscription['running']:,}"
    yield amount(subscription["scheduled"], is_about=is_about)


def backlog(subscription: dict[str, Any]) -> Iterator[str | Text]:
    """Yield the cells under the heads `HEADS`."""
    dead, lag = subscription["dead"], subscription["lag_seconds"]
    yield from work(subscription)
    yield amount(subscription["suspended"], is_about=subscription.get("about", False))
    yield Text(amount(dead, is_about=subscription.get("dead_about", False)), style="red" if dead else "")
    yield "" if lag is None else duration(lag)


def awaited(subscription: dict[str, Any]) -> str:
    """Return what its suspended deliveries wait for, the most frequent first: payment.settled (7), a time (2)."""
    return ", ".join(
        f"{each['pattern'] or 'a time'} ({each['count']:,})" for each in subscription.get("awaited", ())
    )


def held(subscription: dict[str, Any]) -> str:
    """Return what nothing is taken of a subscription for, and until when; empty where nothing holds it."""
    if not (hold := subscription.get("held")):
        spent = (subscription.get("budget") or {}).get("held", ())
        shown = ", ".join(each["prefix"] for each in spent[:3])
        return f"budget spent: {shown}{' …' if len(spent) > 3 else ''}" if spent else ""
    until = moment(hold["until"]).astimezone(UTC)
    return f"held by its {hold['by']} until {until:%Y-%m-%d %H:%M:%S} UTC".replace(":00 UTC", " UTC")


def budget_text(budget: dict[str, Any]) -> str:
    """Return a budget as it is declared: 5 USD/day."""
    per = budget.get("per")
    each = f" for each {counted(per, 'segment')}" if per else ""
    return f"{budget['cost']:,.10g} USD/{budget['period']}{each}"


def spent_today(subscriptions: Iterable[dict[str, Any]]) -> str:
    """Return what all handlers have told of models since midnight, UTC; empty if none has."""
    told = [used for each in subscriptions if (used := each.get("usage_today"))]
    if not told:
        return ""
    cost, tokens_in, tokens_out = (
        sum(used[name] for used in told) for name in ("cost", "tokens_in", "tokens_out")
    )
    return f"today: {dollars(cost)}, {tokens_in:,.0f} tokens in, {tokens_out:,.0f} out"


def long_work(subscriptions: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each subscription that waits for something, or whose deliveries are being undone."""
    for each in subscriptions:
        if each["suspended"]:
            yield f"{each['name']} waits for {awaited(each)}"
        if each["undoing"]:
            yield f"{each['name']} undoes the finished steps of {counted(each['undoing'], 'message')}"


def wait_text(wait: dict[str, Any]) -> str:
    """Return what one wait is for: an answer to #12, payment.settled {"order":7}, or its time."""
    if wait["parent"] is not None:
        return f"an answer to #{wait['parent']}"
    where = "" if wait["where"] is None else f" {legible(wait['where'])}"
    return f"{wait['pattern']}{where}" if wait["pattern"] else "its time"


def workers(listed: dict[str, Any]) -> Text:
    """Return how many workers serve a subscription, timer or webhook; red if none does although work waits."""
    is_needed = any(listed.get(name, 1) for name in ("waiting", "scheduled"))
    count = listed["workers"]
    return Text(f"{count:,}" if count else "none", style="" if count else "red" if is_needed else "dim")


def table_of_statuses(found: list[dict[str, Any]]) -> Rows:
    """Return the table of where deliveries are that run now, as their handlers tell."""
    table = Rows("running", figures=("message", "told"), texts=("status",))
    for each in found:
        table.add(
            each["subscription"], f"#{each['message']}", f"{duration(each['seconds'] or 0)} ago", each["text"]
        )
    return table


def table_of_workers(found: list[dict[str, Any]]) -> Rows:
    """Return the table of workers."""
    # Not whether it is asleep, which is about its next look: its handlers may be at work all the time.
    table = Rows(
        "worker", figures=("running", "cpu", "memory", "loop lag", "seen"), texts=("state", "woken by")
    )
    for each in found:
        details = each["details"]
        lag = details.get("loop_lag_seconds")
        table.add(
            each["name"],
            f"{each['running']:,}",
            f"{details['cpu_percent']:.0f} %" if "cpu_percent" in details else "",
            decimal(details["rss_bytes"]) if "rss_bytes" in details else "",
            "" if lag is None else Text(f"{lag:.2f} s", style="red" if lag > _LAG_SECONDS else ""),
            f"{duration(each['seen_seconds'])} ago",
            _state(each),
            ", ".join(each["announce"]) or ("time" if details.get("is_quarantine") else "polling"),
        )
    return table


def _state(worker: dict[str, Any]) -> str | Text:
    if worker["seen_seconds"] > _GONE_SECONDS:
        return Text("gone", style="red")
    if worker["details"].get("is_quarantine"):
        return "quarantine"
    return "busy" if worker["running"] else "idle"
