"""What becomes of another program's webhook? A message under its source's key, if the sender proves who it is.

Headers and bytes in, a draft or a refusal out: no clock, no server, no store.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args
from urllib.parse import parse_qsl

from runtime.declaration import check_segment
from runtime.errors import BadSignature, DeclarationError, InvalidKey, InvalidValue, SettingsError
from runtime.keys import MAX_SEGMENTS, check_key
from runtime.message import MAX_DEDUP_CHARACTERS, Draft
from runtime.secrets import check_secret_name, given
from runtime.webhooks.signatures import (
    TOLERANCE_SECONDS,
    read_secret,
    verify_github,
    verify_standard,
    verify_stripe,
)

Scheme = Literal["standard", "github", "stripe"]
SCHEMES: Final[tuple[Scheme, ...]] = get_args(Scheme)
MAX_BYTES: Final = 2**20

_HOLE = re.compile(r"\{([A-Za-z0-9_]+)\}", re.ASCII)
_NOT_OF_A_KEY = re.compile(r"[^A-Za-z0-9_:-]+")
_ABSENT = "none"
_HASHED = "sha256:"
# What is kept of a request beside its body: what names the event, and the trace it belongs to.
_KEPT: Final[Mapping[Scheme, tuple[str, ...]]] = {
    "standard": ("webhook-id", "webhook-timestamp"),
    "github": ("x-github-event", "x-github-delivery", "x-github-hook-id"),
    "stripe": (),
}
_KEPT_OF_ALL = ("traceparent", "tracestate", "user-agent")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a webhook is not taken."""

    status: int
    why: str


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
        holes = [_HOLE.fullmatch(segment) is not None for segment in segments]
        shown = ["*" if is_hole else segment for segment, is_hole in zip(segments, holes, strict=True)]
        return ".".join([*shown, ">" if last == "{event}" else "*" if _HOLE.fullmatch(last) else last])

    def verifier(self, secrets: Sequence[str]) -> "Verifier":
        """What verifies this source's webhooks.

        Raises:
            SettingsError: a secret is none of this scheme, or there is none.
        """
        secrets = [secret for secret in secrets if given(secret)]
        if not secrets:
            raise SettingsError(f"{self.secret} holds no secret: anybody could sign with it.")
        try:
            return Verifier(
                self, tuple(secrets), tuple(map(read_secret, secrets)) if self.scheme == "standard" else ()
            )
        except SettingsError as error:
            raise SettingsError(f"{self.secret}: {error}") from None


@dataclass(frozen=True, slots=True, repr=False)
class Verifier:
    """A source with its secrets; it has no repr, which could show them."""

    source: Source
    secrets: tuple[str, ...]
    keys: tuple[bytes, ...]

    def judge(self, headers: Mapping[str, str], body: bytes, *, now: float) -> Draft | Refusal:
        """Return the message that a request is, or why it is none. Nothing of it is read before it is verified.

        Args:
            headers: by name in small letters, or a mapping that does not mind.
            body: the request's body, byte for byte.
            now: the time, in seconds since the epoch.
        """
        try:
            message_id = self._verify(headers, body, now)
            value = _value(headers.get("content-type", ""), body)
            return self._draft(headers, value, message_id or self._id_in(headers, value))
        except BadSignature as error:
            return Refusal(400 if error.is_stale else 401, str(error))
        except _Unreadable as error:
            return Refusal(error.status, str(error))
        except (InvalidKey, InvalidValue) as error:
            # Sending it again will not help: no row can hold it.
            return Refusal(422, str(error))

    def _verify(self, headers: Mapping[str, str], body: bytes, now: float) -> str | None:
        source = self.source
        if source.scheme == "standard":
            return verify_standard(self.keys, headers, body, now=now, tolerance=source.tolerance)
        if source.scheme == "github":
            verify_github(self.secrets, headers, body)
        else:
            verify_stripe(self.secrets, headers, body, now=now, tolerance=source.tolerance)
        return None

    def _id_in(self, headers: Mapping[str, str], value: Any) -> str:
        """The sender's own id of the event, where the signature's headers do not hold it."""
        is_github = self.source.scheme == "github"
        found = headers.get("x-github-delivery") if is_github else isinstance(value, dict) and value.get("id")
        if isinstance(found, str) and found:
            return found
        where = "The header x-github-delivery" if is_github else "The event's id in the body"
        raise _Unreadable(
            400, f"{where} is missing: without it a repeated webhook could not be told from a new one."
        )

    def _draft(self, headers: Mapping[str, str], value: Any, message_id: str) -> Draft:
        source = self.source
        event = headers.get("x-github-event") if source.scheme == "github" else _field(value, "type")
        kept = (*_KEPT_OF_ALL, *_KEPT[source.scheme], *source.headers)
        return Draft(
            _filled(source.key, {"event": event or _ABSENT}, value),
            value,
            agent=source.name,
            dedup_key=_dedup_key(source.name, message_id),
            headers={name: text for name in kept if (text := headers.get(name))},
        )


