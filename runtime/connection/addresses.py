"""The addresses of databases and projects, parsed and checked.

An address may hold a password, so no error here repeats it.
"""

import os
import re
import ssl
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote, unquote, urlsplit

from runtime.connection.environment import unquoted
from runtime.connection.parameters import translate
from runtime.errors import SettingsError

_POOLER_PORT: Final = "6543"
_SCHEME = re.compile(
    r"(?:jdbc:)?(?:postgresql|postgres|pgsql|psql|postgis|pg)(?:\+[a-z0-9_]+)?://", re.ASCII | re.IGNORECASE
)
_HOST = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_DASHBOARD = re.compile(
    r"https?://(?:app\.|www\.)?supabase\.(?:com|io)(?:/.*?/project/(?P<ref>[a-z0-9]+))?", re.IGNORECASE
)
_PASSWORD_CURE = (
    "Write special characters in the password percent-encoded: "
    "python3 -c 'import urllib.parse as u; print(u.quote(input(), \"\"))'."
)
_REF = re.compile(r"[a-z]{20}")
_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# Files that the driver opens only when it connects, and their variables.
_FILES = {"sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY", "sslcrl": "PGSSLCRL"}
_ATTRIBUTES = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """Where a PostgreSQL server listens.

    Attributes:
        url: for the driver, with the password; rewritten in the form that the driver understands.
        place: host and port, for people.
        names_pooler: the URL itself tells that a transaction pooler listens there.
        ref: the Supabase project of this database, if the URL names it.
    """

    url: str = field(repr=False)
    place: str
    names_pooler: bool
    ref: str | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a `postgresql://` URL as any client writes one: libpq, JDBC, Prisma, SQLAlchemy.

        Raises:
            SettingsError: it is no such URL, or has options that cannot work; found before any connection.
        """
        rest, query = _split(_without_scheme(url))
        authority, _, path = rest.partition("/")
        login, _, hosts = authority.rpartition("@")
        user, colon, password = login.partition(":")
        if password.startswith("[") and password.endswith("]"):
            raise SettingsError(
                f"DATABASE_URL has its password in the placeholder's brackets: remove them. {_PASSWORD_CURE}"
            )
        parameters, says_pooler = translate(query)
        places = _places(hosts, parameters)
        _check_tls(parameters, is_local=all(_is_local(host) for host, _ in places))
        _check_user(user, parameters)
        if all(host.startswith("/") for host, _ in places):
            # As parameters: URL parsers turn the letters of a host into small ones, also those of a path.
            parameters["host"] = ",".join(host for host, _ in places)
            parameters["port"] = ",".join(port for _, port in places)
            servers = ""
        else:
            servers = ",".join(
                f"{host if host[0] == '[' else quote(host, safe='')}:{port}" for host, port in places if host
            )
        who = quote(unquote(user), safe="") + (f":{quote(unquote(password), safe='')}" if colon else "")
        more = "&".join(f"{name}={quote(text, safe='/,')}" for name, text in parameters.items())
        database = quote(unquote(path.rstrip("/")), safe="")
        return cls(
            url=f"postgresql://{who}{'@' if login else ''}{servers}{database and f'/{database}'}{more and f'?{more}'}",
            place=",".join(f"{host or 'localhost'}:{port}" for host, port in places),
            names_pooler=says_pooler or any(port == _POOLER_PORT for _, port in places),
            ref=_ref_of(unquote(user) or parameters.get("user", ""), places),
        )


def _without_scheme(url: str) -> str:
    """Return the rest of a URL, which may have been copied with quotes or a command around it."""
    # The pages of Neon and others show a whole command.
    url = unquoted(unquoted(url).removeprefix("psql "))
    if url.lower().startswith(("prisma://", "prisma+postgres://")):
        raise SettingsError(
            "DATABASE_URL is the address of Prisma's own proxy, which does not speak PostgreSQL: use the database's "
            "own, which begins with postgresql://."
        )
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise SettingsError(
            "DATABASE_URL must begin with postgresql://, as in postgresql://user:password@host:5432/postgres."
        )
    if "[YOUR-PASSWORD]" in url or "<password>" in url.lower():
        raise SettingsError(
            "DATABASE_URL still holds the placeholder [YOUR-PASSWORD]: put the database's password there. "
            + _PASSWORD_CURE
        )
    if any(character.isspace() or not character.isprintable() for character in url):
        raise SettingsError(f"DATABASE_URL holds a blank or a line break. {_PASSWORD_CURE}")
    return url[scheme.end() :]


def _split(rest: str) -> tuple[str, str]:
    """Return the part before the query, and the query; refuse a password with characters of the URL's syntax."""
    rest, _, fragment = rest.partition("#")
    before, _, query = rest.partition("?")
    path = before.partition("/")[2]
    if "@" in path + query + fragment:
        raise SettingsError(f"DATABASE_URL has a / or # or ? before the end of its host. {_PASSWORD_CURE}")
    return before, query


