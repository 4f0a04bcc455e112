"""The receiver of other programs' webhooks: each becomes a message under its source's key, if its signature holds.

Headers and bytes in, a draft or a refusal out: no clock, no server, no store.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from runtime.agent.source import PLACEHOLDER, Scheme, Source
from runtime.connection.environment import non_blank
from runtime.errors import BadSignature, InvalidKey, InvalidValue, SettingsError
from runtime.keys import MAX_SEGMENTS, check_key
from runtime.message import MAX_DEDUP_CHARACTERS, Draft
from runtime.webhooks.signatures import (
    read_secret,
    verify_github,
    verify_standard,
    verify_stripe,
)

_NOT_OF_A_KEY = re.compile(r"[^A-Za-z0-9_:-]+")
_ABSENT = "none"
_HASHED = "sha256:"
# The headers of a request that are kept: those that name the event, and the trace it belongs to.
_KEPT: Final[Mapping[Scheme, tuple[str, ...]]] = {
    "standard": ("webhook-id", "webhook-timestamp"),
    "github": ("x-github-event", "x-github-delivery", "x-github-hook-id"),
    "stripe": (),
}
_KEPT_OF_ALL = ("traceparent", "tracestate", "user-agent")


@dataclass(frozen=True, slots=True)
class WebhookRefusal:
    """Why a webhook is not taken."""

    status: int
    why: str


@dataclass(frozen=True, slots=True, repr=False)
class Verifier:
    """A source with its secrets; it has no repr, which could show them."""

    source: Source
    secrets: tuple[str, ...]
    keys: tuple[bytes, ...]

    def judge(self, headers: Mapping[str, str], body: bytes, *, now: float) -> Draft | WebhookRefusal:
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
            return WebhookRefusal(400 if error.is_stale else 401, str(error))
        except _MalformedBody as error:
            return WebhookRefusal(error.status, str(error))
        except (InvalidKey, InvalidValue) as error:
            # To send it again will not help: no row can hold it.
            return WebhookRefusal(422, str(error))

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
        raise _MalformedBody(
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


def verifier_of(source: Source, secrets: Sequence[str]) -> Verifier:
    """Return what verifies the webhooks of a source.

    Raises:
        SettingsError: a secret is none of this scheme, or there is none.
    """
    secrets = [secret for secret in secrets if non_blank(secret)]
    if not secrets:
        raise SettingsError(f"{source.secret} holds no secret: anybody could sign with it.")
    try:
        return Verifier(
            source, tuple(secrets), tuple(map(read_secret, secrets)) if source.scheme == "standard" else ()
        )
    except SettingsError as error:
        raise SettingsError(f"{source.secret}: {error}") from None


class _MalformedBody(ValueError):
    """Verified, but nothing that can be a message."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def _filled(template: str, known: Mapping[str, str], value: Any) -> str:
    """The template with its holes filled: each a segment, but for a last `{event}`, whose own dots stay."""
    segments = template.split(".")
    filled: list[str] = []
    for number, segment in enumerate(segments, start=1):
        hole = PLACEHOLDER.fullmatch(segment)
        if hole is None:
            filled.append(segment)
            continue
        text = known.get(hole[1]) or _field(value, hole[1])
        if hole[1] == "event" and number == len(segments):
            # As many segments as a key may have; the rest stays together in the last one.
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
    """The key by which a repeated webhook is recognised, hashed where the sender's id is longer than the column.

    No source's name holds a blank: "shop" and "shop:eu" have no key in common, whatever ids their senders choose.
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
        raise _MalformedBody(415, "Send JSON (content-type: application/json), or a form.")
    return _json(body)


def _form(body: bytes) -> Any:
    try:
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=1000, errors="strict"))
    except ValueError:
        raise _MalformedBody(400, "The body is no form.") from None
    # GitHub sends JSON in this field of a form.
    return _json(fields["payload"].encode()) if fields.keys() == {"payload"} else fields


def _json(body: bytes) -> Any:
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError):
        raise _MalformedBody(400, "The body is no JSON in UTF-8.") from None
