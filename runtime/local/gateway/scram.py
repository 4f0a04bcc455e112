"""SCRAM-SHA-256 (RFC 5802, RFC 7677): proves a password to PostgreSQL without sending it."""

import base64
import hashlib
import hmac
import secrets
import unicodedata


class ScramRefused(ValueError):
    """The server's half of the exchange is wrong: it does not know the password, or is not PostgreSQL."""


class ScramClient:
    """One exchange: `first()`, then `final(server_first)`, then `check(server_final)`."""

    mechanism = "SCRAM-SHA-256"

    def __init__(self, password: str, nonce: str | None = None) -> None:
        self._password = unicodedata.normalize("NFKC", password).encode()
        self._nonce = nonce or base64.b64encode(secrets.token_bytes(18)).decode()
        # PostgreSQL takes the user from the start-up packet and ignores the one given here.
        self._first_bare = f"n=,r={self._nonce}"
        self._server_signature = b""

    def first(self) -> bytes:
        """The client's opening, without channel binding."""
        return f"n,,{self._first_bare}".encode()

    def final(self, server_first: bytes) -> bytes:
        """The proof that answers the server's challenge.

        Raises:
            ScramRefused: the challenge does not continue this exchange.
        """
        try:
            fields = dict(part.split("=", 1) for part in server_first.decode().split(","))
            nonce, salt, rounds = fields["r"], base64.b64decode(fields["s"]), int(fields["i"])
        except (KeyError, ValueError) as error:
            raise ScramRefused(f"The server's challenge cannot be read: {error!r}") from error
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise ScramRefused("The server answered another exchange")
        salted = hashlib.pbkdf2_hmac("sha256", self._password, salt, rounds)
        client_key = _mac(salted, b"Client Key")
        without_proof = f"c=biws,r={nonce}"
        signed = f"{self._first_bare},{server_first.decode()},{without_proof}".encode()
        signature = _mac(hashlib.sha256(client_key).digest(), signed)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._server_signature = _mac(_mac(salted, b"Server Key"), signed)
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def check(self, server_final: bytes) -> None:
        """Make sure the server knows the password too.

        Raises:
            ScramRefused: it does not.
        """
        expected = b"v=" + base64.b64encode(self._server_signature)
        if not hmac.compare_digest(server_final.split(b",")[0], expected):
            raise ScramRefused("The server could not prove that it knows the password")


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")
