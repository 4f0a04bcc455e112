"""Does one answer, or one failure, of the database serve all who look?"""

import anyio
import pytest

from runtime.dashboard.live_state import CachedAnswer
from runtime.errors import StoreUnavailable

pytestmark = pytest.mark.anyio


async def test_a_failure_serves_all_who_waited_for_it() -> None:
    asked, failed = 0, 0
    goes_on = anyio.Event()

    async def ask() -> int:
        nonlocal asked
        asked += 1
        await goes_on.wait()
        if asked == 1:
            raise StoreUnavailable("away")
        return asked

    answer = CachedAnswer(ask, 3600.0)

    async def look() -> None:
        nonlocal failed
        try:
            await answer.get()
        except StoreUnavailable:
            failed += 1

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(look)
            await anyio.wait_all_tasks_blocked()
            goes_on.set()
    assert (asked, failed) == (1, 5)
    # A person has changed something: the database is asked again.
    answer.forget()
    assert await answer.get() == 2
