"""Tokens signed by asymmetric keys are let in as in projects: by id, published, until rotated out."""

import hmac
import json
import time
from base64 import urlsafe_b64encode
from typing import Any

import httpx
import jwt
import pytest
import websockets
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from runtime.local.signing import draw_key, public_key, read_keys, rotate, sign

pytestmark = pytest.mark.anyio


def claims(role: str = "service_role") -> dict[str, Any]:
    return {"role": role, "exp": int(time.time()) + 600}


async def read(stack: Any, token: str) -> tuple[int, str | None]:
    """The status of a read with this token, and the code of a refusal."""
    headers = {"apikey": stack.publishable_key, "authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=stack.api_url, headers=headers) as http:
        answer = await http.get("/rest/v1/consciousness_stream")
    return answer.status_code, None if answer.status_code == 200 else answer.json()["code"]


async def join(stack: Any, token: str) -> dict[str, Any]:
    """The reply to the join of a private channel."""
    url = f"{stack.api_url.replace('http', 'ws', 1)}/realtime/v1/websocket?apikey={stack.publishable_key}&vsn=2.0.0"
    async with websockets.connect(url) as socket:
        join = {"config": {"private": True}, "access_token": token}
        await socket.send(json.dumps(["1", "1", "realtime:runtime:x", "phx_join", join]))
        reply: dict[str, Any] = json.loads(await socket.recv())[4]
        return reply


def by_hand(secret: bytes, kid: str) -> str:
    """A token of the kind HS256 with a secret that no honest library takes for one."""
    parts = ({"alg": "HS256", "kid": kid, "typ": "JWT"}, claims())
    signed = b".".join(urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    signature = urlsafe_b64encode(hmac.digest(secret, signed, "sha256")).rstrip(b"=")
    return (signed + b"." + signature).decode()


async def published(stack: Any) -> list[dict[str, Any]]:
    """What the stack publishes, without any key."""
    async with httpx.AsyncClient(base_url=stack.api_url) as http:
        answer = await http.get("/auth/v1/.well-known/jwks.json")
    assert answer.status_code == 200
    return list(answer.json()["keys"])


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
async def test_n7_a_published_key_lets_its_tokens_in_until_it_is_rotated_out(
    stack: Any, algorithm: str
) -> None:
    file = stack.gateway.signing_keys
    assert await published(stack) == []
    rotate(file, algorithm)
    assert file.stat().st_mode & 0o077 == 0
    (key,) = await published(stack)
    assert (key["alg"], key["use"]) == (algorithm, "sig")
    assert not {"d", "p", "q", "dp", "dq", "qi", "k"} & set(key)
    first = sign(read_keys(file), claims())
    # As any program checks a token of a project.
    found = jwt.PyJWKClient(f"{stack.api_url}/auth/v1/.well-known/jwks.json").get_signing_key_from_jwt(first)
    assert jwt.decode(first, found.key, algorithms=[algorithm])["role"] == "service_role"
    assert await read(stack, first) == (200, None)
    assert (await join(stack, first))["status"] == "ok"
    rotate(file)
    second = sign(read_keys(file), claims())
    assert [await read(stack, token) for token in (first, second)] == [(200, None)] * 2
    rotate(file)
    assert await read(stack, first) == (401, "PGRST301")
    assert await read(stack, second) == (200, None)
    assert "Failed to generate JWT signer for key ID" in (await join(stack, first))["response"]["reason"]


async def test_n7_hs256_and_the_newer_keys_are_accepted_beside_them(stack: Any) -> None:
    rotate(stack.gateway.signing_keys)
    symmetric = jwt.encode(claims(), stack.jwt_secret, "HS256")
    named = jwt.encode(claims(), stack.jwt_secret, "HS256", headers={"kid": "of-auth"})
    for token in (symmetric, named, stack.service_role_key, stack.secret_key):
        assert await read(stack, token) == (200, None)


async def test_n7_a_token_does_not_choose_what_it_is_checked_with(stack: Any) -> None:
    file = stack.gateway.signing_keys
    rotate(file)
    rotate(file, "RS256")
    rsa, ec = read_keys(file)
    stranger = draw_key()
    pem = jwt.PyJWK(public_key(ec)).key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    forged = [
        # The public key as the secret of a symmetric signature, in the forms it may be had in.
        *(
            by_hand(secret, ec["kid"])
            for secret in (json.dumps(public_key(ec)).encode(), pem, pem.strip(), ec["x"].encode())
        ),
        jwt.encode(claims(), None, algorithm="none"),
        jwt.encode(claims(), None, algorithm="none", headers={"kid": ec["kid"]}),
        # Another's key under an id that is known, an id that is not, none at all, and the id of the other type.
        sign([{**stranger, "kid": ec["kid"]}], claims()),
        sign([stranger], claims()),
        jwt.encode(claims(), jwt.PyJWK(ec).key, "ES256"),
        sign([{**ec, "kid": rsa["kid"]}], claims()),
        sign([{**rsa, "kid": ec["kid"]}], claims()),
        # Its own key brought along.
        jwt.encode(
            claims(),
            jwt.PyJWK(stranger).key,
            "ES256",
            headers={"kid": ec["kid"], "jwk": public_key(stranger)},
        ),
    ]
    for token in forged:
        assert await read(stack, token) == (401, "PGRST301")
    for token in forged[-3:]:
        assert (await join(stack, token))["status"] == "error"
    for key in (rsa, ec):
        assert await read(stack, sign([key], claims())) == (200, None)


ODD_CLAIMS = [
    {"role": ["service_role"]}, {"role": None}, {"role": {"a": 1}}, {"role": "a\0b"}, {"role": "\ud800"},
    {"role": "service_role", "exp": None}, {"role": "service_role", "exp": "soon"},
    {"role": "service_role", "exp": 10**400}, {"role": "service_role", "exp": float("nan")},
    {"role": "service_role", "exp": float("inf")},
]  # fmt: skip


async def test_n7_odd_claims_are_refused_and_end_nothing(stack: Any) -> None:
    for odd in ODD_CLAIMS:
        token = jwt.encode({**claims(), **odd}, stack.jwt_secret, "HS256")
        assert await read(stack, token) == (401, "PGRST301"), odd
    deep = jwt.api_jws.encode(b'{"a":' * 100_000, stack.jwt_secret, "HS256")
    assert await read(stack, deep[:60_000]) == (401, "PGRST301")
    assert await read(stack, stack.secret_key) == (200, None)


async def test_n7_a_file_of_keys_that_makes_no_sense_leaves_those_that_were_known(stack: Any) -> None:
    file = stack.gateway.signing_keys
    rotate(file)
    token = sign(read_keys(file), claims())
    assert await read(stack, token) == (200, None)
    file.write_text("[{]")
    assert await read(stack, token) == (200, None)
