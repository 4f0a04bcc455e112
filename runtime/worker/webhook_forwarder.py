"""The forwarder of webhooks that commands have added: one worker for all targets, and another one when they change.

A worker is cheap, and any number of them may run side by side: the next one starts, the last one finishes what it has
begun, and the list of a worker's handlers never changes.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from runtime.agent.agent import Agent
from runtime.agent.target import POST_CONCURRENCY, POST_RETRY, Target, shown_url
from runtime.backoff import Outage
from runtime.client.factories import open_store
from runtime.errors import (
    DeclarationError,
    RuntimeFault,
    SettingsError,
    StoreError,
    StoreUnavailable,
    first_fault,
)
from runtime.settings import Settings
from runtime.store import Store
from runtime.webhooks.sender import Sender
from runtime.worker.execution.attempt import Observer
from runtime.worker.poison import PoisonMessages
from runtime.worker.worker import Worker

_log = logging.getLogger("runtime.webhooks")
# How often to ask for added, changed or removed targets, unless workers sweep more often.
_LOOK_SECONDS: Final = 5.0


class WebhookForwarder:
    """Posts to every target in the database until it is stopped.

    Args:
        settings: where the stream is, and which private addresses are allowed.
        observer: told of every attempt.
        poison_messages: as for a worker.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        observer: Observer | None = None,
        poison_messages: PoisonMessages = PoisonMessages.ALSO,
    ) -> None:
        self._settings = settings
        self._observer = observer
        self._poison_messages = poison_messages
        self._worker: Worker | None = None
        self._targets: list[dict[str, Any]] = []
        self._complained: set[str] = set()
        self._stopped = anyio.Event()
        self._fault: RuntimeFault | None = None

    def __repr__(self) -> str:
        return f"<WebhookForwarder [{self.state}, {len(self._targets)} targets]>"

    @property
    def state(self) -> str:
        """The state of its worker; live while there is no target."""
        if self._stopped.is_set():
            return "stopping"
        return "live" if self._worker is None else self._worker.state

    def stop(self) -> None:
        """Take no new work, let running requests finish, and end. From the loop it runs on."""
        self._stopped.set()
        if self._worker is not None:
            self._worker.stop()

    async def run(self) -> None:
        """Run until `stop` is called, or until cancelled.

        Raises:
            SettingsError: nothing says where the stream is.
            StoreError: the key is wrong, or the database lacks the schema.
        """
        store = await open_store(self._settings)
        try:
            async with anyio.create_task_group() as tasks:
                await self._keep_up(store, tasks)
        except* RuntimeFault as group:
            self._fault = self._fault or first_fault(group)
        finally:
            with anyio.CancelScope(shield=True):
                await store.close()
        if self._fault is not None:
            raise self._fault

    async def _keep_up(self, store: Store, tasks: TaskGroup) -> None:
        """Have a worker for the targets there are, until stopped."""
        outage, has_asked = Outage(first=0.5), False
        while not self._stopped.is_set():
            pause = min(_LOOK_SECONDS, self._settings.sweep_seconds)
            try:
                found = await store.operate("stream_serve_webhooks")
            except StoreError as error:
                if not has_asked and not isinstance(error, StoreUnavailable):
                    raise
                if outage.is_news(str(error)):
                    _log.warning("the list of webhooks cannot be read: %s Trying again.", error)
                pause = outage.pause_seconds()
            else:
                has_asked = True
                outage.over()
                if found != self._targets:
                    self._replace(found, tasks)
            with anyio.move_on_after(pause):
                await self._stopped.wait()

    def _replace(self, found: list[dict[str, Any]], tasks: TaskGroup) -> None:
        """Start a worker for the targets there are now, and have the last one finish."""
        last, self._worker, self._targets = self._worker, None, found
        if agents := self._agents(found):
            self._worker = Worker(
                agents, self._settings, observer=self._observer, poison_messages=self._poison_messages
            )
            tasks.start_soon(self._run, self._worker)
        if last is not None:
            last.stop()
        _log.info("posting for %s", ", ".join(each["name"] for each in found) or "no webhook")

    async def _run(self, worker: Worker) -> None:
        try:
            await worker.run()
        except RuntimeFault as fault:
            self._fault = fault
            self.stop()

    def _agents(self, found: Sequence[Mapping[str, Any]]) -> list[Agent]:
        """The targets as agents, without those that these settings forbid."""
        agents: dict[str, Agent] = {}
        for each in found:
            try:
                trial = agent_of(each)
                Sender(trial.handlers, self._settings)
            except (DeclarationError, SettingsError) as error:
                if str(error) not in self._complained:
                    self._complained.add(str(error))
                    _log.error("nothing is posted for %s: %s", each["name"], error)
                continue
            agents.setdefault(trial.name, Agent(trial.name)).handlers.extend(trial.handlers)
        return list(agents.values())


def agent_of(row: Mapping[str, Any]) -> Agent:
    """The agent of one webhook that a command has added, as `stream_serve_webhooks` tells of it.

    Raises:
        DeclarationError: it makes no sense here.
    """
    name, _, handler = row["name"].partition(".")
    agent = Agent(name)
    agent.post(
        *row["patterns"],
        to=row["url"],
        secret="ADDED",
        emits=row["emits"],
        retry=replace(POST_RETRY, attempts=row["max_attempts"]),
        concurrency=row["concurrency"] or POST_CONCURRENCY,
        concurrency_total=row["concurrency"],
        ordered=row["ordered"],
        name=handler,
    )
    [posting] = agent.handlers
    agent.handlers = [replace(posting, target=Target(url=row["url"], secrets=tuple(row["secrets"])))]
    return agent


async def try_out(settings: Settings, name: str) -> dict[str, Any]:
    """Post a message of the type webhook.test to the target of this name, and return what was answered.

    Returns:
        Its `url` for people, the `status`, and how many `seconds` it took.

    Raises:
        DeclarationError: there is no such webhook.
        PostFailed: there was no answer.
        SettingsError: these settings forbid it.
    """
    store = await open_store(settings)
    try:
        found = [row for row in await store.operate("stream_serve_webhooks") if row["name"] == name]
    finally:
        await store.close()
    if not found:
        raise DeclarationError(f"There is no webhook {name}. `runtime webhooks list` shows them.")
    [handler] = agent_of(found[0]).handlers
    async with Sender([handler], settings) as posts:
        began = time.monotonic()
        answer = await posts.try_out(handler.name)
    shown = shown_url(found[0]["url"])
    return {"url": shown, "status": answer.status, "seconds": time.monotonic() - began}
