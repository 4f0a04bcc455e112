"""The handlers of a worker as the database and the executor see them: unique names, limits, subscriptions."""

import logging
from collections.abc import Iterable
from dataclasses import replace

from runtime.agent.agent import Agent
from runtime.agent.handler import Handler
from runtime.agent.tool import check_tools, tool_of
from runtime.errors import DeclarationError
from runtime.settings import Settings
from runtime.store import Store, Subscribed, Subscription, WorkerCard

_log = logging.getLogger("runtime.worker.subscriptions")
_THREADS = 10


def handlers_of(agents: Iterable[Agent]) -> list[Handler]:
    """Return the handlers of some agents.

    Raises:
        DeclarationError: there is none, two have the same name, or one makes no tool.
    """
    handlers: dict[str, Handler] = {}
    for agent in agents:
        for handler in agent.handlers:
            if handler.name in handlers:
                raise DeclarationError(f"{handler.name} is declared by two agents. Rename one of them.")
            handlers[handler.name] = handler
    if not handlers:
        raise DeclarationError("No agent has a handler: decorate a function with @agent.on(…).")
    check_tools(handlers.values())
    return list(handlers.values())


def limit_of(handler: Handler, settings: Settings) -> int:
    """Return how many calls of a handler may run at once in this worker; threads are dearer than tasks."""
    if handler.concurrency is not None:
        return handler.concurrency
    if handler.batch is not None:
        # The worker's own limit counts messages, whether they are handled one by one or in batches.
        return max(1, min(settings.concurrency // handler.batch.size, _THREADS))
    return settings.concurrency if handler.is_async else min(settings.concurrency, _THREADS)


def subscription_of(handler: Handler) -> Subscription:
    """Return the subscription that a handler declares."""
    return Subscription(
        name=handler.name,
        agent=handler.agent,
        patterns=handler.patterns,
        ordered=handler.ordered,
        dead_blocks=handler.dead_blocks,
        start=handler.start,
        max_attempts=handler.retry.attempts,
        must_exist=handler.target is not None and handler.target.secret_name is None,
        rate_amount=None if handler.rate is None else handler.rate.amount,
        rate_seconds=None if handler.rate is None else handler.rate.seconds,
        concurrency_total=handler.concurrency_total,
        budget=None if handler.budget is None else str(handler.budget.cost),
        budget_period=None if handler.budget is None else handler.budget.period,
        budget_per=None if handler.budget is None else handler.budget.per,
        version=handler.version,
        pin=handler.pin,
        tool=tool_of(handler),
    )


async def subscribe(
    store: Store, card: WorkerCard, handlers: Iterable[Handler], with_history: bool
) -> Subscribed:
    """Declare the handlers of a worker, and log what the database answers.

    Args:
        store: where messages live.
        card: the worker.
        handlers: those with a subscription.
        with_history: new subscriptions get every message that is there.
    """
    declared = [subscription_of(handler) for handler in handlers]
    if with_history:
        declared = [replace(each, start="earliest") for each in declared]
    subscribed = await store.subscribe(card, declared)
    count = len(subscribed.numbers)
    subscriptions = "1 subscription" if count == 1 else f"{count} subscriptions"
    _log.info("%s works for %s at %s", card.name, subscriptions, store.place)
    for name, count in subscribed.missed.items():
        _log.info(
            "%s begins now: %d of the last messages in the stream match and are not delivered to it. Deliver them with "
            "`runtime replay %s --key '>'`; with start=\"earliest\" in its @agent.on(…) a new handler gets them by "
            "itself.",
            name,
            count,
            name,
        )
    return subscribed
