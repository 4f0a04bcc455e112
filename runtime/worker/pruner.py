"""Removal of old messages, in bounded batches: the database lets the oldest living worker do it, and no other."""

import logging
from random import uniform
from uuid import UUID

import anyio

from runtime.backoff import Outage
from runtime.errors import StoreError
from runtime.settings import Settings
from runtime.store import Store

_log = logging.getLogger("runtime.worker.pruner")
_BATCH = 5_000
_PAUSE_SECONDS = 0.1
_DAY_SECONDS = 86_400


async def keep_retention(store: Store, worker: UUID, settings: Settings) -> None:
    """Prune for ever, as long as this worker is the elected one; only cancellation ends it.

    Args:
        store: where messages live.
        worker: the id of this worker.
        settings: how long messages are kept, and how often to look.
    """
    outage = Outage()
    while True:
        # Jittered, so that many workers do not ask at the same moment.
        await anyio.sleep(settings.upkeep_seconds * uniform(0.5, 1.5))
        try:
            pruned = await _round(store, worker, settings.retention_days)
        except StoreError as error:
            if outage.is_news(str(error)):
                _log.warning("old messages could not be removed: %s Trying again later.", error)
            continue
        outage.over()
        if pruned:
            _log.info("removed %d messages older than %g days", pruned, settings.retention_days)


async def _round(store: Store, worker: UUID, retention_days: float | None) -> int:
    """Go once through everything that is too old; returns how many messages were removed."""
    pruned: int = 0
    after: int = 0
    while True:
        answer = await store.operate(
            "stream_maintain",
            worker=str(worker),
            retention_seconds=None if retention_days is None else retention_days * _DAY_SECONDS,
            after=after,
            max=_BATCH,
        )
        pruned += answer.get("pruned", 0)
        if answer["last"] is None:
            return pruned
        after = answer["last"]
        # Other work needs the disk too.
        await anyio.sleep(_PAUSE_SECONDS)
