"""What a Realtime channel asks its driver to do, and the kinds of refusal."""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from runtime.wakeups import Path


class RefusalKind(Enum):
    """The kind of a refusal, which decides when to try again."""

    RETRY = "retry"
    RATE = "rate"
    TOKEN = "token"
    PRIVATE = "private"
    OPERATOR = "operator"


_RATE_SIGNS = (
    "RateLimitReached", "Too many", "too many channels", "IncreaseConnectionPool", "DatabaseLackOfConnections",
)  # fmt: skip
_TOKEN_SIGNS = (
    "JWT", "Jwt", "Token has expired", "Fields `role`", "token provided", "signature_error", "API key",
)  # fmt: skip
# Only private topics, and with them broadcasts, are out of reach; postgres_changes still works.
_PRIVATE_SIGNS = ("MissingPartition", "do not have permissions to read from this Channel")
_OPERATOR_SIGNS = (
    "Unauthorized", "PrivateOnly", "RealtimeDisabled", "Realtime was disabled", "TenantNotFound", "Tenant not found",
    "do not have permissions", "no longer have permission", "TopicNameRequired",
)  # fmt: skip


def classify(text: str) -> RefusalKind:
    """Return the kind of a refused join, a refused handshake or a system message, by its text."""
    for refusal, signs in (
        (RefusalKind.RATE, _RATE_SIGNS),
        (RefusalKind.TOKEN, _TOKEN_SIGNS),
        (RefusalKind.PRIVATE, _PRIVATE_SIGNS),
        (RefusalKind.OPERATOR, _OPERATOR_SIGNS),
    ):
        if any(sign in text for sign in signs):
            return refusal
    return RefusalKind.RETRY


@dataclass(frozen=True, slots=True)
class Send:
    """Send this text frame."""

    frame: str


@dataclass(frozen=True, slots=True)
class Wake:
    """A hint came by this path, or announces an answer, a cancellation or what is due; with the id of its message."""

    path: Path | Literal["answer", "cancel", "due"]
    message: int | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """This path is proved to deliver."""

    path: Path


@dataclass(frozen=True, slots=True)
class Gap:
    """This path may have missed something."""

    path: Path
    why: str


@dataclass(frozen=True, slots=True)
class Lost:
    """This path delivers no more."""

    path: Path
    why: str


@dataclass(frozen=True, slots=True)
class Prove:
    """Have the database send this nonce."""

    nonce: str


@dataclass(frozen=True, slots=True)
class Close:
    """Drop the socket and start over."""

    why: str
    refusal: RefusalKind = RefusalKind.RETRY


@dataclass(frozen=True, slots=True)
class Joined:
    """The channel is joined."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A broadcast came that carries content itself, not a hint to look for it."""

    payload: object


Effect = Send | Wake | Live | Gap | Lost | Prove | Close | Joined | Heard
