"""Sources of webhooks: senders whose requests become messages."""

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from runtime.agent.known_options import takes_known_options
from runtime.agent.secrets import check_secret_name
from runtime.agent.validation import check_segment
from runtime.connection.environment import non_blank
from runtime.errors import DeclarationError, InvalidKey
from runtime.keys import check_key

Scheme = Literal["standard", "github", "stripe"]
SCHEMES: Final[tuple[Scheme, ...]] = get_args(Scheme)
MAX_BYTES: Final = 2**20
TOLERANCE_SECONDS: Final = 300.0

PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_]+)\}", re.ASCII)
"""Stands for a field of the request in the template of a key."""


@takes_known_options
@dataclass(frozen=True, slots=True)
class Source:
    """A sender whose webhooks become messages.

    Args:
        name: one segment of a key: the end of the path, `/webhooks/NAME`, and the writer's name on the messages.
        key: the key of the messages. `{event}` in it is the sender's name of the event, `{field}` any other field of
            the body; characters that no key has are replaced. The first segment has no placeholder.
        scheme: how requests are signed: "standard" (Standard Webhooks), "github" or "stripe".
        secret: the environment variable that holds the secret, or several with spaces between them;
            `NAME_WEBHOOK_SECRET` by default.
        tolerance: seconds by which a signed time may differ from the clock here. GitHub signs no time.
        max_bytes: the largest body.
        headers: further headers to keep on the message.

    Raises:
        DeclarationError: the declaration makes no sense; the message says what to do.
    """

    name: str
    key: str
    scheme: Scheme = "standard"
    secret: str = ""
    tolerance: float = TOLERANCE_SECONDS
    max_bytes: int = MAX_BYTES
    headers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_segment(self.name, "A source's name")
        _check_template(self.key)
        if self.scheme not in SCHEMES:
            raise DeclarationError(
                f"Source(scheme=…) must be one of {', '.join(SCHEMES)}, not {self.scheme!r}."
            )
        named = non_blank(self.secret) if isinstance(self.secret, str) else self.secret
        variable = named or re.sub(r"\W", "_", f"{self.name}_webhook_secret").upper()
        object.__setattr__(self, "secret", check_secret_name(variable))
        if not 0 < self.tolerance <= 86_400:
            raise DeclarationError(f"Source(tolerance=…) is 1 second to a day, not {self.tolerance!r}.")
        if not 0 < self.max_bytes <= 16 * MAX_BYTES:
            raise DeclarationError(f"Source(max_bytes=…) is 1 to {16 * MAX_BYTES}, not {self.max_bytes!r}.")
        object.__setattr__(self, "headers", tuple(name.lower() for name in self.headers))

    @property
    def pattern(self) -> str:
        """A pattern that matches every key its messages can have, and hardly any other."""
        *segments, last = ["*" if PLACEHOLDER.fullmatch(each) else each for each in self.key.split(".")]
        return ".".join([*segments, ">" if self.key.endswith(".{event}") else last])


def _check_template(template: object) -> None:
    """Refuse a template that a sender's fields could turn into another writer's key, or into no key."""
    if not isinstance(template, str):
        raise DeclarationError(f"Source(key=…) is a key such as 'github.{{event}}', not {template!r}.")
    segments = template.split(".")
    if PLACEHOLDER.search(segments[0]):
        raise DeclarationError(
            f"Source(key={template!r}): the first segment must be fixed, so that no sender writes another's keys."
        )
    try:
        check_key(".".join("x" if PLACEHOLDER.fullmatch(segment) else segment for segment in segments))
    except InvalidKey as error:
        raise DeclarationError(
            f"Source(key={template!r}): {error} A placeholder such as {{event}} is a whole segment."
        ) from None
