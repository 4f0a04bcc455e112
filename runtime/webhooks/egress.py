"""Egress control: requests reach only public addresses and those that are allowed.

A host is resolved once, each of its addresses is checked, and the connection goes to one that was checked: a name that
resolves otherwise a moment later cannot lead elsewhere.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address
from socket import SOCK_STREAM, gaierror
from typing import Final

import anyio
import httpcore

from runtime.connection.allow_list import Address, AllowList, is_public
from runtime.errors import PostFailed

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]

# Of many addresses, the first few are tried.
_TRIES: Final = 4


async def resolve(host: str, port: int) -> Sequence[Address]:
    """Every address of a host, as the system knows them."""
    found = await anyio.getaddrinfo(host, port, type=SOCK_STREAM)
    return list(dict.fromkeys(ip_address(place[0]) for *_, place in found))


class Egress(httpcore.AsyncNetworkBackend):
    """Connections to public addresses, and to those that are allowed.

    Args:
        allowed: the hosts and networks that may be reached beside public addresses.
        resolve: tells the addresses of a host.
    """

    def __init__(self, allowed: AllowList, resolve: Resolve = resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to one of a host's addresses, all of which were checked.

        Raises:
            PostFailed: the host has no address, or one that may not be reached.
        """
        failure: Exception | None = None
        for address in (await self._checked(host, port, timeout))[:_TRIES]:
            try:
                return await self._network.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = failure or error
        raise failure or PostFailed(f"{host} has no address.")

    async def _checked(self, host: str, port: int, timeout: float | None) -> Sequence[Address]:
        try:
            with anyio.fail_after(timeout):
                addresses = await self._resolve(host, port)
        except TimeoutError:
            raise PostFailed(f"the address of {host} could not be found out in {timeout:g} s.") from None
        except (gaierror, UnicodeError) as error:
            raise PostFailed(f"the address of {host} cannot be found out: {error}.") from None
        if self._allowed.names(host):
            return addresses
        for address in addresses:
            if not is_public(address) and not self._allowed.has(address):
                raise PostFailed(
                    f"{host} has the address {address}, which is not public. Where webhooks are to reach it, name it "
                    f"(or its network) in RUNTIME_WEBHOOKS_ALLOW."
                )
        return addresses

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Refused: a target is a host.

        Raises:
            PostFailed: always.
        """
        raise PostFailed("a target is a host, not a socket of this machine.")

    async def sleep(self, seconds: float) -> None:
        """Wait, as the pool does between its own tries."""
        await anyio.sleep(seconds)
