"""Proxies and certificates of the environment, by one rule for requests and sockets.

httpx and websockets each read these variables in their own way: one uses a proxy that the other ignores, and both raise
foreign errors at wrong values. So both get their options from here.
"""

import os
import re
import ssl
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from runtime.connection.environment import non_blank
from runtime.connection.project import is_on_this_machine
from runtime.errors import SettingsError

CERTIFICATE_CURE: Final = (
    "If your own authority signed its certificate, set SSL_CERT_FILE to the file with the authority's own."
)
_SCHEMES = ("http", "https", "socks5", "socks5h")
_ENCRYPTED = ("https", "wss")


def proxy_for(url: str) -> str | None:
    """Return the URL of the proxy for a URL; None for a direct connection.

    This machine is always reached directly. Otherwise HTTPS_PROXY is for https and wss, HTTP_PROXY for http and ws, and
    ALL_PROXY for both; names in small letters take precedence. NO_PROXY lists what is reached directly: hosts, domains,
    addresses and networks, with commas between.

    Raises:
        SettingsError: the variable names no usable proxy. Its value may hold a password and is not repeated.
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
    if _is_excluded(host, port, _variable("NO_PROXY") or ""):
        return None
    return _checked(variable, text)


def tls_context() -> ssl.SSLContext:
    """Return a context that trusts the system's authorities, those of SSL_CERT_FILE and SSL_CERT_DIR, or certifi's.

    Raises:
        SettingsError: SSL_CERT_FILE or SSL_CERT_DIR does not exist, or holds no certificate.
    """
    file, folder = non_blank(os.environ.get("SSL_CERT_FILE")), non_blank(os.environ.get("SSL_CERT_DIR"))
    if folder is not None and not any(Path(each).is_dir() for each in folder.split(os.pathsep)):
        raise SettingsError("SSL_CERT_DIR names a folder that does not exist.")
    context = ssl.create_default_context()
    if file is not None:
        try:
            context.load_verify_locations(cafile=file)
        except OSError:
            raise SettingsError(
                "SSL_CERT_FILE names a file that does not exist, cannot be read, or holds no certificate."
            ) from None
    elif folder is None:
        # A small container image has no authorities.
        import certifi

        context.load_verify_locations(cafile=certifi.where())
    return context


def request_options(url: str) -> dict[str, Any]:
    """Return the arguments of an `httpx` client for requests to this URL.

    Raises:
        SettingsError: as for `proxy_for` and `tls_context`.
    """
    import httpx

    proxy = proxy_for(url)
    is_proxy_encrypted = proxy is not None and proxy.startswith("https:")
    context = tls_context() if is_proxy_encrypted or urlsplit(url).scheme in _ENCRYPTED else None
    return {
        "trust_env": False,
        "verify": context or False,
        "proxy": proxy and httpx.Proxy(proxy, ssl_context=context if is_proxy_encrypted else None),
    }


def socket_options(url: str) -> dict[str, Any]:
    """Return the arguments of `websockets.connect` for a socket to this URL.

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
    return non_blank(os.environ.get(name.lower())) or non_blank(os.environ.get(name))


def _checked(variable: str, text: str) -> str:
    """Return the proxy's URL, if both libraries can use it."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        is_sound = bool(parts.hostname) and parts.scheme in _SCHEMES and parts.port != 0
    except ValueError:
        is_sound = False
    if not is_sound or re.search(r"\s", url):
        raise SettingsError(
            f"{variable} names no proxy: write {variable}=http://host:port, or list in NO_PROXY the hosts to reach "
            "directly."
        )
    if urlsplit(url).scheme.startswith("socks") and not (find_spec("socksio") and find_spec("python_socks")):
        raise SettingsError(
            f"{variable} names a SOCKS proxy, which needs libraries: pip install socksio "
            '"python-socks[asyncio]"; or name a proxy with http://.'
        )
    return url


def _is_excluded(host: str, port: int, listed: str) -> bool:
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
        # An entry with colons and no brackets is an IPv6 address or network.
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
