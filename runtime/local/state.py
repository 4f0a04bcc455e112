"""The state of a stack between two commands: ports, keys, the place of its cluster, and a lock."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

from pydantic import BaseModel, SecretStr, ValidationError, computed_field, field_serializer

from runtime.connection.local_stack import STATE, LocalProject
from runtime.errors import LocalStackError
from runtime.local.account import Account
from runtime.local.keys import API_PORT, DB_PORT, Keys
from runtime.local.ports import free_port_like, ports_of_others

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
        project: the folder of the project it was started for; None if its data folder was named.
    """

    api_port: int = API_PORT
    db_port: int = DB_PORT
    cluster: Path | None = None
    database_url: SecretStr | None = None
    keys: Keys | None = None
    allowed_origins: tuple[str, ...] = ()
    project: Path | None = None

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @property
    def secret_key(self) -> str:
        """The key of servers, for commands that look for a running stack."""
        return (self.keys or Keys()).secret_key

    @field_serializer("database_url", when_used="json-unless-none")
    def _reveal(self, url: SecretStr) -> str:
        return url.get_secret_value()

    @classmethod
    def for_project(cls, project: LocalProject | None) -> "StackState":
        """Return the state before the first start, with the ports that the project's configuration names."""
        if project is None:
            return cls()
        return cls(
            api_port=project.api_port or API_PORT, db_port=project.db_port or DB_PORT, project=project.folder
        )

    @classmethod
    def load(cls, folder: Path) -> "StackState":
        """Return the state in a folder; the defaults if there is none.

        Raises:
            LocalStackError: the file is there and is not one of ours, or may not be read.
        """
        path = folder / STATE
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
        unfinished = folder / f"{STATE}.unfinished"
        try:
            unfinished.touch(mode=0o600)
            unfinished.write_text(self.model_dump_json(indent=2) + "\n")
            os.replace(unfinished, folder / STATE)
        except OSError as error:
            raise LocalStackError(f"{folder} cannot be written: {error}") from error


@contextmanager
def remembered(state: StackState, folder: Path, usual: StackState | None) -> Iterator[None]:
    """Remember a state while the stack starts, but its ports only if it does: one may be another program's.

    Args:
        state: the state to start with.
        folder: the data folder.
        usual: the state before the first start, if this is it.
    """
    before = usual or StackState.load(folder)
    state.save(folder)
    try:
        yield
    except BaseException:
        taken = ports_of_others(folder) if usual else set()
        state.api_port = free_port_like(before.api_port, taken) if taken else before.api_port
        state.db_port = free_port_like(before.db_port, taken | {state.api_port}) if taken else before.db_port
        state.save(folder)
        raise


def remove_files(folder: Path) -> None:
    """Delete a stopped stack's own files, and its folder if it holds nothing else.

    Raises:
        LocalStackError: a file cannot be deleted.
    """
    try:
        # The state goes last but for the lock: a removal that was cut short can be repeated.
        for pattern in ("gateway.*", "signing_keys.json*", f"{STATE}.*", STATE, "lock"):
            for file in folder.glob(pattern):
                file.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise LocalStackError(f"{folder} could not be deleted: {error}") from error


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
