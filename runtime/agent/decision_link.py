"""Signed links, by which whoever holds one may decide a request for approval; without I/O."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

from runtime.agent.approval import REQUESTED, deadline_of
from runtime.agent.secrets import secrets_in
from runtime.connection.environment import non_blank
from runtime.connection.public_url import public_url
from runtime.errors import BadSignature, InvalidValue
from runtime.message import Message
from runtime.settings import Settings

MAX_NAME_CHARACTERS: Final = 255
_LONGEST_SECONDS: Final = 7 * 86_400
# Nothing else that may be signed with the same secret begins so.
_PURPOSE: Final = b"agent-runtime decision link 1\n"
_SIGNED: Final = re.compile(r"(([0-9]{1,19})_-?[0-9a-f]{1,20})\.([0-9]{1,12})\.([A-Za-z0-9_-]*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class DecisionLink:
    """The content of a link.

    Attributes:
        request: the id of the request.
        identity: the idempotency key of the request: after a reset of the database its id may be another message's.
        by: who the link is for; None for whoever holds it.
    """

    request: int
    identity: str
    by: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class DecisionLinks:
    """Makes links and reads them; it has no repr, which could show the secrets.

    Args:
        secrets: the one to sign with, and older ones whose links still count.
        page: the URL of the page that the links open.
    """

    secrets: Sequence[str]
    page: str

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return the links of a deployment; None where the settings have no secret for them."""
        text = non_blank(settings.approval_secret)
        if text is None or settings.public_url is None:
            return None
        secrets = secrets_in({"RUNTIME_APPROVAL_SECRET": text}, "RUNTIME_APPROVAL_SECRET")
        return cls(secrets, f"{public_url(settings.public_url)}/approval")

    def url(self, request: Message[Any], *, by: str | None = None, now: datetime | None = None) -> str:
        """Return a link for a request; it counts until the request's deadline, and for a week at most.

        Args:
            request: the message under `approval.requested`.
            by: who the link is for, at most 255 characters; kept as who decided. None has the page ask for a name.
            now: the time; the clock's by default.

        Raises:
            InvalidValue: the message is no request for approval, or `by` is no name.
        """
        if not isinstance(request, Message) or request.key != REQUESTED:
            raise InvalidValue(
                f"A link decides a request for approval: give the message under {REQUESTED}, as a handler of that key "
                'gets it: `context.decision_link(message, by="ada@example.com")`.'
            )
        if by is not None and not is_name(by):
            raise InvalidValue(
                f"by= is the name of a person in a line, of at most {MAX_NAME_CHARACTERS} characters."
            )
        expires = (now or datetime.now(UTC)).timestamp() + _LONGEST_SECONDS
        if (deadline := deadline_of(request.value)) is not None:
            expires = min(expires, deadline.timestamp())
        name = base64.urlsafe_b64encode((by or "").encode()).decode().rstrip("=")
        signed = f"{request.idempotency_key}.{max(0, int(expires))}.{name}"
        return f"{self.page}?token={signed}.{_signature(self.secrets[0], signed)}"

    def read(self, token: str, *, now: float) -> DecisionLink:
        """Return the content of a link. Nothing of it is read before its signature is verified.

        Args:
            token: the part of the link that is signed.
            now: the time, in seconds since the epoch.

        Raises:
            BadSignature: no secret has signed it, or its time is over.
        """
        signed, _, signature = token.rpartition(".")
        # Every secret is tried, so that the time taken tells nothing.
        fits = [
            hmac.compare_digest(_signature(secret, signed).encode(), signature.encode(errors="replace"))
            for secret in self.secrets
        ]
        content = _SIGNED.fullmatch(signed)
        if not any(fits) or content is None:
            raise BadSignature("This link was not signed here, or a part of it is missing.")
        if int(content[3]) <= now:
            raise BadSignature("The time of this link is over.", is_stale=True)
        try:
            name = base64.urlsafe_b64decode(content[4] + "=" * (-len(content[4]) % 4)).decode()
        except (binascii.Error, ValueError):
            raise BadSignature("This link was signed for something else.") from None
        return DecisionLink(int(content[2]), content[1], name or None)


def is_name(by: object) -> bool:
    """Whether a text can name who decides: a line that shows something, and is not too long."""
    return isinstance(by, str) and by.strip() != "" and len(by) <= MAX_NAME_CHARACTERS and by.isprintable()


def _signature(secret: str, signed: str) -> str:
    digest = hmac.digest(secret.encode(), _PURPOSE + signed.encode(errors="replace"), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
