"""What a person sees of work that takes longer than a second."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import anyio

from runtime.cli.output import err

_QUICK_SECONDS: Final = 1.0


@contextmanager
def progress(*, as_json: bool = False) -> Iterator[Callable[[str], None]]:
    """Show on stderr which step takes a while: beside a spinner on a terminal, else as a line each.

    Args:
        as_json: whether the command was called with `--json`: then nothing is shown.

    Yields:
        Names the step that begins.
    """
    if as_json:
        yield lambda step: None
    elif not err.is_terminal:
        yield lambda step: err.print(f"{step} …", style="dim")
    else:
        with err.status("") as status:
            yield lambda step: status.update(f"{step} …")


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