def _places(hosts: str, parameters: dict[str, str]) -> list[tuple[str, str]]:
    """Return each host with its port; an empty host is the driver's default."""
    ports = [port for port in parameters.pop("port", "").split(",") if port]
    if not hosts:
        # URLs of Google and Heroku name the folder of a Unix socket in a parameter.
        hosts = ",".join(_bracketed(host) for host in parameters.pop("host", "").split(","))
    parameters.pop("host", None)
    found: list[tuple[str, str]] = []
    for number, spec in enumerate(hosts.split(",")):
        default = ports[0] if len(ports) == 1 else ports[number] if number < len(ports) else "5432"
        if not spec and hosts == "":
            return [("", default)]
        match = _HOST.fullmatch(spec)
        if match is None or not 0 < int(match["port"] or default if default.isdecimal() else 0) < 65_536:
            raise SettingsError(
                f"DATABASE_URL has a host or a port that cannot be read. {_PASSWORD_CURE} An IPv6 address stands in "
                "brackets: postgresql://user@[::1]:5432/postgres."
            )
        found.append((unquote(match["host"]), match["port"] or default))
    return found


def _bracketed(host: str) -> str:
    if host.startswith("/"):
        return quote(host, safe="")
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


def _is_local(host: str) -> bool:
    return not host or host.startswith(("/", "127.")) or host in ("localhost", "[::1]")


def _check_tls(parameters: dict[str, str], *, is_local: bool) -> None:
    """Check and complete the parameters of encryption: what would fail in the driver later is refused here."""
    if is_local and "service" not in parameters:
        # Set, so that PGSSLMODE, which is meant for remote servers, does not apply to this machine.
        parameters.setdefault("sslmode", "prefer")
    if not os.environ.get("PGPORT", "1").isdecimal():
        # The driver reads it even if the address has a port.
        raise SettingsError("PGPORT must be a port's number.")
    mode = _choice(parameters, "sslmode", "PGSSLMODE", _MODES, "prefer")
    _choice(parameters, "target_session_attrs", "PGTARGETSESSIONATTRS", _ATTRIBUTES, "any")
    if parameters.get("sslrootcert") == "system":
        parameters["sslrootcert"] = _system_certificates()
    for name, variable in _FILES.items():
        if name in parameters:
            parameters[name] = str(Path(parameters[name]).expanduser())
        file, source = _setting(parameters, name, variable)
        is_read = mode != "disable" if name in ("sslcert", "sslkey") else mode in _MODES[3:]
        if file and is_read and not _is_readable(file, is_authority=name == "sslrootcert"):
            raise SettingsError(
                f"{source} names a file that does not exist, cannot be read, or holds no certificate."
            )
    has_root = "sslrootcert" in parameters or os.environ.get("PGSSLROOTCERT")
    has_default_root = Path("~/.postgresql/root.crt").expanduser().is_file()
    if mode.startswith("verify") and not has_root and not has_default_root:
        raise SettingsError(
            f"sslmode={mode} needs the certificate that signed the server's: add sslrootcert=/path/to/it.crt to "
            "DATABASE_URL (Supabase: Database settings, SSL configuration), or sslrootcert=system if a public "
            "authority signed it."
        )


