"""Which addresses count as public, and what do the settings add?"""

from ipaddress import ip_address

import pytest

from runtime.connection.allow_list import AllowList, is_public

PRIVATE = [
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "127.0.0.1", "127.8.9.10", "0.0.0.0",
    # this link, and where clouds keep their machines' credentials
    "169.254.169.254", "169.254.0.1", "168.63.129.16", "100.100.100.200", "192.0.0.192", "192.88.99.1", "3fff::1",
    # shared by a carrier's customers; benchmarks, documentation, reserved, broadcast, multicast
    "100.64.0.1", "100.127.255.254", "198.18.0.1", "192.0.2.1", "198.51.100.7", "203.0.113.9", "240.0.0.1",
    "255.255.255.255", "224.0.0.1", "239.255.255.250",
    "::", "::1", "fe80::1", "fe80::1%2", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "100::1",
    # an IPv4 address in IPv6's clothes: mapped, compatible, NAT64 and the local kind of it, 6to4, Teredo
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8", "1.1.1.1", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1", "2606:4700::1111",
    "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_of_the_open_internet_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_of_the_open_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


def test_hosts_addresses_and_networks_are_allowed_by_name() -> None:
    allowed = AllowList.parse(" Intranet.example. , 10.1.0.0/16,127.0.0.1,fd00::/8, ")
    assert allowed.names("intranet.EXAMPLE")
    assert allowed.names("127.0.0.1")
    assert allowed.names("10.1.2.3")
    assert not allowed.names("example")
    assert not allowed.names("10.2.0.1")
    assert allowed.has(ip_address("10.1.255.255"))
    assert allowed.has(ip_address("fd12::1"))
    assert not allowed.has(ip_address("127.0.0.2"))


def test_a_star_allows_everything_and_nothing_allows_nothing() -> None:
    assert AllowList.parse("*").names("anything.at.all")
    assert not AllowList.parse("").names("localhost")


@pytest.mark.parametrize("text", ["10.0.0.0/33", "https://intranet", "a b", "10.0.0.1/8"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no host, address or network"):
        AllowList.parse(text)