class _Unreadable(ValueError):
    """Verified, but nothing that can be a message."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def _check_template(template: object) -> None:
    """Refuse a key that holes could make into another agent's, or into none."""
    if not isinstance(template, str):
        raise DeclarationError(f"Source(key=…) is a key such as 'github.{{event}}', not {template!r}.")
    segments = template.split(".")
    if _HOLE.search(segments[0]):
        raise DeclarationError(
            f"Source(key={template!r}): the first segment must be fixed, so that no sender writes another's keys."
        )
    try:
        check_key(".".join("x" if _HOLE.fullmatch(segment) else segment for segment in segments))
    except InvalidKey as error:
        raise DeclarationError(
            f"Source(key={template!r}): {error} A hole such as {{event}} is a whole segment."
        ) from None


def _filled(template: str, known: Mapping[str, str], value: Any) -> str:
    """The template with its holes filled: each a segment, but for a last `{event}`, whose own dots stay."""
    segments = template.split(".")
    filled: list[str] = []
    for number, segment in enumerate(segments, start=1):
        hole = _HOLE.fullmatch(segment)
        if hole is None:
            filled.append(segment)
            continue
        text = known.get(hole[1]) or _field(value, hole[1])
        if hole[1] == "event" and number == len(segments):
            # As many as there is room for; what is too much stays together in the last one.
            parts = [part for part in text.split(".", MAX_SEGMENTS - number) if part]
            filled += [_segment(part) for part in parts or [_ABSENT]]
        else:
            filled.append(_segment(text))
    return check_key(".".join(filled))


def _segment(text: str) -> str:
    return _NOT_OF_A_KEY.sub("-", text).strip("-") or _ABSENT


def _field(value: Any, name: str) -> str:
    """A field of the body as text, where it is one line of a kind that can name something."""
    found = value.get(name) if isinstance(value, dict) else None
    return str(found) if isinstance(found, str | int) and found != "" else _ABSENT


def _dedup_key(source: str, message_id: str) -> str:
    """Under which a repeated webhook is known; a sender's id can be longer than the column.

    A blank is in no source's name: "shop" and "shop:eu" have no key in common, whatever their senders choose.
    """
    whole = f"webhook {source} {message_id}"
    if len(whole) <= MAX_DEDUP_CHARACTERS and not message_id.startswith(_HASHED):
        return whole
    return f"webhook {source} {_HASHED}{hashlib.sha256(message_id.encode(errors='replace')).hexdigest()}"


def _value(content_type: str, body: bytes) -> Any:
    """What the body holds."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        return _form(body)
    if (
        kind
        and kind != "application/json"
        and not (kind.startswith("application/") and kind.endswith("+json"))
    ):
        raise _Unreadable(415, "Send JSON (content-type: application/json), or a form.")
    return _json(body)


def _form(body: bytes) -> Any:
    try:
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=1000, errors="strict"))
    except ValueError:
        raise _Unreadable(400, "The body is no form.") from None
    # GitHub's way to send JSON to those who read only forms.
    return _json(fields["payload"].encode()) if fields.keys() == {"payload"} else fields


def _json(body: bytes) -> Any:
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError):
        raise _Unreadable(400, "The body is no JSON in UTF-8.") from None
