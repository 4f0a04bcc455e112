"""PgBouncer from Debian, as a transaction pooler or a session pooler in front of a server of the tests."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.local.ports import free_port, port_is_free

PROGRAM = "/usr/sbin/pgbouncer"
_CONFIG = """
[databases]
* = host=127.0.0.1 port={target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = {size}
server_login_retry = 0
"""


@dataclass
class Pooler:
    """A running PgBouncer."""

    port: int
    process: "subprocess.Popen[bytes]"

    def url(self, database: str, *, user: str = "postgres", password: str = "postgres") -> str:
        """How a database is reached through it."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"


@contextmanager
def pooler(target: int, mode: str) -> Iterator[Pooler]:
    """Run a PgBouncer in front of the server on a port."""
    if not os.path.exists(PROGRAM):
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    folder, port = Path(tempfile.mkdtemp(prefix="agent-runtime-test-")), free_port()
    folder.chmod(0o755)
    (folder / "users").write_text('"postgres" "postgres"\n')
    # Few enough that clients of a transaction pooler change places; a session is held for as long as its client lives.
    size = 3 if mode == "transaction" else 30
    config = _CONFIG.format(target=target, port=port, folder=folder, mode=mode, size=size)
    (folder / "pgbouncer.ini").write_text(config)
    # As root it refuses to run, unless told whom to become.
    user = ["-u", "nobody"] if os.getuid() == 0 else []
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, *user, folder / "pgbouncer.ini"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while port_is_free(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)
        yield Pooler(port, process)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)