def _setting(parameters: dict[str, str], name: str, variable: str) -> tuple[str | None, str]:
    """Return a parameter, or its variable of the environment, with the source for errors."""
    if (text := parameters.get(name)) is not None:
        return text, f"{name} in DATABASE_URL"
    return os.environ.get(variable), variable


def _choice(
    parameters: dict[str, str], name: str, variable: str, known: tuple[str, ...], default: str
) -> str:
    text, source = _setting(parameters, name, variable)
    text = default if source == variable and not text else text
    if text not in known:
        raise SettingsError(f"{source} must be one of {', '.join(known)}.")
    return text


def _is_readable(file: str, *, is_authority: bool) -> bool:
    try:
        if is_authority:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
        return os.access(file, os.R_OK) and Path(file).is_file()
    except OSError:
        return False


def _system_certificates() -> str:
    """Return the file with the certificates of public authorities."""
    file = ssl.get_default_verify_paths().cafile
    if file is not None:
        return file
    import certifi

    return certifi.where()


def _check_user(user: str, parameters: dict[str, str]) -> None:
    if user or parameters.get("user") or os.environ.get("PGUSER"):
        return
    try:
        getuser()
    except (KeyError, OSError):
        raise SettingsError("DATABASE_URL names no user: write postgresql://user:password@host.") from None


def _ref_of(user: str, places: list[tuple[str, str]]) -> str | None:
    """Return the project that a direct host or a pooler's user names."""
    for host, _ in places:
        labels = host.lower().split(".")
        if labels[0] == "db" and labels[2:3] == ["supabase"]:
            return labels[1]
        if labels[-3:-1] == ["pooler", "supabase"] and "." in user:
            return user.rpartition(".")[2].lower()
    return None


def project_url(url: str) -> str:
    """Return the URL of a Supabase project as a client needs it, without a slash at the end.

    Raises:
        SettingsError: it is no project's URL.
    """
    url = unquoted(url).rstrip("/")
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        has_host = False
    if not has_host or parts.scheme not in ("http", "https"):
        raise SettingsError(
            "SUPABASE_URL must look like https://<ref>.supabase.co or http://127.0.0.1:54321."
        )
    if dashboard := _DASHBOARD.match(url):
        ref = dashboard["ref"] or "<ref>"
        raise SettingsError(f"SUPABASE_URL is the dashboard's address: use https://{ref}.supabase.co.")
    if parts.query or parts.fragment or parts.username is not None:
        raise SettingsError(
            "SUPABASE_URL must be a plain URL, such as https://<ref>.supabase.co, without user, ? or #."
        )
    url = parts._replace(netloc=parts.netloc.lower()).geturl()
    for suffix in ("/rest/v1", "/realtime/v1", "/auth/v1"):
        url = url.removesuffix(suffix)
    return url


def are_two_projects(one: str | None, other: str | None) -> bool:
    """Whether two names are certainly of two projects: a project may have a custom name beside its ref."""
    if one is None or other is None or one == other:
        return False
    return not (_REF.fullmatch(one) is None and _REF.fullmatch(other))


def project_ref(url: str) -> str | None:
    """Return the project that a URL on Supabase's own hosts names; None for a custom domain."""
    labels = (urlsplit(url).hostname or "").split(".")
    return labels[0] if len(labels) == 3 and labels[1] == "supabase" else None


def check_key(key: str) -> str:
    """Return a project's key without the white space around it.

    Raises:
        SettingsError: it does not have the form of a key.
    """
    key = unquoted(key)
    if not key or not key.isascii() or any(character.isspace() for character in key):
        raise SettingsError(
            "The Supabase key is empty or holds characters no key has: copy SUPABASE_SECRET_KEY (or "
            "SUPABASE_SERVICE_ROLE_KEY) again, whole and on one line."
        )
    return key
