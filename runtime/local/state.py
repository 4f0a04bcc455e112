"""The state of a stack between two commands: ports, keys, the place of its cluster, and a lock."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from pydantic import BaseModel, SecretStr, ValidationError, field_serializer

from runtime.errors import LocalStackError
from runtime.local.account import Account
from runtime.local.keys import API_PORT, DB_PORT, Keys
from runtime.local.ports import port_is_free

_LOCK_SECONDS: Final = 120
_SHARED_PLACES: Final = (Path("/var/lib/agent-runtime"), Path("/var/tmp/agent-runtime"))


class StackState(BaseModel):
    """The content of `stack.json`.

    Attributes:
        api_port: TCP port of the gateway.
        db_port: TCP port of PostgreSQL.
        cluster: the folder of PostgreSQL, which need not lie in the data folder; None before the first start.
        database_url: the PostgreSQL that is used instead of an own one, if any.
        keys: drawn for that PostgreSQL; the published ones, which open a database of our own alone, when None.
        allowed_origins: the origins of web pages, besides those of this machine, that may use the API.
    """

    api_port: int = API_PORT
    db_port: int = DB_PORT
    cluster: Path | None = None
    database_url: SecretStr | None = None
    keys: Keys | None = None
    allowed_origins: tuple[str, ...] = ()

    @field_serializer("database_url", when_used="json-unless-none")
    def _reveal(self, url: SecretStr) -> str:
        return url.get_secret_value()

    @classmethod
    def load(cls, folder: Path) -> "StackState":
        """Return the state in a folder; the defaults if there is none.

        Raises:
            LocalStackError: the file is there and is not one of ours, or may not be read.
        """
        path = folder / "stack.json"
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except (OSError, ValidationError) as error:
            raise LocalStackError(f"{path} cannot be understood; mend or delete it: {error}") from error

    def save(self, folder: Path) -> None:
        """Write it down, whole or not at all; readable by its owner only, for a URL may hold a password.

        Raises:
            LocalStackError: the folder cannot be written.
        """
        unfinished = folder / "stack.json.unfinished"
        try:
            unfinished.touch(mode=0o600)
            unfinished.write_text(self.model_dump_json(indent=2) + "\n")
            os.replace(unfinished, folder / "stack.json")
        except OSError as error:
            raise LocalStackError(f"{folder} cannot be written: {error}") from error


def default_folder() -> Path:
    """Return the default data folder: `RUNTIME_LOCAL_DIR`, or a folder in this platform's place for user data."""
    if named := os.environ.get("RUNTIME_LOCAL_DIR"):
        return Path(named)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "agent-runtime" / "local"


def running_stack(folder: Path) -> StackState | None:
    """Return the state of the stack in a folder, if its gateway runs; without any library of the extra `local`.

    Raises:
        LocalStackError: the file is no `stack.json` of this package.
    """
    try:
        pid = int((folder / "gateway.pid").read_text())
    except (OSError, ValueError):
        return None
    # Linux shows the command line: after a crash, another program may have the pid, and a third one the port.
    with suppress(OSError):
        if str(folder).encode() not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return None
    if os.name == "posix":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # The process exists and belongs to another user.
    state = StackState.load(folder)
    return None if port_is_free(state.api_port) else state


def place_cluster(folder: Path) -> Path:
    """Where a stack's cluster can live: in its data folder, or where the account of PostgreSQL can reach it.

    Root's own folders are closed to everybody else, and their permissions are not ours to change.

    Raises:
        LocalStackError: there is no such place.
    """
    account = Account.choose()
    if account.can_enter(folder):
        return folder / "postgres"
    name = sha256(str(folder).encode()).hexdigest()[:12]
    for place in _SHARED_PLACES:
        try:
            if not place.exists():
                place.mkdir(parents=True)
                place.chmod(0o755)
            # Another user could have made a folder here that is writable to all.
            if place.stat().st_uid == os.geteuid() and account.can_enter(place):
                return place / name
        except OSError:
            continue
    raise LocalStackError(
        f"The account PostgreSQL runs as cannot enter {folder}. Name a folder that everybody can reach with --data-dir."
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other commands off this stack for as long as the block runs.

    Raises:
        LocalStackError: another one has been at work for too long.
    """
    try:
        file = (folder / "lock").open("a")
    except OSError as error:
        raise LocalStackError(f"{folder} cannot be written: {error}") from error
    with file:
        if sys.platform != "win32":
            import fcntl

            deadline = time.monotonic() + _LOCK_SECONDS
            while True:
                try:
                    # Freed by the system when the process ends, however it does.
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise LocalStackError(
                            f"Another command is at work on the stack in {folder}."
                        ) from None
                    time.sleep(0.05)
        yield
