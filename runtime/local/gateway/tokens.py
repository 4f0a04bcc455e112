"""The identity of a request: a JWT signed with the project's secret or its keys, or a key of the newer kind.

The algorithm a token names never chooses what its signature is checked with: HS… means the secret, ES… and RS… the
published key of that id and of that very type, and anything else lets nobody in.
"""

import math
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import jwt

from runtime.errors import LocalStackError
from runtime.local.signing import Jwk, public_key, read_keys

Claims = dict[str, Any]
_FOREVER_SECONDS: Final = 10 * 365 * 86_400
_SYMMETRIC: Final = ("HS256", "HS384", "HS512")
_KEY_TYPES: Final = {"ES": "EC", "RS": "RSA"}
_ASYMMETRIC: Final = ("ES256", "RS256", "RS384", "RS512")


class TokenError(Exception):
    """A token that is not accepted."""


class TokenMalformed(TokenError):
    """It is no JWT at all."""


class TokenExpired(TokenError):
    """It was one, until `seconds_ago`."""

    def __init__(self, seconds_ago: int) -> None:
        super().__init__(f"expired {seconds_ago} seconds ago")
        self.seconds_ago = seconds_ago


class TokenForged(TokenError):
    """The signature is not by the project's secret or keys."""


class SignerUnknown(TokenError):
    """It names a key (`kid`) that the project does not have, or an algorithm that no key is for."""

    def __init__(self, kid: str | None) -> None:
        super().__init__("no key of that id and type")
        self.kid = kid


class ClaimsMissing(TokenError):
    """It does not say its `role`, or not until when."""


class Tokens:
    """Tells the claims of a token or key.

    Args:
        secret: what JWTs of the kind HS256 are signed with.
        keys: `sb_publishable_…` and `sb_secret_…` keys, each with the role it stands for.
        signing_keys: the file of the asymmetric keys, read again when it has changed.
    """

    def __init__(
        self, secret: str, keys: Mapping[str, str] | None = None, signing_keys: Path | None = None
    ) -> None:
        self._secret = secret
        self._keys = dict(keys or {})
        self._file = signing_keys
        self._read_at: object = None
        self._published: list[Jwk] = []
        # Verifying a signature costs more than the query it lets in, and tokens are few.
        self._decode = lru_cache(maxsize=256)(self._decode_anew)

    def verify(self, token: str) -> Claims:
        """Return the claims of a JWT, or those a key stands for.

        Raises:
            TokenError: one of its kinds, by what is wrong.
        """
        if (role := self._keys.get(token)) is not None:
            return {"role": role, "exp": int(time.time()) + _FOREVER_SECONDS}
        self._look()
        claims = dict(self._decode(token))
        if not _is_name(claims.get("role")) or not _is_moment(claims.get("exp")):
            raise ClaimsMissing("role and exp are required")
        if (age := time.time() - claims["exp"]) >= 0:
            raise TokenExpired(int(age))
        return claims

    def published(self) -> list[Jwk]:
        """The public parts of the asymmetric keys, as the project publishes them."""
        self._look()
        return self._published

    def _look(self) -> None:
        """Notice that the keys were rotated; a file that makes no sense leaves them as they were."""
        if self._file is None:
            return
        try:
            state = self._file.stat()
            read_at = (state.st_mtime_ns, state.st_ino, state.st_size)
        except OSError:
            read_at = None
        if read_at != self._read_at:
            self._read_at = read_at
            try:
                self._published = [public_key(key) for key in read_keys(self._file)]
            except LocalStackError:
                return
            self._decode.cache_clear()

    def _decode_anew(self, token: str) -> Claims:
        try:
            algorithm, key = self._signer(jwt.get_unverified_header(token))
            claims: Claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                # `verify` checks the expiry itself, since its error has the age.
                options={
                    "verify_exp": False, "verify_aud": False, "verify_iat": False, "verify_nbf": False,
                    "verify_sub": False, "verify_jti": False, "verify_iss": False,
                },
            )  # fmt: skip
        except jwt.InvalidSignatureError:
            raise TokenForged("the signature is wrong") from None
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise TokenMalformed("it is no JWT") from None
        return claims

    def _signer(self, header: Mapping[str, Any]) -> tuple[str, Any]:
        """Return the algorithm of a token and the key that checks its signature."""
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm in _SYMMETRIC:
            return algorithm, self._secret
        if algorithm not in _ASYMMETRIC or not isinstance(kid, str):
            raise SignerUnknown(None)
        for key in self._published:
            if key["kid"] == kid and key["kty"] == _KEY_TYPES[algorithm[:2]]:
                return algorithm, jwt.PyJWK(key, algorithm=algorithm).key
        raise SignerUnknown(kid)


def _is_name(role: Any) -> bool:
    """Whether a role is a name that a database could have."""
    return isinstance(role, str) and bool(role) and "\0" not in role and role.isprintable()


def _is_moment(seconds: Any) -> bool:
    try:
        return isinstance(seconds, (int, float)) and math.isfinite(seconds)
    except OverflowError:
        return False
