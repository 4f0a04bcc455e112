"""The asymmetric keys of one stack: they sign tokens, and anybody may check the signatures.

They lie in a file as `supabase gen signing-key` writes one: a JSON array of private keys (RFC 7517), the first of which
signs. All of them are published, so tokens of the one before stay valid after a rotation.
"""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from runtime.errors import LocalStackError

Jwk = dict[str, Any]

ALGORITHMS: Final = {"ES256": "EC", "RS256": "RSA"}
"""The algorithms of hosted projects, and the type of their keys."""

_PUBLIC: Final = ("kty", "kid", "alg", "crv", "x", "y", "n", "e")
_KEPT: Final = 2


def draw_key(algorithm: str = "ES256") -> Jwk:
    """A new private key, with an id of its own."""
    if algorithm == "RS256":
        key = RSAAlgorithm.to_jwk(rsa.generate_private_key(65_537, 2048), as_dict=True)
    else:
        key = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()), as_dict=True)
    return {**key, "kid": str(uuid.uuid4()), "alg": algorithm, "use": "sig", "key_ops": ["sign", "verify"]}


def public_key(key: Mapping[str, Any]) -> Jwk:
    """Return the public part of a key."""
    return {
        **{name: key[name] for name in _PUBLIC if name in key},
        "use": "sig",
        "key_ops": ["verify"],
        "ext": True,
    }


def read_keys(file: Path) -> list[Jwk]:
    """The keys in the file, the one that signs first; none when there is no file.

    Raises:
        LocalStackError: the file cannot be read, or holds something else.
    """
    try:
        keys = json.loads(file.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise LocalStackError(f"{file} cannot be understood; mend or delete it: {error}") from error
    known = isinstance(keys, list) and all(
        isinstance(key, dict)
        and isinstance(key.get("kid"), str)
        and ALGORITHMS.get(key.get("alg", "")) == key.get("kty")
        for key in keys
    )
    if not known:
        raise LocalStackError(
            f"{file} cannot be understood; mend or delete it: it must be a JSON array of keys (JWK), each with a `kid` "
            f"and an `alg` that is {' or '.join(ALGORITHMS)}."
        )
    return list(keys)


def rotate(file: Path, algorithm: str = "ES256") -> Jwk:
    """Sign with a new key from now on; the one before stays valid, those before that do not.

    Raises:
        LocalStackError: the file holds something else, or the folder cannot be written.
    """
    keys = [draw_key(algorithm), *read_keys(file)][:_KEPT]
    unfinished = file.with_suffix(".unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        with open(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as written:
            json.dump(keys, written, indent=2)
        os.replace(unfinished, file)
    except OSError as error:
        raise LocalStackError(f"{file} cannot be written: {error}") from error
    return keys[0]


def sign(keys: Sequence[Mapping[str, Any]], claims: Mapping[str, Any]) -> str:
    """A token with these claims, signed by the first key."""
    key = keys[0]
    return jwt.encode(
        dict(claims), jwt.PyJWK(dict(key)).key, algorithm=str(key["alg"]), headers={"kid": str(key["kid"])}
    )
