"""The public address of a deployment, and the secrets that sign links to it."""

from typing import Final
from urllib.parse import urlsplit

from runtime.connection.environment import unquoted
from runtime.errors import SettingsError

_MIN_SECRET_BYTES: Final = 32


def check_links(secrets: str | None, url: str | None) -> None:
    """Check the two settings of links that decide approvals.

    Args:
        secrets: what signs the links; an old secret may follow after a space.
        url: where the links lead.

    Raises:
        SettingsError: one of the two is missing or makes no sense; the message repeats no secret.
    """
    if (secrets is None) != (url is None):
        names = ("RUNTIME_APPROVAL_SECRET", "RUNTIME_PUBLIC_URL")
        given, missing = names if url is None else reversed(names)
        raise SettingsError(
            f"{given} is set, and {missing} is not: links that decide approvals need both, wherever they are made and "
            "where they lead."
        )
    if secrets is not None and any(len(each.encode()) < _MIN_SECRET_BYTES for each in secrets.split()):
        raise SettingsError(
            f"RUNTIME_APPROVAL_SECRET must have at least {_MIN_SECRET_BYTES} bytes, since anybody who guesses it can "
            'decide approvals: python -c "import secrets; print(secrets.token_urlsafe(32))". An old one may follow '
            "after a space."
        )
    if url is not None:
        public_url(url)


def public_url(url: str) -> str:
    """Return the URL at which people reach an application of the runtime, without a slash at the end.

    Raises:
        SettingsError: it is no such URL.
    """
    url = unquoted(url).rstrip("/")
    try:
        parts = urlsplit(url)
        is_plain = bool(parts.hostname) and parts.port != 0 and parts.username is None and url.isascii()
    except ValueError:
        is_plain = False
    if not is_plain or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise SettingsError(
            "RUNTIME_PUBLIC_URL must look like https://agents.example.com, or http://127.0.0.1:8322 on this machine: "
            "no user, ? or #."
        )
    return url
