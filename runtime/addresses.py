"""Is this the address of a database or of a project, and if not, what is wrong with it?

An address may hold a password, so no message here repeats what was given.
"""

import re
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qs, urlsplit

from runtime.errors import SettingsError

_POOLER_PORT = 6543
_DASHBOARD = re.compile(r"https?://(?:app\.|www\.)?supabase\.(?:com|io)(?:/.*?/project/(?P<ref>[a-z0-9]+))?")
_PASSWORD_CURE = (
    "Write special characters in the password percent-encoded: "
    "python3 -c 'import urllib.parse as u; print(u.quote(input(), \"\"))'."
)


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """Where a PostgreSQL server listens.

    Attributes:
        url: for the driver, with the password.
        place: host and port, for people.
        names_pooler: the URL itself says that a transaction pooler listens there.
    """

    url: str = field(repr=False)
    place: str
    names_pooler: bool

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a `postgresql://` URL.

        Raises:
            SettingsError: it is none.
        """
        url = url.strip()
        if not url.startswith(("postgresql://", "postgres://")):
            raise SettingsError(
                "DATABASE_URL must begin with postgresql://, as in postgresql://user:password@host:5432/postgres."
            )
        if "[YOUR-PASSWORD]" in url:
            raise SettingsError(
                "DATABASE_URL still holds the placeholder [YOUR-PASSWORD]: put the database's password there. "
                + _PASSWORD_CURE
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise SettingsError(f"DATABASE_URL cannot be read as a URL. {_PASSWORD_CURE}") from None
        if "@" in parts.path + parts.query + parts.fragment:
            raise SettingsError(f"DATABASE_URL ends its host too early, at a / or # or ?. {_PASSWORD_CURE}")
        pairs = [pair for pair in parts.query.split("&") if pair]
        # Other clients' parameter: the server would refuse it as an unknown setting.
        kept = [pair for pair in pairs if not pair.startswith("pgbouncer=")]
        says_so = parse_qs(parts.query).get("pgbouncer") == ["true"]
        return cls(
            url=parts._replace(query="&".join(kept)).geturl(),
            place=f"{parts.hostname or 'localhost'}:{port or 5432}",
            names_pooler=says_so or port == _POOLER_PORT,
        )


def project_url(url: str) -> str:
    """Return the URL of a Supabase project as a client wants it, without a slash at the end.

    Raises:
        SettingsError: it is none.
    """
    url = url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        has_host = False
    if not has_host or parts.scheme not in ("http", "https"):
        raise SettingsError(
            "SUPABASE_URL must look like https://<ref>.supabase.co or http://127.0.0.1:54321."
        )
    if dashboard := _DASHBOARD.match(url):
        ref = dashboard["ref"] or "<ref>"
        raise SettingsError(f"SUPABASE_URL is the dashboard's address: use https://{ref}.supabase.co.")
    if parts.query or parts.fragment or parts.username is not None:
        raise SettingsError(
            "SUPABASE_URL must be a plain URL, such as https://<ref>.supabase.co, without user, ? or #."
        )
    for suffix in ("/rest/v1", "/realtime/v1", "/auth/v1"):
        url = url.removesuffix(suffix)
    return url


def check_key(key: str) -> str:
    """Return a project's key without the white space around it.

    Raises:
        SettingsError: no key looks so.
    """
    key = key.strip()
    if not key or not key.isascii() or any(character.isspace() for character in key):
        raise SettingsError(
            "The Supabase key is empty or holds characters no key has: copy SUPABASE_SERVICE_ROLE_KEY (or "
            "SUPABASE_SECRET_KEY) again, whole and on one line."
        )
    return key
