"""Connections to a database: all are opened here, and refused credentials are tried ever more rarely.

The pool, the listeners of NOTIFY and the pruner of one process would each try a rotated password again and again, until
a pooler blocks their whole network. Here they share one pause, which grows to minutes.
"""

import copy
import logging
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Literal, TypeAlias

import asyncpg

Connection: TypeAlias = "asyncpg.Connection[Any]"
Entry: TypeAlias = Literal["credentials", "away"]

FAULTS: Final = (
    OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError,
)  # fmt: skip
"""The exceptions of opening a connection."""

_log = logging.getLogger("runtime.store")
_FIRST_PAUSE_SECONDS, _PAUSE_FACTOR, _LONGEST_PAUSE_SECONDS = 5.0, 3.0, 300.0
# A peer that vanished is noticed within a minute, and a NAT keeps an idle connection.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
_CODES = ("28", "3D", "42501")

# The texts of refused connections, in lower case. A pooler sends most of them as XX000 or 08P01.
_FULL_TEXTS: Final = (
    "max clients", "max client connections", "(emaxconnsession)", "(emaxclients", "too many connections",
    "remaining connection slots",
)  # fmt: skip
_CREDENTIALS_TEXTS: Final = (
    "password authentication failed", "sasl authentication failed", "authentication error", "wrong password",
    "no such database", "no such user", "does not exist", "user not found", "not found in auth_query", "(enotfound)",
    "(enoidentifier)", "no tenant identifier", "invalid format for user", "(ecircuitbreaker)", "circuit breaker open",
    "too many authentication failures", "(eaddrnotallowed)", "not in tenant allow_list", "no pg_hba.conf entry",
    "pg_hba.conf rejects", "(esslrequired)", "ssl connection is required", "ssl required",
    "server does not support ssl", "rejected ssl upgrade", "not permitted to log in", "is not permitted to connect",
)  # fmt: skip


def entry_of(code: str | None, text: str) -> Entry:
    """Classify a refused connection by its text first: a pooler's SQLSTATE says less."""
    text = text.lower()
    if any(words in text for words in _FULL_TEXTS):
        return "away"
    has_code = code is not None and code.startswith(_CODES)
    return "credentials" if has_code or any(words in text for words in _CREDENTIALS_TEXTS) else "away"


@dataclass(slots=True)
class _CredentialState:
    """What is known of the credentials in one URL.

    Attributes:
        refused: how often in a row they were refused.
        shut_until: the time before which no try is made, in monotonic seconds.
        error: the last refusal.
        is_tried: whether another caller is trying again now.
    """

    refused: int = 0
    shut_until: float = 0.0
    error: BaseException | None = None
    is_tried: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, now: float) -> None:
        """Begin a try.

        Raises:
            asyncpg.PostgresError: the last refusal, if it is too early for another try.
        """
        with self.lock:
            if self.error is None:
                return
            if self.is_tried or now < self.shut_until:
                raise copy.copy(self.error)
            self.is_tried = True

    def refuse(self, error: BaseException, now: float, random: Random) -> float:
        """Record a refusal; return the pause before the next try, in seconds."""
        with self.lock:
            if now < self.shut_until:
                # A simultaneous try was refused first and has set the pause.
                return 0.0
            self.refused += 1
            pause = min(
                _LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * _PAUSE_FACTOR ** min(self.refused - 1, 10)
            )
            pause *= random.uniform(0.7, 1.0)
            self.shut_until, self.error, self.is_tried = now + pause, error, False
            return pause

    def leave(self, *, is_open: bool) -> None:
        """End a try that was not refused; `is_open` if it succeeded."""
        with self.lock:
            self.is_tried = False
            if is_open:
                self.refused, self.error = 0, None


# By the URL with its password: another password is tried at once.
_states: dict[str, _CredentialState] = {}
_random = Random()


async def open_connection(url: str, *, seconds: float, **options: Any) -> Connection:
    """Open a connection.

    Args:
        url: a `postgresql://` URL.
        seconds: how long that may take.
        options: for `asyncpg.connect`.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: the database was not reached or refused
            the connection; raised without a try if it refused the same credentials a moment ago.
    """
    state = _states.setdefault(url, _CredentialState())
    state.enter(time.monotonic())
    is_open = False
    try:
        connection: Connection = await asyncpg.connect(url, timeout=seconds, **options)
        is_open = True
    except FAULTS as error:
        if entry_of(getattr(error, "sqlstate", None), str(error)) == "credentials":
            pause = state.refuse(_stripped(error), time.monotonic(), _random)
            if state.refused > 1 and pause:
                _log.warning("the database still refuses these credentials: next try in %.0f s", pause)
        raise
    finally:
        state.leave(is_open=is_open)
    _keep_alive(connection)
    return connection


def _stripped(error: BaseException) -> BaseException:
    """Return the error without the frames and causes that it would keep alive."""
    kept = copy.copy(error)
    kept.__traceback__ = kept.__cause__ = kept.__context__ = None
    return kept


def _keep_alive(connection: Connection) -> None:
    """Turn TCP keepalive on: a peer that vanished is noticed."""
    transport = getattr(connection, "_transport", None)
    raw = None if transport is None else transport.get_extra_info("socket")
    if raw is None or raw.family not in (socket.AF_INET, socket.AF_INET6):
        return
    # Not every system has all of these options, and the connection works without them.
    with suppress(OSError, AttributeError, TypeError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, number in _KEEPALIVE:
            if hasattr(socket, name):
                raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), number)
