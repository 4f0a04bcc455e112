"""Proxies and certificates of the environment, by one rule for requests and sockets.

httpx and websockets read these variables in ways of their own: one goes through a proxy that the other leaves aside,
and both end in tracebacks over what they cannot read. So both are told.
"""

import os
import re
import ssl
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from runtime.connection.environment import given
from runtime.connection.project import is_on_this_machine
from runtime.errors import SettingsError

CERTIFICATE_CURE: Final = (
    "If your own authority signed its certificate, set SSL_CERT_FILE to the file with the authority's own."
)
_SCHEMES = ("http", "https", "socks5", "socks5h")
_ENCRYPTED = ("https", "wss")


def proxy_for(url: str) -> str | None:
    """Return the URL of the proxy that leads to another URL; None where the way is direct.

    This machine is always reached directly. Else HTTPS_PROXY is for https and wss, HTTP_PROXY for http and ws, and
    ALL_PROXY for whatever has none of its own; names in small letters win. NO_PROXY lists what is reached directly:
    hosts, domains, addresses and networks, with commas between.

    Raises:
        SettingsError: the variable that counts names no proxy that can be used. Its value may hold a password,
            and is not repeated.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if is_on_this_machine(url):
        return None
    names = ("HTTPS_PROXY" if parts.scheme in _ENCRYPTED else "HTTP_PROXY", "ALL_PROXY")
    variable, text = next(((name, text) for name in names if (text := _variable(name))), ("", None))
    if text is None:
        return None
    port = parts.port or (443 if parts.scheme in _ENCRYPTED else 80)
    if _is_left_out(host, port, _variable("NO_PROXY") or ""):
        return None
    return _checked(variable, text)


def tls_context() -> ssl.SSLContext:
    """Return a context that trusts the system's authorities, those of SSL_CERT_FILE and SSL_CERT_DIR, or certifi's.

    Raises:
        SettingsError: SSL_CERT_FILE or SSL_CERT_DIR is not there, or holds no certificate.
    """
    file, folder = given(os.environ.get("SSL_CERT_FILE")), given(os.environ.get("SSL_CERT_DIR"))
    if folder is not None and not any(Path(each).is_dir() for each in folder.split(os.pathsep)):
        raise SettingsError("SSL_CERT_DIR names a folder that is not there.")
    context = ssl.create_default_context()
    if file is not None:
        try:
            context.load_verify_locations(cafile=file)
        except OSError:
            raise SettingsError(
                "SSL_CERT_FILE names a file that is not there, cannot be read, or holds no certificate."
            ) from None
    elif folder is None:
        # A small image has no authorities of its own.
        import certifi

        context.load_verify_locations(cafile=certifi.where())
    return context


def request_options(url: str) -> dict[str, Any]:
    """Return what an `httpx` client is made with, for requests to this URL.

    Raises:
        SettingsError: as for `proxy_for` and `tls_context`.
    """
    import httpx

    proxy = proxy_for(url)
    is_proxy_encrypted = proxy is not None and proxy.startswith("https:")
    context = tls_context() if is_proxy_encrypted or urlsplit(url).scheme in _ENCRYPTED else None
    return {
        # Not httpx's own reading of the environment.
        "trust_env": False,
        "verify": context or False,
        "proxy": proxy and httpx.Proxy(proxy, ssl_context=context if is_proxy_encrypted else None),
    }


def socket_options(url: str) -> dict[str, Any]:
    """Return what `websockets.connect` is called with, for a socket to this URL.

    Raises:
        SettingsError: as for `proxy_for` and `tls_context`.
    """
    proxy = proxy_for(url)
    options: dict[str, Any] = {"proxy": proxy}
    if urlsplit(url).scheme in _ENCRYPTED:
        options["ssl"] = tls_context()
    if proxy is not None and proxy.startswith("https:"):
        options["proxy_ssl"] = tls_context()
    return options


def _variable(name: str) -> str | None:
    return given(os.environ.get(name.lower())) or given(os.environ.get(name))


def _checked(variable: str, text: str) -> str:
    """The proxy's URL, if both libraries can use it."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        is_sound = bool(parts.hostname) and parts.scheme in _SCHEMES and parts.port != 0
    except ValueError:
        is_sound = False
    if not is_sound or re.search(r"\s", url):
        raise SettingsError(
            f"{variable} names no proxy: write {variable}=http://host:port, or list in NO_PROXY what is to be "
            "reached directly."
        )
    if urlsplit(url).scheme.startswith("socks") and not (find_spec("socksio") and find_spec("python_socks")):
        raise SettingsError(
            f"{variable} names a SOCKS proxy, for which a library is missing: pip install socksio "
            '"python-socks[asyncio]"; or name a proxy with http://.'
        )
    return url


def _is_left_out(host: str, port: int, listed: str) -> bool:
    """Whether NO_PROXY lists a host, in any of the forms that programs read there."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        address = None
    for entry in re.split(r"[,\s]+", listed.strip().lower()):
        name = re.sub(r"^[a-z]+://", "", entry)
        if name == "*":
            return True
        match = re.fullmatch(r"\[([^\]]+)\](?::([0-9]+))?", name) or re.fullmatch(
            r"([^:]+)(?::([0-9]+))?", name
        )
        # What has colons and no brackets is an IPv6 address, or a network of them.
        name, wanted = (match[1], match[2]) if match else (name, None)
        if not name or (wanted is not None and int(wanted) != port):
            continue
        if address is not None:
            try:
                if address in ip_network(name, strict=False):
                    return True
            except ValueError:
                pass
            continue
        domain = name.lstrip("*").lstrip(".")
        if domain and (host == domain or host.endswith(f".{domain}")):
            return True
    return False
