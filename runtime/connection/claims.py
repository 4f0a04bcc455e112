"""The claims of a JWT, read without its secret and so not verified."""

import base64
import json
from typing import Any


def claims_of(token: str) -> dict[str, Any] | None:
    """Return a JWT's claims, or None if the token is no JWT."""
    try:
        _, body, _ = token.split(".")
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (ValueError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def expiry_of(token: str) -> float | None:
    """Return the time at which a JWT expires, in seconds since the epoch; None if it has none."""
    expiry = (claims_of(token) or {}).get("exp")
    return float(expiry) if isinstance(expiry, int | float) else None
