"""Whose request is it? JWTs signed with the project's secret, and the keys of the newer kind, which are none."""

import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jwt

Claims = dict[str, Any]
_FOREVER_SECONDS = 10 * 365 * 86_400


class TokenError(Exception):
    """A token that lets nobody in."""


class TokenMalformed(TokenError):
    """It is no JWT at all."""


class TokenExpired(TokenError):
    """It was one, until `seconds_ago`."""

    def __init__(self, seconds_ago: int) -> None:
        super().__init__(f"expired {seconds_ago} seconds ago")
        self.seconds_ago = seconds_ago


class BadSignature(TokenError):
    """Somebody else signed it."""


class ClaimsMissing(TokenError):
    """It does not say its `role`, or not until when."""


class Tokens:
    """Tells the claims of a token or key.

    Args:
        secret: what JWTs are signed with.
        keys: `sb_publishable_…` and `sb_secret_…` keys, each with the role it stands for.
    """

    def __init__(self, secret: str, keys: Mapping[str, str] | None = None) -> None:
        self._secret = secret
        self._keys = dict(keys or {})
        # Verifying a signature costs more than the query it lets in, and tokens are few.
        self._decode = lru_cache(maxsize=256)(self._decode_anew)

    def verify(self, token: str) -> Claims:
        """Return the claims of a JWT, or those a key stands for.

        Raises:
            TokenError: one of its kinds, by what is wrong.
        """
        if (role := self._keys.get(token)) is not None:
            return {"role": role, "exp": int(time.time()) + _FOREVER_SECONDS}
        claims = dict(self._decode(token))
        if not claims.get("role") or not isinstance(claims.get("exp"), (int, float)):
            raise ClaimsMissing("role and exp are required")
        if (age := time.time() - claims["exp"]) >= 0:
            raise TokenExpired(int(age))
        return claims

    def _decode_anew(self, token: str) -> Claims:
        try:
            claims: Claims = jwt.decode(
                token,
                self._secret,
                algorithms=["HS256"],
                # Expiry is told apart in `verify`, with its age.
                options={"verify_exp": False, "verify_aud": False, "verify_iat": False, "verify_nbf": False},
            )
        except jwt.InvalidSignatureError:
            raise BadSignature("the signature is wrong") from None
        except jwt.InvalidTokenError:
            raise TokenMalformed("it is no JWT") from None
        return claims
