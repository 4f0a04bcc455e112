"""The options of a handler, and their checks in one place.

What each option means is told once, at `Agent.on`.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

from runtime.agent.budget import check_budget
from runtime.agent.retry import Retry
from runtime.agent.tool import check_tool
from runtime.agent.validation import (
    Deliver,
    Start,
    check_batch,
    check_concurrency,
    check_concurrency_total,
    check_dead_blocks,
    check_declared_key,
    check_deliver,
    check_rate,
    check_retry,
    check_start,
    check_timeout,
    check_version,
)


class SharedOptions(TypedDict, total=False):
    """The options that every declaration takes."""

    retry: Retry | None
    concurrency: int | None
    emits: str | None
    timeout: float | None
    name: str | None


class TimerOptions(SharedOptions, total=False):
    """The options of `Agent.every` and `Agent.cron`."""

    version: str | None
    pin: bool
    budget: str | None
    budget_per: int | None


class PostOptions(SharedOptions, total=False):
    """The options of `Agent.post`."""

    ordered: bool
    dead_blocks: bool
    start: Start
    rate: str | None
    concurrency_total: int | None


class HandlerOptions(TimerOptions, PostOptions, total=False):
    """The options of `Agent.on`: all there are."""

    deliver: Deliver
    batch: int | None
    within: float | None
    tool: str | None


def handler_fields(options: Mapping[str, Any], patterns: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of a `Handler` that its options decide.

    Args:
        options: as the user gave them.
        patterns: those of the handler.

    Raises:
        DeclarationError: an option makes no sense; the message says what to do.
    """
    ordered, emits = options.get("ordered", False), options.get("emits")
    batch = check_batch(options.get("batch"), options.get("within"))
    return {
        "retry": check_retry(options.get("retry")),
        "concurrency": check_concurrency(options.get("concurrency")),
        "emits": None if emits is None else check_declared_key(emits),
        "ordered": bool(ordered),
        "dead_blocks": check_dead_blocks(options.get("dead_blocks", False), ordered),
        "start": check_start(options.get("start", "latest")),
        "timeout": check_timeout(options.get("timeout")),
        "rate": check_rate(options.get("rate")),
        "concurrency_total": check_concurrency_total(
            options.get("concurrency_total"), batch.size if batch else 1
        ),
        "budget": check_budget(options.get("budget"), options.get("budget_per"), ordered=bool(ordered)),
        "batch": batch,
        "version": check_version(options.get("version"), options.get("pin", False), batch),
        "pin": bool(options.get("pin", False)),
        "deliver": check_deliver(options),
        "tool": check_tool(options.get("tool"), patterns),
    }
