"""The choice of a project's URL and key, together from one source: the environment, the file .env, or the code.

A key that is sent to the host of another source is leaked: neither a project that sets `API_URL` for its own purpose
nor a foreign `.env` in the working directory may get the key of the environment.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from runtime.connection.environment import non_blank
from runtime.errors import SettingsError, misspelt, nearest

URL_NAMES: Final = ("SUPABASE_URL", "API_URL")
KEY_NAMES: Final = ("SUPABASE_SECRET_KEY", "SUPABASE_SERVICE_ROLE_KEY", "SERVICE_ROLE_KEY")
DATABASE_NAME: Final = "DATABASE_URL"
# Names that other programs give to a project's keys, of any role.
_OTHER_KEY_NAMES = (
    "SUPABASE_KEY", "SUPABASE_SERVICE_KEY", "SUPABASE_API_KEY", "SUPABASE_SERVICE_ROLE", "SERVICE_KEY", "SECRET_KEY",
    "SUPABASE_ANON_KEY", "SUPABASE_PUBLISHABLE_KEY", "NEXT_PUBLIC_SUPABASE_ANON_KEY", "ANON_KEY", "PUBLISHABLE_KEY",
)  # fmt: skip
_READ_NAMES = "SUPABASE_SECRET_KEY (or SUPABASE_SERVICE_ROLE_KEY)"

# A misspelt name of a variable still has one of these in it.
_WORDS = ("SUPA", "DATABASE", "SERVICE", "_ROLE", "_URL")

Sources = Mapping[str, Mapping[str, str]]
"""The variables of each source, by name in capitals; the source with precedence comes first."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The variables in use.

    Attributes:
        url, key, database: the variable's name and its source; None if it is not set.
        hint: for the error about a missing variable: a variable that was probably meant for it.
        typo: where no variable names a stream: one whose name is misspelt, for a warning.
    """

    url: tuple[str, str] | None = None
    key: tuple[str, str] | None = None
    database: tuple[str, str] | None = None
    hint: str = ""
    typo: str = ""

    def sentence(self, project: str | None, database: str | None) -> str:
        """Say which stream is used, and which variables name it; an empty text if there is none.

        Args:
            project: the project's URL, or None.
            database: the database's host and port, or None.
        """
        parts: list[str] = []
        if project is not None:
            where = named(self.url)
            if self.url is not None and self.key is not None and self.key[1] == self.url[1]:
                where = f"{self.url[0]} and {named(self.key)}"
            parts.append(f"{project} ({where})")
        if database is not None:
            parts.append(f"the database at {database} ({named(self.database)})")
        return " and ".join(parts)


def named(variable: tuple[str, str] | None) -> str:
    """Return a variable with its source: `SUPABASE_URL of /app/.env`."""
    return "the code" if variable is None else f"{variable[0]} of {variable[1]}"


def choose(sources: Sources, *, has_key: bool = False) -> Origin:
    """Return which variables of these sources are used.

    Args:
        sources: the variables of each source.
        has_key: whether the key is given in code.

    Raises:
        SettingsError: the URL and the key are in two sources that do not belong together.
    """
    database = _first(sources, (DATABASE_NAME,))
    url = _url_in(sources)
    if url is None:
        key = None if has_key else _first(sources, KEY_NAMES)
        typo = "" if database else _misspelt(sources, (*URL_NAMES[:1], DATABASE_NAME), misspelt)
        return Origin(None, key, database, _hint_without_url(sources), typo)
    if has_key:
        return Origin(url, None, database)
    key = _key_for(sources, url)
    return Origin(url, key, database, "" if key else _hint_without_key(sources))


def beside_code(sources: Sources, url: str | None, *, has_key: bool) -> Origin:
    """Return which variables are used beside a URL that is given in code.

    Args:
        sources: the variables of each source.
        url: the URL; None if the code says that there is none.
        has_key: whether the key is given in code, too.
    """
    database = _first(sources, (DATABASE_NAME,))
    if url is None or has_key:
        return Origin(database=database)
    for source, variables in sources.items():
        key, theirs = _first({source: variables}, KEY_NAMES), _url_in({source: variables})
        if key is not None and (theirs is None or _same(variables[theirs[0]], url)):
            return Origin(None, key, database)
    return Origin(database=database, hint=_hint_without_key(sources))


def is_on_this_machine(url: str) -> bool:
    """Whether a URL leads to this machine."""
    try:
        host = urlsplit(url.strip()).hostname or ""
    except ValueError:
        return False
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _url_in(sources: Sources) -> tuple[str, str] | None:
    """Return the variable of the project's URL: SUPABASE_URL of any source comes before API_URL."""
    for name in URL_NAMES:
        for source, variables in sources.items():
            text = non_blank(variables.get(name))
            # Many programs use API_URL for their own service; the one of `supabase status` is on this machine.
            if text is not None and (name == "SUPABASE_URL" or is_on_this_machine(text)):
                return name, source
    return None


def _key_for(sources: Sources, url: tuple[str, str]) -> tuple[str, str] | None:
    name, source = url
    if (own := _first({source: sources[source]}, KEY_NAMES)) is not None:
        return own
    other = _first(sources, KEY_NAMES)
    if other is None:
        return None
    theirs = _url_in({other[1]: sources[other[1]]})
    if theirs is not None and _same(sources[other[1]][theirs[0]], sources[source][name]):
        return other
    raise SettingsError(
        f"{name} is set in {source}, and {other[0]} in {other[1]}: a key goes only to the URL that stands beside it. "
        f"Put both into {source}, or remove {name} there."
    )


def _first(sources: Sources, names: tuple[str, ...]) -> tuple[str, str] | None:
    for source, variables in sources.items():
        for name in names:
            if non_blank(variables.get(name)) is not None:
                return name, source
    return None


def _same(one: str, other: str) -> bool:
    return (non_blank(one) or "").rstrip("/").lower() == (non_blank(other) or "").rstrip("/").lower()


def _hint_without_url(sources: Sources) -> str:
    found = _first(sources, ("API_URL",)) if _first(sources, KEY_NAMES) else None
    if found is None:
        return _misspelt(sources, (*URL_NAMES[:1], DATABASE_NAME))
    return f"API_URL of {found[1]} is not used: it counts only for a stack on this machine. Set SUPABASE_URL."


def _hint_without_key(sources: Sources) -> str:
    found = _first(sources, _OTHER_KEY_NAMES)
    if found is None:
        return _misspelt(sources, KEY_NAMES)
    if "ANON" in found[0] or "PUBLISHABLE" in found[0]:
        return (
            f"{found[0]} of {found[1]} is not used: it is a key of the role anon, which may not run workers. Set "
            f"{_READ_NAMES}."
        )
    return f"{found[0]} of {found[1]} is not used: the runtime reads {_READ_NAMES}. Rename it, if it is such a key."


def _misspelt(
    sources: Sources,
    names: tuple[str, ...],
    near: Callable[[str, Iterable[str]], str | None] = nearest,
) -> str:
    """Return a hint at a variable whose name is nearly one of these."""
    for source, variables in sources.items():
        for name, text in variables.items():
            is_like = any(word in name for word in _WORDS) and name not in names and non_blank(text)
            if is_like and (meant := near(name, names)) is not None:
                return f"{name} of {source} is not used; did you mean {meant}?"
    return ""
