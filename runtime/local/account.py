"""The account that runs PostgreSQL: it refuses to be root, so root hands it to an account without privileges."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_NOBODY = 65534
_ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Account:
    """The account PostgreSQL's programs run as: our own, or `nobody` when we are root.

    Attributes:
        uid: the user to become, or None to stay who we are.
        gid: its group, or None likewise.
    """

    uid: int | None = None
    gid: int | None = None

    @classmethod
    def choose(cls) -> Self:
        """The account for this process."""
        if os.name != "posix" or os.geteuid() != 0:
            return cls()
        import pwd

        try:
            entry = pwd.getpwnam("nobody")
        except KeyError:
            return cls(_NOBODY, _NOBODY)
        return cls(entry.pw_uid, entry.pw_gid)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        seconds: float = 300,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as this account until it ends; its output is collected, its exit code left to read.

        Raises:
            OSError: the program cannot be run at all.
            subprocess.TimeoutExpired: it took longer than `seconds`.
        """
        options: dict[str, Any] = {}
        if self.uid is not None:
            options = {"user": self.uid, "group": self.gid, "extra_groups": []}
        return subprocess.run(
            [str(part) for part in command],
            # The working directory of root may be closed to the account.
            cwd="/" if os.name == "posix" else None,
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            **options,
        )

    def can_enter(self, folder: Path) -> bool:
        """Whether the account reaches this folder: asked of the system, since mode bits do not tell all."""
        if self.uid is None:
            return os.access(folder, os.X_OK)
        return (
            self.run(["/bin/sh", "-c", 'cd -- "$1"', "sh", folder], seconds=_ANSWER_SECONDS).returncode == 0
        )

    def can_run(self, program: Path) -> bool:
        """Whether the account can start this program and the libraries beside it."""
        try:
            return self.run([program, "--version"], seconds=_ANSWER_SECONDS).returncode == 0
        except OSError:
            return False

    def give(self, path: Path) -> None:
        """Make the account the owner of a file or folder that we have just made."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)
