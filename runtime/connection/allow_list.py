"""The addresses that webhooks out may reach: public ones, and those the settings name."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Self

Address = IPv4Address | IPv6Address

_GLOBAL_UNICAST: Final = ip_network("2000::/3")
# IPv6 networks that carry an IPv4 address, and the bit at which it ends: mapped, NAT64, 6to4.
_CARRIERS: Final = (
    (ip_network("::ffff:0:0/96"), 0),
    (ip_network("64:ff9b::/96"), 0),
    (ip_network("2002::/16"), 80),
)
# Special networks that look public, or that not every Python knows: IETF protocol assignments, the former 6to4 relay,
# Azure's platform services, and documentation.
_SPECIAL: Final = tuple(
    ip_network(each) for each in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "3fff::/20")
)


@dataclass(frozen=True, slots=True)
class AllowList:
    """The private addresses that may be reached, as the settings name them.

    Attributes:
        hosts: names of hosts; `*` for every address.
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
        """Whether a host itself is on the list, by its name or as an address."""
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
    """Whether an address is on the open internet: not private, loopback, link-local or multicast."""
    if any(address in network for network in _SPECIAL):
        return False
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast
    for network, shift in _CARRIERS:
        if address in network:
            return is_public(IPv4Address((int(address) >> shift) & 0xFFFF_FFFF))
    return address in _GLOBAL_UNICAST and address.is_global
