"""The target of webhooks out: a URL, and the secrets that sign its requests."""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from runtime.agent.retry import Retry
from runtime.errors import DeclarationError

POST_CONCURRENCY: Final = 10
POST_SECONDS: Final = 30.0
# About half a day in all: a target that is repaired before the next morning misses nothing.
POST_RETRY: Final = Retry(attempts=15, first_seconds=5.0, cap_seconds=6 * 3600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the messages of one subscription are posted to.

    Attributes:
        url: with its credentials and query.
        secret_name: the environment variable that holds the secrets, for a target that code declares.
        secrets: the secrets themselves, for a target that a command has added; the newest first.
        seconds: how long one request may take.
    """

    url: str = field(repr=False)
    secret_name: str | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)
    seconds: float = POST_SECONDS

    @property
    def shown(self) -> str:
        """The URL without its secret parts, for logs, errors and lists."""
        return shown_url(self.url)


def shown_url(url: str) -> str:
    """Return a URL without credentials, query and fragment."""
    return re.sub(r"[?#].*", "", re.sub(r"^(\w+://)[^/?#]*@", r"\1", url))


def check_url(url: object) -> str:
    """Return the URL, if requests can go to it.

    Raises:
        DeclarationError: it is no URL; the message does not repeat it, since it may hold a secret.
    """
    if isinstance(url, str) and url.isascii() and not re.search(r"[\s\\]", url):
        with suppress(ValueError):
            parts = urlsplit(url)
            if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
                return url
    raise DeclarationError("A webhook's URL looks like https://example.com/hooks: http or https, and a host.")
