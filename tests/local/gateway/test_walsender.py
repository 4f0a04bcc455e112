"""The replication client logs in as PostgreSQL asks, and proves passwords by the book."""

import pytest

from runtime.local.gateway.scram import ScramClient, ScramRefused
from runtime.local.gateway.walsender import Address, Walsender, WalsenderError


def test_the_exchange_of_rfc_7677() -> None:
    client = ScramClient("pencil", nonce="rOprNGfwEbeRWgbNEkqO")
    # PostgreSQL takes no user name here, so the RFC's "n=user" cannot be repeated to the letter; the rest can.
    assert client.first() == b"n,,n=,r=rOprNGfwEbeRWgbNEkqO"
    client._first_bare = "n=user,r=rOprNGfwEbeRWgbNEkqO"
    challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    assert client.final(challenge) == (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    client.check(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    with pytest.raises(ScramRefused):
        client.check(b"v=AAAA")


@pytest.mark.parametrize(
    "challenge", [b"", b"r=other,s=AAAA,i=1", b"r=mine,s=AAAA,i=1", b"r=mine2,s=AAAA,i=x"]
)
def test_a_wrong_challenge_is_refused(challenge: bytes) -> None:
    with pytest.raises(ScramRefused):
        ScramClient("secret", nonce="mine").final(challenge)


def test_urls() -> None:
    address = Address.parse("postgresql://us%40er:p%3Aw@db.example:6543/app?sslmode=require")
    assert (address.host, address.port, address.user, address.password) == (
        "db.example",
        6543,
        "us@er",
        "p:w",
    )
    assert address.database == "app"
    assert address.tls is not None
    assert "p:w" not in repr(address)
    local = Address.parse("postgresql:///app?host=/run/pg&port=5433&user=me")
    assert (local.host, local.port, local.user, local.tls) == ("/run/pg", 5433, "me", None)


@pytest.mark.anyio
async def test_a_wrong_database_and_a_deaf_port_are_refused_with_a_reason(database: str) -> None:
    base = database.rpartition("/")[0]
    with pytest.raises(WalsenderError, match="does not exist") as refused:
        await Walsender.connect(Address.parse(f"{base}/no_such_database"))
    assert refused.value.code == "3D000"
    with pytest.raises(WalsenderError, match="No walsender at"):
        await Walsender.connect(Address.parse("postgresql://postgres@127.0.0.1:1/postgres"))
