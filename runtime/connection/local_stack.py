"""The local stack of the project that a command or a script runs in: where its data lie, and whether it runs.

A project is a folder with `supabase/config.toml`, whose `project_id` names the data. Any other folder in which a stack
was started is a project, too. Nothing here needs the extra `local`: `runtime.local` runs the stack.
"""

import json
import os
import re
import socket
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

from runtime.errors import SettingsError

DATA_DIR: Final = "RUNTIME_LOCAL_DIR"
CONFIG: Final = Path("supabase", "config.toml")
STATE: Final = "stack.json"
_CONNECT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class LocalProject:
    """A project on this machine.

    Attributes:
        name: its `project_id`, or the name of its folder.
        folder: its folder; None if the data folder was named instead.
        data: the data folder of its stack, which need not exist yet.
        api_port: the API's port that the configuration names.
        db_port: PostgreSQL's port that the configuration names.
    """

    name: str
    folder: Path | None
    data: Path
    api_port: int | None = None
    db_port: int | None = None

    @classmethod
    def here(cls) -> Self:
        """Return the project of the working directory, or the one whose data folder `RUNTIME_LOCAL_DIR` names.

        Raises:
            SettingsError: its configuration cannot be read.
        """
        if named := os.environ.get(DATA_DIR):
            data = Path(named).expanduser().resolve()
            return cls(data.name, None, data)
        return cls.of(Path.cwd())

    @classmethod
    def of(cls, start: Path) -> Self:
        """Return the project that a folder lies in: the nearest one above, or the folder itself.

        Raises:
            SettingsError: its configuration cannot be read.
        """
        start = start.resolve()
        for folder in (start, *start.parents):
            if (folder / CONFIG).is_file():
                return cls._declared(folder)
        for folder in _below_home(start):
            data = _apart(folder.name, folder)
            if (data / STATE).exists():
                return cls(folder.name, folder, data)
        return cls(start.name or "stack", start, _apart(start.name, start))

    @classmethod
    def _declared(cls, folder: Path) -> Self:
        config = _read(folder / CONFIG)
        name = str(config.get("project_id") or folder.name)
        data = _apart(name, folder)
        if not (data / STATE).exists():
            # The plain name serves one project, also after its folder was moved; a second folder that declares the
            # same name, such as another clone, has data of its own.
            plain = stacks_folder() / _slug(name)
            known = LocalStackRecord.load(plain)
            owner = None if known is None else known.project
            if owner is None or owner == folder or not _declares(owner, name):
                data = plain
        return cls(name, folder, data, _port(config, "api"), _port(config, "db"))


@dataclass(frozen=True, slots=True)
class LocalStackRecord:
    """A local stack as its data folder records it.

    Attributes:
        data: the data folder.
        project: the folder of the project it was started for, if any.
        api_port: the port of its API.
        db_port: the port of its PostgreSQL.
        secret_key: the key of servers.
    """

    data: Path
    project: Path | None
    api_port: int
    db_port: int
    secret_key: str

    @classmethod
    def load(cls, data: Path) -> Self | None:
        """Return the stack in a data folder; None if no stack was started there."""
        data = data.resolve()
        try:
            state = json.loads((data / STATE).read_bytes())
            project = state.get("project")
            return cls(
                data, None if project is None else Path(project), state["api_port"], state["db_port"],
                state["secret_key"],
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @property
    def api_url(self) -> str:
        """The URL that a Supabase client is given."""
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def is_running(self) -> bool:
        """Whether its gateway runs."""
        try:
            pid = int((self.data / "gateway.pid").read_text())
        except (OSError, ValueError):
            return False
        # Linux shows the command line: after a crash, another program may have the pid, and a third one the port.
        with suppress(OSError):
            if str(self.data).encode() not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return False
        if os.name == "posix":
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return False
            except PermissionError:
                pass  # The process exists and belongs to another user.
        return is_listening("127.0.0.1", self.api_port)


def stacks_folder() -> Path:
    """Return the folder of all stacks' data: a folder in this platform's place for user data."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "agent-runtime" / "stacks"


def known_stacks() -> list[LocalStackRecord]:
    """Return every stack of this user that was ever started for a project, by name."""
    folders = sorted(path.parent for path in stacks_folder().glob(f"*/{STATE}"))
    return [stack for folder in folders if (stack := LocalStackRecord.load(folder)) is not None]


def running_stack() -> LocalStackRecord | None:
    """Return the stack of the project here, if it runs.

    Raises:
        SettingsError: the project's configuration cannot be read.
    """
    stack = LocalStackRecord.load(LocalProject.here().data)
    return stack if stack is not None and stack.is_running else None


def elsewhere() -> str:
    """Return a sentence about the stacks that run for other projects; empty if there are none."""
    running = [str(each.project or each.data) for each in known_stacks() if each.is_running]
    if not running:
        return ""
    return f" A stack runs for {', '.join(running)}: commands find it in that folder (`runtime local list`)."


def is_listening(host: str, port: int) -> bool:
    """Whether a program listens at this address of this machine."""
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _below_home(start: Path) -> Iterator[Path]:
    """Yield a folder and those above it, up to the home folder: a stack started there is not that of everything."""
    yield start
    for folder in start.parents:
        if folder in (Path.home().resolve(), Path(folder.anchor)):
            return
        yield folder


def _apart(name: str, folder: Path) -> Path:
    """Return a data folder that no other folder's project has."""
    return stacks_folder() / f"{_slug(name)}-{sha256(str(folder).encode()).hexdigest()[:8]}"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "stack"


def _declares(folder: Path, name: str) -> bool:
    try:
        return str(_read(folder / CONFIG).get("project_id")) == name
    except SettingsError:
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None


def _port(config: dict[str, Any], section: str) -> int | None:
    """Return the port of a section, where it is one: the file may hold `env(…)`."""
    table = config.get(section)
    port = table.get("port") if isinstance(table, dict) else None
    return port if isinstance(port, int) and 0 < port < 65_536 else None
