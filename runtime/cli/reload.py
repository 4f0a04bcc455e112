"""Running agents anew when their files change, without losing a message.

They run in a process of their own. When a file has changed, it is first tried whether the new files can be imported at
all; only then does the old process drain, and a new one start. What is written in between waits in the table.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import Process
from watchfiles import PythonFilter, awatch

from runtime.cli.output import err
from runtime.worker.supervisor import ending

Say = Callable[[str], None]

_GRACE_SECONDS: Final = 5.0
_TRIAL: Final = """
import sys
import typer
from runtime.agent.discovery import discover
from runtime.cli.errors import told
try:
    with told(as_json=sys.argv[1] == "json"):
        discover(sys.argv[2:])
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


class Reloader:
    """One process of agents, replaced whenever their files change.

    Args:
        paths: the agents, as `runtime run` takes them.
        environment: of the process.
        drain_seconds: time limit of its running handlers at the end.
        say: prints a sentence.
        options: further ones of `runtime run`.
        descriptors: those that the process inherits.
    """

    def __init__(
        self,
        paths: Sequence[str],
        environment: Mapping[str, str],
        *,
        drain_seconds: float,
        say: Say,
        options: Sequence[str] = (),
        descriptors: Sequence[int] = (),
    ) -> None:
        self._paths = list(paths)
        self._environment = dict(environment)
        self._drain_seconds = drain_seconds
        self._say = say
        self._options = [*options, "--webhooks"]
        self._descriptors = list(descriptors)
        self._process: Process | None = None
        self._changed = anyio.Event()
        self._stopped = anyio.Event()

    def stop(self) -> None:
        """Drain and end; called once more, end without draining."""
        if self._stopped.is_set() and self._process is not None and self._process.returncode is None:
            self._process.kill()
        self._stopped.set()

    async def run(self) -> None:
        """Run the agents until stopped or cancelled; no process is left behind."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            try:
                while not self._stopped.is_set():
                    self._changed = anyio.Event()
                    if await self._can_start():
                        await self._replace()
                    await self._rest()
            finally:
                with anyio.CancelScope(shield=True):
                    await self._drain()
                tasks.cancel_scope.cancel()

    async def _watch(self) -> None:
        async for changes in awatch(*watched(self._paths), watch_filter=PythonFilter()):
            names = sorted({Path(path).name for _, path in changes})
            self._say(f"changed: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}")
            self._changed.set()

    async def _can_start(self) -> bool:
        """Whether the files can be imported; if not, the error is on stderr already."""
        command = [sys.executable, "-c", _TRIAL, "json" if err.is_json else "lines", *self._paths]
        async with await self._open(command) as trial:
            # An import may never end: the next change of a file ends the trial.
            await _first(trial.wait, self._changed.wait, self._stopped.wait)
            if trial.returncode is None:
                trial.kill()
                return False
        if trial.returncode == 0:
            return True
        goes_on = "the agents that run go on as they are, " if self._is_running else ""
        self._say(f"not reloaded: {goes_on}waiting for the next change")
        return False

    async def _replace(self) -> None:
        await self._drain()
        if not self._stopped.is_set():
            self._process = await self._open(
                [sys.executable, "-m", "runtime", "run", *self._paths, *self._options], self._descriptors
            )

    async def _rest(self) -> None:
        """Wait for the next change or for `stop`; report a process of agents that ends by itself."""
        if self._is_running and self._process is not None:
            await _first(self._process.wait, self._changed.wait, self._stopped.wait)
            if not self._is_running and not self._stopped.is_set():
                self._say(
                    f"the agents' process {ending(self._process.returncode or 0)}; "
                    "what it held comes due again; waiting for the next change"
                )
        await _first(self._changed.wait, self._stopped.wait)

    async def _drain(self) -> None:
        """Let the process drain, and kill it if it takes too long."""
        process, self._process = self._process, self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            with anyio.move_on_after(self._drain_seconds + _GRACE_SECONDS):
                await process.wait()
        if process.returncode is None:
            self._say("the agents' process does not end, so it is killed")
            process.kill()
            await process.wait()
        self._process = None

    @property
    def _is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def _open(self, command: list[str], descriptors: Sequence[int] = ()) -> Process:
        # Its own process group: Ctrl-C in a terminal reaches only this process, which lets it drain.
        return await anyio.open_process(
            command, stdin=None, stdout=None, stderr=None, env=self._environment, start_new_session=True,
            pass_fds=descriptors,
        )  # fmt: skip


def watched(paths: Sequence[str]) -> list[Path]:
    """Return the folders whose Python files these agents may consist of."""
    folders = []
    for path in paths:
        place = Path(path if Path(path).exists() else path.rpartition(":")[0] or path)
        # A file's folder is watched, since editors replace files; for a module, the working directory too.
        folders.append(place if place.is_dir() else place.parent if place.is_file() else Path())
    return list(dict.fromkeys(folder.resolve() for folder in folders))


async def _first(*waits: Callable[[], object]) -> None:
    """Wait until one of these has ended."""
    async with anyio.create_task_group() as tasks:

        async def wait(until: Callable[[], object]) -> None:
            await until()  # type: ignore[misc]
            tasks.cancel_scope.cancel()

        for until in waits:
            tasks.start_soon(wait, until)
