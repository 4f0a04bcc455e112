"""What a person sees of work that takes longer than a second."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio

from runtime.cli.output import err

_QUICK_SECONDS: Final = 1.0


@asynccontextmanager
async def unless_quick(text: str) -> AsyncIterator[None]:
    """Say what is being done, from the second second of the block on; only to a terminal.

    Args:
        text: what is being done, as in "Replaying …".
    """

    async def say() -> None:
        await anyio.sleep(_QUICK_SECONDS)
        with err.status(text):
            await anyio.sleep_forever()

    if not err.is_terminal:
        yield
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(say)
        yield
        tasks.cancel_scope.cancel()
