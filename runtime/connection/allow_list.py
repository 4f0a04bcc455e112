"""Which addresses may a request of ours go to? Public ones, and those the settings name."""

from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, Self

Address = IPv4Address | IPv6Address

_GLOBAL_UNICAST: Final = ip_network("2000::/3")
# IPv6 addresses that lead to an IPv4 one, and where in them it stands: mapped, NAT64, 6to4.
_CARRIERS: Final = (
    (ip_network("::ffff:0:0/96"), 0),
    (ip_network("64:ff9b::/96"), 0),
    (ip_network("2002::/16"), 80),
)
# What not every Python knows to be special, or looks public: of the protocol's own, of documentation, a former relay,
# and where a cloud keeps what only its machines may know.
_SPECIAL: Final = tuple(
    ip_network(each) for each in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "3fff::/20")
)


@dataclass(frozen=True, slots=True)
class AllowList:
    """What may be reached though it is not public, as the settings name it.

    Attributes:
        hosts: names of hosts; `*` for every address there is.
        networks: addresses and networks.
    """

    hosts: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read hosts, addresses and networks with commas between them.

        Raises:
            ValueError: something in it is none of these.
        """
        hosts: set[str] = set()
        networks: list[IPv4Network | IPv6Network] = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            try:
                networks.append(ip_network(part))
            except ValueError:
                if part != "*" and not all(c.isascii() and (c.isalnum() or c in ".-") for c in part):
                    raise ValueError(f"{part!r} is no host, address or network") from None
                hosts.add(part.lower().rstrip("."))
        return cls(frozenset(hosts), tuple(networks))

    def names(self, host: str) -> bool:
        """Whether a host is named itself, by its name or as an address."""
        if self.hosts & {"*", host.lower().rstrip(".")}:
            return True
        try:
            return self.has(ip_address(host))
        except ValueError:
            return False

    def has(self, address: Address) -> bool:
        """Whether an address lies in one of the networks."""
        return any(address in network for network in self.networks)


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet: nothing private, of this machine, of this link or of many."""
    if any(address in network for network in _SPECIAL):
        return False
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast
    for network, shift in _CARRIERS:
        if address in network:
            return is_public(IPv4Address((int(address) >> shift) & 0xFFFF_FFFF))
    return address in _GLOBAL_UNICAST and address.is_global
