"""The one way in to a database: every connection is opened here, and wrong credentials are tried ever more rarely.

A pool, the listeners of NOTIFY and the retention of one process would each try a rotated password again and again; a
pooler then blocks the whole network they come from. Here they share one pause, which grows to minutes.
"""

import copy
import logging
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

import asyncpg

Connection: TypeAlias = "asyncpg.Connection[Any]"
Entry: TypeAlias = Literal["credentials", "away"]

FAULTS: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""What opening a connection can fail with."""

_log = logging.getLogger("runtime.store")
_FIRST_PAUSE_SECONDS, _PAUSE_FACTOR, _LONGEST_PAUSE_SECONDS = 5.0, 3.0, 300.0
# A peer that is gone without a word is found out within a minute, and an idle way through a NAT stays open.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
_CODES = ("28", "3D", "42501")

# What servers and poolers say on the way in, in lower case. A pooler sends most of it as XX000 or 08P01.
TEXTS: Mapping[str, Entry] = MappingProxyType({
    "password authentication failed": "credentials",
    "sasl authentication failed": "credentials",
    "authentication error": "credentials",
    "no such database": "credentials",
    "no such user": "credentials",
    "does not exist": "credentials",
    "user not found": "credentials",
    "not found in auth_query": "credentials",
    "wrong password": "credentials",
    "(enotfound)": "credentials",
    "(enoidentifier)": "credentials",
    "no tenant identifier": "credentials",
    "invalid format for user": "credentials",
    "(ecircuitbreaker)": "credentials",
    "circuit breaker open": "credentials",
    "too many authentication failures": "credentials",
    "(eaddrnotallowed)": "credentials",
    "not in tenant allow_list": "credentials",
    "no pg_hba.conf entry": "credentials",
    "pg_hba.conf rejects": "credentials",
    "(esslrequired)": "credentials",
    "ssl connection is required": "credentials",
    "ssl required": "credentials",
    "server does not support ssl": "credentials",
    "rejected ssl upgrade": "credentials",
    "not permitted to log in": "credentials",
    "is not permitted to connect": "credentials",
    # Full or just starting: these come before the words above, where both fit.
    "max clients": "away",
    "max client connections": "away",
    "(emaxconnsession)": "away",
    "(emaxclients": "away",
    "too many connections": "away",
    "remaining connection slots": "away",
})  # fmt: skip


def entry_of(code: str | None, text: str) -> Entry:
    """What a refusal on the way in means: whatever its SQLSTATE, a pooler's text says more."""
    text = text.lower()
    found = {entry for words, entry in TEXTS.items() if words in text}
    if found:
        return "away" if "away" in found else "credentials"
    return "credentials" if code is not None and code.startswith(_CODES) else "away"


@dataclass(slots=True)
class _CredentialState:
    """What is known of the credentials in one URL.

    Attributes:
        refused: how often in a row they were refused.
        shut_until: no try is made before then, in monotonic seconds.
        error: what was said the last time.
        is_tried: somebody tries again just now.
    """

    refused: int = 0
    shut_until: float = 0.0
    error: BaseException | None = None
    is_tried: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, now: float) -> None:
        """Begin a try.

        Raises:
            asyncpg.PostgresError: the last refusal, where it is too early for another try.
        """
        with self.lock:
            if self.error is None:
                return
            if self.is_tried or now < self.shut_until:
                raise copy.copy(self.error)
            self.is_tried = True

    def refuse(self, error: BaseException, now: float, random: Random) -> float:
        """Note a refusal; returns how long no try is made."""
        with self.lock:
            if now < self.shut_until:
                # Tried at the same time as another, which was refused first.
                return 0.0
            self.refused += 1
            pause = min(
                _LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * _PAUSE_FACTOR ** min(self.refused - 1, 10)
            )
            pause *= random.uniform(0.7, 1.0)
            self.shut_until, self.error, self.is_tried = now + pause, error, False
            return pause

    def leave(self, *, is_open: bool) -> None:
        """End a try that was not refused; `is_open` when it succeeded."""
        with self.lock:
            self.is_tried = False
            if is_open:
                self.refused, self.error = 0, None


# By the URL with its password: another password is another door.
_doors: dict[str, _CredentialState] = {}
_random = Random()


async def open_connection(url: str, *, seconds: float, **options: Any) -> Connection:
    """Open a connection.

    Args:
        url: a `postgresql://` URL.
        seconds: how long that may take.
        options: for `asyncpg.connect`.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: the database was not reached or let
            nobody in; without a try, where the same credentials were refused a while ago.
    """
    door = _doors.setdefault(url, _CredentialState())
    door.enter(time.monotonic())
    is_open = False
    try:
        connection: Connection = await asyncpg.connect(url, timeout=seconds, **options)
        is_open = True
    except FAULTS as error:
        if entry_of(getattr(error, "sqlstate", None), str(error)) == "credentials":
            pause = door.refuse(_stripped(error), time.monotonic(), _random)
            if door.refused > 1 and pause:
                _log.warning("the database still lets nobody in: the next try is made in %.0f s", pause)
        raise
    finally:
        door.leave(is_open=is_open)
    _keep_alive(connection)
    return connection


def _stripped(error: BaseException) -> BaseException:
    """The error without the frames and causes that it would hold on to."""
    kept = copy.copy(error)
    kept.__traceback__ = kept.__cause__ = kept.__context__ = None
    return kept


def _keep_alive(connection: Connection) -> None:
    """Have the system ask now and then whether the other end is still there."""
    transport = getattr(connection, "_transport", None)
    raw = None if transport is None else transport.get_extra_info("socket")
    if raw is None or raw.family not in (socket.AF_INET, socket.AF_INET6):
        return
    # Not every system knows all of them, and none is worth a connection.
    with suppress(OSError, AttributeError, TypeError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, number in _KEEPALIVE:
            if hasattr(socket, name):
                raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), number)
