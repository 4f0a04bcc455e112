"""Realtime's refusals of a token: one fault reads differently in handshake, join and refresh."""

from typing import Final

from runtime.local.gateway.tokens import (
    ClaimsMissing,
    SignerUnknown,
    TokenError,
    TokenExpired,
    TokenForged,
)

_CLAIMS: Final = "Fields `role` and `exp` are required in JWT"
_MALFORMED: Final = "The token provided is not a valid JWT"
_SIGNATURE: Final = "Failed to validate JWT signature"


class JoinRefused(Exception):
    """A join is refused; the text is the reason that the client gets: `Code: words`."""


class JoinUnserved(JoinRefused):
    """A join asks for a feature that only the real stack has; the client is told without the pause."""

    def __init__(self, what: str) -> None:
        super().__init__(f"NotServed: {unserved(what)}")


def unserved(what: str) -> str:
    """Return the text for a feature that only the real stack has: half of a feature is never served."""
    return f"{what} is not served by this local gateway: use `supabase start` for it"


def handshake_refusal(error: TokenError) -> str:
    """Return the `error` of the answer to the upgrade."""
    match error:
        case TokenExpired():
            return "Token has expired"
        case ClaimsMissing():
            return _CLAIMS
        case TokenForged():
            return _SIGNATURE
        case SignerUnknown():
            return _signer(error)
    return _MALFORMED


def join_refusal(error: TokenError) -> str:
    """Return the `reason` of the join reply."""
    match error:
        case TokenExpired():
            return f"InvalidJWTToken: {_expired(error)}"
        case ClaimsMissing():
            return f"InvalidJWTToken: {_CLAIMS}"
        case TokenForged():
            return f"JwtSignatureError: {_SIGNATURE}"
        case SignerUnknown():
            return f"JwtSignerError: {_signer(error)}"
    return f"MalformedJWT: {_MALFORMED}"


def refresh_refusal(error: TokenError) -> str:
    """Return the `message` of the system frame that precedes the end of the channel."""
    match error:
        case TokenExpired():
            return _expired(error)
        case ClaimsMissing():
            return _CLAIMS
        case TokenForged():
            # Recorded: here the server prints its own symbol instead of a sentence.
            return ":signature_error"
        case SignerUnknown():
            return _signer(error)
    return _MALFORMED


def _signer(error: SignerUnknown) -> str:
    which = "" if error.kid is None else f' for key ID (kid) "{error.kid}"'
    return f"Failed to generate JWT signer{which}, check your JWT secret or JWKS configuration"


def _expired(error: TokenExpired) -> str:
    return f"Token has expired {error.seconds_ago} seconds ago"
