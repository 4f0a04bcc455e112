"""What does a token say of itself? Read without its secret, so nothing in it is proved."""

import base64
import json
from typing import Any


def claims_of(token: str) -> dict[str, Any] | None:
    """Return a JWT's claims, or None where it is no JWT."""
    try:
        _, body, _ = token.split(".")
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (ValueError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def expiry_of(token: str) -> float | None:
    """Return when a JWT expires by its own word, in seconds since the epoch; None where it does not say."""
    expiry = (claims_of(token) or {}).get("exp")
    return float(expiry) if isinstance(expiry, int | float) else None
