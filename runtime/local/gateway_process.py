"""The gateway as a process of its own, with a pid file, beside the commands that start and stop it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

import psutil

from runtime.connection.addresses import DatabaseAddress
from runtime.errors import LocalStackError
from runtime.local import keys
from runtime.local.logs import begin_log, last_lines
from runtime.local.ports import holder_of, port_is_free

_MODULE: Final = "runtime.local.gateway"
_START_SECONDS: Final = 30
_STOP_SECONDS: Final = 5
_LOOK_SECONDS: Final = 0.02


class GatewayProcess:
    """One gateway; its pid file and its log lie in the data folder.

    Args:
        folder: an existing folder.
        port: TCP port on 127.0.0.1.
        database_url: the database it serves, as the role of its API or a superuser; `serve` says it later if empty.
    """

    def __init__(self, folder: Path, *, port: int, database_url: str = "") -> None:
        self.folder = folder.resolve()
        self.port = port
        self.log = self.folder / "gateway.log"
        self.signing_keys = self.folder / "signing_keys.json"
        self._pid_file = self.folder / "gateway.pid"
        self.serve(database_url)
        self._child: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<GatewayProcess {self.folder} [port {self.port}, {'running' if self.is_running else 'stopped'}]>"

    def serve(
        self,
        database_url: str,
        *,
        realtime_url: str | None = None,
        keys_: keys.Keys | None = None,
        allowed_origins: Sequence[str] = (),
    ) -> None:
        """Set what the gateway serves from its next start on.

        Args:
            database_url: the database, as the role of the API, or as a superuser who becomes that role.
            realtime_url: the same as the role of Realtime; `database_url` when None.
            keys_: what callers are let in by; the published keys when None.
            allowed_origins: the origins of web pages, besides those of this machine, that may use the API.
        """
        known = keys_ or keys.Keys()
        self._told = {
            # Rewritten: what PGSSLMODE and the like say is of other servers.
            "GATEWAY_DATABASE_URL": _rewritten(database_url),
            "GATEWAY_REALTIME_DATABASE_URL": _rewritten(realtime_url or database_url),
            "GATEWAY_JWT_SECRET": known.jwt_secret,
            "GATEWAY_PUBLISHABLE_KEY": known.publishable_key,
            "GATEWAY_SECRET_KEY": known.secret_key,
            "GATEWAY_ALLOWED_ORIGINS": json.dumps(list(allowed_origins)),
        }

    @property
    def pid(self) -> int | None:
        """Return the pid of the process that serves this folder, or None; a stale pid file is recognised."""
        try:
            pid = int(self._pid_file.read_text())
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            command = process.cmdline()
        except (OSError, ValueError, psutil.Error):
            return None
        return pid if _MODULE in command and str(self.folder) in command else None

    @property
    def is_running(self) -> bool:
        """Whether the process is alive."""
        return self.pid is not None

    def start(self) -> bool:
        """Start it and wait until it is healthy.

        Returns:
            False when it ran already.

        Raises:
            LocalStackError: the port is taken, or it ended or did not become healthy; with its log's last lines.
        """
        if self.is_running:
            return False
        if not port_is_free(self.port):
            raise LocalStackError(
                f"Port {self.port} of 127.0.0.1 is taken, by {holder_of(self.port)}. Choose another with --port, or "
                "leave it out and let a free one be chosen."
            )
        self._end_child()
        try:
            self._child = self._spawn()
            self._pid_file.write_text(f"{self._child.pid}\n")
        except OSError as error:
            self._end_child()
            raise LocalStackError(f"The gateway could not be started in {self.folder}: {error}") from error
        try:
            self._wait_healthy(self._child)
        except BaseException:
            self.kill()
            raise
        return True

    def stop(self) -> bool:
        """Ask it to end, wait, and end it if it does not.

        Returns:
            False when it did not run.
        """
        pid = self.pid
        if pid is not None:
            self._signal(pid, signal.SIGTERM)
            if not self._wait(lambda: self.pid is None, _STOP_SECONDS):
                self.kill()
        self._forget()
        return pid is not None

    def kill(self) -> None:
        """End it as a crash would, and wait until it is gone."""
        pid = self.pid
        if pid is not None:
            self._signal(pid, signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
            self._wait(lambda: self.pid is None, _STOP_SECONDS)
        self._forget()

    def _spawn(self) -> subprocess.Popen[bytes]:
        begin_log(self.log)
        with self.log.open("wb") as log:
            return subprocess.Popen(
                # The folder says nothing to the gateway: it tells this process from those of other stacks.
                [sys.executable, "-P", "-m", _MODULE, str(self.folder)],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal that started it is not meant for it.
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        package = str(Path(__file__).resolve().parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            # A checkout need not be installed.
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "GATEWAY_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.port),
            "GATEWAY_SIGNING_KEYS": str(self.signing_keys),
            **self._told,
        }

    def _wait_healthy(self, child: subprocess.Popen[bytes]) -> None:
        self._wait(lambda: child.poll() is not None or self._is_healthy(), _START_SECONDS)
        if child.poll() is not None:
            raise LocalStackError(
                f"The gateway ended at once, code {child.returncode}:{last_lines(self.log)}"
            )
        if not self._is_healthy():
            raise LocalStackError(
                f"The gateway did not become healthy within {_START_SECONDS} s:{last_lines(self.log)}"
            )

    def _is_healthy(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def _wait(self, is_done: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not is_done():
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def _signal(self, pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _forget(self) -> None:
        self._pid_file.unlink(missing_ok=True)
        self._end_child()

    def _end_child(self) -> None:
        """Reap what this very object has started; a process without a pid file goes for good."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


def _rewritten(url: str) -> str:
    return DatabaseAddress.parse(url).url if url else ""
