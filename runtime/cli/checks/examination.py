"""The order of the checks, and those that another one makes needless; yields each finding as it is made."""

import time
from collections.abc import AsyncIterator

from runtime.cli.checks.access import check_claims, check_key, check_url
from runtime.cli.checks.database import CHECKS, Facts, check_clock, check_migrations
from runtime.cli.checks.finding import Finding, Verdict, fault, ok, skipped
from runtime.cli.checks.round_trip import check_paths, check_pooler, check_round, check_webhook
from runtime.client.factories import open_store
from runtime.errors import MigrationMissing, RuntimeFault, StoreUnavailable, Unauthorized
from runtime.local.migrations import migrations_folder, read_migrations
from runtime.settings import Settings
from runtime.store import Store

_FIRST = "Not checked: something before it must be mended first."


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Yield every finding about the stream of these settings."""
    url = check_url(settings)
    yield url
    yield check_key(settings)
    yield check_claims(settings)
    yield await check_pooler(settings)
    if url.verdict is Verdict.FAULT:
        return
    try:
        store = await open_store(settings)
    except RuntimeFault as error:
        yield fault("store", "The stream cannot be opened.", str(error))
        return
    try:
        async for finding in _examine_store(settings, store):
            yield finding
    finally:
        await store.close()


async def _examine_store(settings: Settings, store: Store) -> AsyncIterator[Finding]:
    reached = await _reach(store)
    yield reached
    facts: Facts | None = None
    if reached.verdict is Verdict.OK:
        asked_at = time.time()
        try:
            facts = await store.operate("stream_examine")
        except RuntimeFault as error:
            yield _told("database", error)
        else:
            yield check_clock(facts, asked_at=asked_at, answered_at=time.time())
            yield check_migrations(facts, [each.version for each in read_migrations(migrations_folder())])
            for check in CHECKS:
                yield check(facts)
    yield await check_webhook(settings, facts)
    if facts is None:
        yield skipped("socket", _FIRST)
        yield skipped("round trip", _FIRST)
        return
    try:
        for finding in await check_paths(settings, store, facts):
            yield finding
        yield await check_round(settings, store)
    except* RuntimeFault as group:
        yield _told("round trip", _first(group))


async def _reach(store: Store) -> Finding:
    """Check that the store answers, and that this release can work with its schema."""
    began = time.monotonic()
    try:
        await store.check_schema()
    except RuntimeFault as error:
        return _told("store", error)
    seconds = time.monotonic() - began
    return ok("store", f"The stream at {store.place} answers after {seconds * 1000:.0f} ms.", seconds=seconds)


def _told(check: str, error: BaseException) -> Finding:
    """Return an error of the runtime as a finding; its text has the cure after the first sentence."""
    kinds = {Unauthorized: "key", MigrationMissing: "schema", StoreUnavailable: "reach"}
    kind = next((name for kind, name in kinds.items() if isinstance(error, kind)), "other")
    text, _, cure = str(error).partition(". ")
    return fault(check, text.rstrip(".") + ".", cure or "See the other findings.", kind=kind)


def _first(group: BaseExceptionGroup[RuntimeFault]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
