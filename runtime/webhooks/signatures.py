"""Signatures of webhooks: those of Standard Webhooks are made and verified, those of GitHub and Stripe verified.

Bytes and seconds in, a verdict out: no clock, no server. Every comparison takes the same time whatever it finds.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets as randomness
from collections.abc import Iterable, Mapping, Sequence

from runtime.agent.source import TOLERANCE_SECONDS
from runtime.connection.environment import non_blank
from runtime.errors import BadSignature, SettingsError

_PREFIX = "whsec_"
_MAX_KEY_BYTES = 64
_MIN_KEY_BYTES = 16
_WHOLE_SECONDS = re.compile(r"[0-9]{1,12}", re.ASCII)
_HEX_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def new_secret() -> str:
    """Return a fresh secret of Standard Webhooks, as text that both sides put into their settings."""
    return _PREFIX + base64.b64encode(randomness.token_bytes(32)).decode()


def read_secret(text: str) -> bytes:
    """Return the signing key that a secret of Standard Webhooks stands for.

    Args:
        text: `whsec_` and base64, as senders show it; the prefix may be missing.

    Raises:
        SettingsError: it is no such secret. The text is not repeated.
    """
    body = text.strip().removeprefix(_PREFIX)
    try:
        key = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not _MIN_KEY_BYTES <= len(key) <= _MAX_KEY_BYTES:
        raise SettingsError(
            f"A secret of Standard Webhooks is {_PREFIX} and the base64 of {_MIN_KEY_BYTES} to {_MAX_KEY_BYTES} "
            'bytes. Make one: python -c "from runtime.webhooks.signatures import new_secret; print(new_secret())"'
        )
    return key


def sign(keys: Iterable[bytes], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of Standard Webhooks for one request.

    Args:
        keys: what `read_secret` returned; several while a secret is rotated, since one match is enough for a receiver.
        message_id: the same for each attempt to deliver the same message; it holds no dot.
        timestamp: when this attempt is made, in whole seconds since the epoch.
        body: the request's body, byte for byte.
    """
    signed = _standard_content(message_id, str(timestamp), body)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_standard_signature(key, signed) for key in keys),
    }


def verify_standard(
    keys: Sequence[bytes],
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    tolerance: float = TOLERANCE_SECONDS,
) -> str:
    """Return the id of a message that was signed by Standard Webhooks with one of the keys.

    Args:
        keys: what `read_secret` returned of each secret that holds.
        headers: by name in small letters, or a mapping that does not mind.
        body: the request's body, byte for byte.
        now: the time, in seconds since the epoch.
        tolerance: how far the signed time may lie from it, to either side.

    Raises:
        BadSignature: a header is missing, no signature fits, or the time is too far away.
    """
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    message_id, timestamp, signatures = (headers.get(name, "") for name in names)
    if missing := [
        name for name, text in zip(names, (message_id, timestamp, signatures), strict=True) if not text
    ]:
        raise BadSignature(f"The header {missing[0]} is missing.")
    signed = _standard_content(message_id, timestamp, body)
    _match([_standard_signature(key, signed) for key in keys], signatures.split(" "))
    _check_time(timestamp, now, tolerance)
    return message_id


def verify_github(secrets: Sequence[str], headers: Mapping[str, str], body: bytes) -> None:
    """Accept what GitHub signed with one of the secrets: the body alone, neither its id nor the time.

    Raises:
        BadSignature: the header is missing, or the signature does not fit.
    """
    signature = headers.get("x-hub-signature-256", "")
    if not signature:
        raise BadSignature("The header x-hub-signature-256 is missing: give the webhook a secret at GitHub.")
    _match([f"sha256={_hex(secret, body)}" for secret in secrets if non_blank(secret)], [signature])


def verify_stripe(
    secrets: Sequence[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    tolerance: float = TOLERANCE_SECONDS,
) -> None:
    """Accept what Stripe signed with one of the secrets, lately.

    Args:
        secrets: the endpoint's signing secrets, `whsec_…`, as Stripe shows them.
        headers: as for `verify_standard`.
        body: the request's body, byte for byte.
        now: the time, in seconds since the epoch.
        tolerance: how far the signed time may lie from it, to either side.

    Raises:
        BadSignature: the header is missing or makes no sense, no signature fits, or the time is too far away.
    """
    header = headers.get("stripe-signature", "")
    if not header:
        raise BadSignature("The header stripe-signature is missing.")
    parts = [part.strip().partition("=") for part in header.split(",")]
    timestamps = [text for name, _, text in parts if name == "t"]
    signatures = [text for name, _, text in parts if name == "v1"]
    if len(timestamps) != 1 or not signatures:
        raise BadSignature("The header stripe-signature must hold t=… once and v1=….")
    signed = timestamps[0].encode(errors="replace") + b"." + body
    _match(
        [_hex(secret, signed) for secret in secrets if non_blank(secret)],
        [text for text in signatures if _HEX_SHA256.fullmatch(text)],
    )
    _check_time(timestamps[0], now, tolerance)


def _standard_content(message_id: str, timestamp: str, body: bytes) -> bytes:
    return f"{message_id}.{timestamp}.".encode(errors="replace") + body


def _standard_signature(key: bytes, signed: bytes) -> str:
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _hex(secret: str, signed: bytes) -> str:
    return hmac.digest(secret.encode(), signed, hashlib.sha256).hex()


def _match(expected: Sequence[str], signatures: Sequence[str]) -> None:
    """Accept when one of the given signatures is one of those expected; every pair is compared."""
    found = [
        hmac.compare_digest(right.encode(), text.encode(errors="replace"))
        for right in expected
        for text in signatures
    ]
    if not any(found):
        raise BadSignature("The signature does not fit the body and the secret.")


def _check_time(timestamp: str, now: float, tolerance: float) -> None:
    """Accept a time near ours. Checked after the signature, so that only a holder of the secret learns our time."""
    if not _WHOLE_SECONDS.fullmatch(timestamp):
        raise BadSignature("The timestamp must be whole seconds since 1970.")
    away = int(timestamp) - now
    if abs(away) > tolerance:
        side = "behind" if away < 0 else "ahead of"
        raise BadSignature(
            f"The signed time is {abs(away):.0f} seconds {side} ours, and at most {tolerance:.0f} are allowed. "
            "Sign each attempt with its own time, and set the clock.",
            is_stale=True,
        )
