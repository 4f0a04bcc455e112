"""What is wrong, worst first: the state of a subscription, and sentences that say what to mend."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from runtime.dashboard.activity import SubscriptionActivity
from runtime.dashboard.filters import common, count, duration
from runtime.dashboard.listeners import is_own, listeners
from runtime.dashboard.schemas import Declared
from runtime.keys import matches

Level = Literal["bad", "busy"]
_LAG_SECONDS: Final = 30.0
# Of so many attempts of an hour that failed, more than now and then.
_FAILING_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something to mend.

    Attributes:
        level: bad if messages are lost or stand still; busy if they only wait.
        what: one sentence.
        why: the error, or the cure.
        href: the page where it is mended; empty if that is not in the dashboard.
    """

    level: Level
    what: str
    why: str = ""
    href: str = ""


def state_of(each: Mapping[str, Any], webhook: Mapping[str, Any] | None) -> str:
    """Return the state of a subscription in one word."""
    # An open circuit breaker pauses the subscription, and tries the target again by itself.
    if webhook is not None and webhook["state"] not in ("well", "paused"):
        return str(webhook["state"])
    if each["paused"]:
        return "paused"
    if not each["workers"]:
        return "no worker"
    if each["held"]:
        return "held"
    return "live" if each["settled"] else "settling"


def severity(each: Mapping[str, Any], hour: SubscriptionActivity) -> int:
    """Return how much a subscription needs a person: 3 stands still, 2 fails, 1 is late or was paused, 0 is well."""
    waiting = each["waiting"] + each["scheduled"]
    if not each["workers"] and waiting and not each["paused"]:
        return 3
    if _is_failing(hour):
        return 2
    is_late = (each["lag_seconds"] or 0) > _LAG_SECONDS and each["waiting"]
    return 1 if is_late or (each["paused"] and waiting) else 0


def troubles(
    stats: Mapping[str, Any],
    hours: Mapping[int, SubscriptionActivity],
    groups: Sequence[Mapping[str, Any]],
    flow: Mapping[str, Any],
    declared: Mapping[str, Declared],
) -> list[Trouble]:
    """Return what to mend, the worst first.

    Args:
        stats: from `stream_stats`.
        hours: the activity by the subscriptions' numbers.
        groups: of dead letters, from `stream_dead_groups`.
        flow: from `stream_flow`.
        declared: the handlers of the agents that were named.
    """
    found = [Trouble("bad", warning) for warning in stats["warnings"]]
    largest: dict[str, Mapping[str, Any]] = {}
    for group in sorted(groups, key=lambda group: -group["count"]):
        largest.setdefault(group["subscription"], group)
    nothing = SubscriptionActivity()
    by_weight = [(each, hours.get(each["id"], nothing)) for each in stats["subscriptions"]]
    by_weight.sort(key=lambda pair: (-severity(*pair), -sum(pair[1].failed)))
    for each, hour in by_weight:
        found += _standstill(each)
        if _is_failing(hour):
            found.append(_failing(each, hour, largest.pop(each["name"], None)))
    for name, group in largest.items():
        found.append(Trouble("bad", f"{name} has {_letters(group)}", common(group["errors"]), "/dead"))
    found += _unheard(stats["subscriptions"], flow, declared)
    return sorted(found, key=lambda each: each.level != "bad")


def _standstill(each: Mapping[str, Any]) -> Iterable[Trouble]:
    """Yield why messages wait for a subscription, if they wait for long."""
    name, waiting = each["name"], each["waiting"] + each["scheduled"]
    held = f"{_many(waiting, 'message', is_about=each['about'])} of {name} wait{'s' if waiting == 1 else ''}"
    if each["paused"]:
        if waiting:
            yield Trouble("busy", f"{held}: it is paused", "Resume it when its cause is mended.", "/agents")
    elif not each["workers"]:
        if waiting:
            yield Trouble("bad", f"{held}: no worker runs it", "runtime run PATH starts one.", "/agents")
    elif each["held"] and each["held"]["by"] == "budget":
        if waiting:
            yield Trouble(
                "busy",
                f"{held}: it has spent its budget",
                "It goes on by itself when the period ends.",
                "/costs",
            )
    elif each["waiting"] and (each["lag_seconds"] or 0) > _LAG_SECONDS:
        yield Trouble(
            "busy", f"{name} is {duration(each['lag_seconds'])} behind",
            f"{held}. More workers, or a higher concurrency, catch up.", "/agents",
        )  # fmt: skip


def _failing(each: Mapping[str, Any], hour: SubscriptionActivity, group: Mapping[str, Any] | None) -> Trouble:
    """Return that a subscription fails, with its largest group of dead letters."""
    failed, error = sum(hour.failed), each["last_error"]
    what = (
        f"{each['name']} fails: {count(failed)} of {count(sum(hour.done) + failed)} attempts of the last hour"
    )
    if group is not None:
        return Trouble("bad", f"{what}, {_letters(group)}", common(group["errors"]), "/dead")
    if error is None:
        return Trouble("bad", what, "", "/agents")
    return Trouble("bad", what, error["error"].partition("\n")[0], f"/message/{error['message']}")


def _letters(group: Mapping[str, Any]) -> str:
    return _many(group["count"], "dead letter")


def _many(number: int, noun: str, *, is_about: bool = False) -> str:
    return f"{count(number, is_about)} {noun}{'' if number == 1 else 's'}"


def _is_failing(hour: SubscriptionActivity) -> bool:
    done, failed = sum(hour.done), sum(hour.failed)
    return failed > _FAILING_SHARE * (done + failed)


def _unheard(
    subscriptions: Sequence[Mapping[str, Any]], flow: Mapping[str, Any], declared: Mapping[str, Declared]
) -> Iterable[Trouble]:
    """Yield the keys that were written from outside, and that nobody listens to."""
    for each in flow["written"]:
        key = each["key"]
        is_heard = listeners(key, subscriptions) or any(
            matches(pattern, key) for handler in declared.values() for pattern in handler.patterns
        )
        if each["agent"] is None and key and not is_own(key) and not is_heard:
            yield Trouble(
                "busy", f"No handler listens to {key}",
                f"{_many(each['count'], 'message')} from outside: is the key spelled as in an @agent.on(…), and has "
                "that agent run once?",
                f"/?pattern={key}",
            )  # fmt: skip
