"""Sources of webhooks: senders whose requests become messages."""

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from runtime.agent.secrets import check_secret_name
from runtime.agent.validation import check_segment
from runtime.connection.environment import given
from runtime.errors import DeclarationError, InvalidKey
from runtime.keys import check_key

Scheme = Literal["standard", "github", "stripe"]
SCHEMES: Final[tuple[Scheme, ...]] = get_args(Scheme)
MAX_BYTES: Final = 2**20
TOLERANCE_SECONDS: Final = 300.0

HOLE = re.compile(r"\{([A-Za-z0-9_]+)\}", re.ASCII)
"""A field of the request in the template of a key."""


@dataclass(frozen=True, slots=True)
class Source:
    """A sender whose webhooks become messages.

    Args:
        name: one segment of a key: the path it posts to, `/webhooks/NAME`, and the writer's name on its messages.
        key: the key they are written under. `{event}` in it is the sender's name of the event, `{field}` any other
            field of the body; what comes from outside is made to fit a key. The first segment is always fixed.
        scheme: how they are signed: "standard" (Standard Webhooks), "github" or "stripe".
        secret: the environment variable that holds the secret, or several with spaces between them;
            `NAME_WEBHOOK_SECRET` by default.
        tolerance: seconds that a signed time may lie from ours, to either side. GitHub signs no time.
        max_bytes: how large a body may be.
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
        named = given(self.secret) if isinstance(self.secret, str) else self.secret
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
        *segments, last = self.key.split(".")
        holes = [HOLE.fullmatch(segment) is not None for segment in segments]
        shown = ["*" if is_hole else segment for segment, is_hole in zip(segments, holes, strict=True)]
        return ".".join([*shown, ">" if last == "{event}" else "*" if HOLE.fullmatch(last) else last])


def _check_template(template: object) -> None:
    """Refuse a key that holes could make into another agent's, or into none."""
    if not isinstance(template, str):
        raise DeclarationError(f"Source(key=…) is a key such as 'github.{{event}}', not {template!r}.")
    segments = template.split(".")
    if HOLE.search(segments[0]):
        raise DeclarationError(
            f"Source(key={template!r}): the first segment must be fixed, so that no sender writes another's keys."
        )
    try:
        check_key(".".join("x" if HOLE.fullmatch(segment) else segment for segment in segments))
    except InvalidKey as error:
        raise DeclarationError(
            f"Source(key={template!r}): {error} A hole such as {{event}} is a whole segment."
        ) from None
