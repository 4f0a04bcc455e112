"""A client's preferences for the answer: the headers `Prefer`, `Accept` and `Range` of a REST request.

Source: https://docs.postgrest.org/en/stable/references/api/preferences.html
"""

from dataclasses import dataclass
from typing import Final, Self

from starlette.datastructures import Headers

from runtime.local.gateway.postgrest_errors import Unserved

_ONE_ROW: Final = "application/vnd.pgrst.object+json"
_JSON: Final = frozenset({"", "*/*", "application/json", _ONE_ROW})
_SERVED: Final = {
    "return": ("minimal", "representation"),
    "count": ("exact",),
    "resolution": ("merge-duplicates", "ignore-duplicates"),
    "missing": ("default",),
}
_UNSERVED: Final = frozenset({"handling=strict", "timezone"})


@dataclass(frozen=True, slots=True)
class Preferences:
    """The preferences of a request; unknown ones are ignored, as PostgREST does.

    Attributes:
        applied: the preferences that are honoured, as the answer repeats them.
        wants_one: the answer shall be one object; any other number of rows is an error.
    """

    applied: tuple[str, ...]
    wants_one: bool

    @classmethod
    def read(cls, headers: Headers) -> Self:
        """Read the headers of a request.

        Raises:
            Unserved: it prefers what only the real stack can do.
        """
        if "range" in headers:
            raise Unserved("the header Range")
        kinds = [kind.partition(";")[0].strip() for kind in headers.get("accept", "").split(",")]
        if not _JSON.intersection(kinds):
            raise Unserved(f"the media type {kinds[0]}")
        wishes = [wish.strip() for line in headers.getlist("prefer") for wish in line.split(",")]
        applied = []
        for wish in wishes:
            name, _, value = wish.partition("=")
            if wish in _UNSERVED or name in _UNSERVED or value not in _SERVED.get(name, (value,)):
                raise Unserved(f"the preference {wish}")
            if name in _SERVED:
                applied.append(wish)
        return cls(tuple(applied), _ONE_ROW in kinds)

    @property
    def wants_rows(self) -> bool:
        """Whether a write shall return its rows."""
        return "return=representation" in self.applied

    @property
    def wants_count(self) -> bool:
        """Whether all rows shall be counted, not only those of the page."""
        return "count=exact" in self.applied

    @property
    def resolution(self) -> str | None:
        """How conflicts with existing rows are resolved."""
        return next((each.partition("=")[2] for each in self.applied if each.startswith("resolution")), None)

    @property
    def fills_defaults(self) -> bool:
        """Whether a column that a row leaves out gets its default instead of NULL."""
        return "missing=default" in self.applied
