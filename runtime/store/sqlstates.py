"""The meaning of every fault of a store: SQLSTATEs, HTTP statuses and foreign answers.

A fault's nature decides whether the same request may be made again, whether its content can be at fault, and, if one
report fails alone while an empty exchange passes, whether that report fails or waits. Errors of opening a connection,
before any request, are classified in `runtime.connection.database`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

from runtime.errors import (
    Blocked,
    Duplicate,
    MigrationMissing,
    Nature,
    NobodyListens,
    Refused,
    StoreError,
    StoreUnavailable,
    Unauthorized,
)

ROLLED_BACK = frozenset({"40001", "40P01"})
"""Lost races: the transaction was rolled back, and the same one may succeed at once."""

UNFIT = ("25006", "25P02", "25P03", "25P04", "57P", "08")
"""After these a connection cannot be used again: its server is read-only, shutting down, or has closed it."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """A pump's reaction to a fault.

    Attributes:
        tries: how often an exchange is made unchanged before an empty one is made instead, to see whether its content
            is at fault.
        blames: how often a report fails alone before it becomes a failed attempt; until then, or for ever, it waits.
        shrinks_by: the size of the next exchanges is divided by this.
        longest_pause: the longest pause before the next try, in seconds; well below a lease, so that finished work is
            reported before another worker repeats it.
    """

    tries: float
    blames: float
    shrinks_by: int = 2
    longest_pause: float = 5.0


REMEDIES: Mapping[Nature, Remedy] = MappingProxyType({
    # No request is at fault, so no report may fail for it.
    "away": Remedy(tries=inf, blames=inf),
    # A long lock. It may be on a row that only one report needs: that report waits, and no other.
    "locked": Remedy(tries=1, blames=inf, shrinks_by=500),
    # No answer in time: a slow network, or too large an exchange. Each try costs the time of a request.
    "slow": Remedy(tries=1, blames=2, shrinks_by=8),
    # A foreign answer: cut off, an error page, another service. This happens now and then.
    "garbled": Remedy(tries=2, blames=4),
    # More than the database can build in one piece.
    "large": Remedy(tries=1, blames=2, shrinks_by=8),
    # A proxy or firewall refuses the body, by its size or its text.
    "blocked": Remedy(tries=1, blames=2),
    "refused": Remedy(tries=1, blames=1),
    "forbidden": Remedy(tries=1, blames=1),
    "missing": Remedy(tries=1, blames=1),
    # A wrong set-up, whatever the request; an operator has to fix it.
    "setup": Remedy(tries=inf, blames=inf, longest_pause=60.0),
    # Also a firewall's answer to a text that it does not like.
    "credentials": Remedy(tries=2, blames=2, longest_pause=15.0),
})  # fmt: skip

# The longest matching prefix counts. All others are faults of the request: a value, a constraint, a user's trigger.
SQLSTATES: Mapping[str, Nature] = MappingProxyType({
    "08": "away",
    # "cached plan must not change result type": a migration is running.
    "0A000": "away",
    "25": "away",
    "25001": "setup",
    "26": "away",
    "28": "credentials",
    "3D": "credentials",
    "3F000": "missing",
    "40": "away",
    "42P01": "missing",
    "42501": "forbidden",
    "42883": "missing",
    "53": "away",
    # Out of memory: one large value, or a full machine, for which a report that fails alone is not blamed.
    "53200": "large",
    "54": "large",
    "55": "locked",
    "57": "away",
    # A time limit of the role or the database, often behind a lock.
    "57014": "locked",
    "58": "away",
    "F0": "away",
    "XX": "away",
})  # fmt: skip
# The connection may be gone too, and with it the answer to a commit.
_GONE = ("08", "57P", "XX")
_TOO_LARGE = (
    "invalid memory alloc request size", "out of memory", "string buffer exceeds", "enlarge string buffer",
)  # fmt: skip

MIGRATION_CURE = (
    "Bring the migrations up to this release with `runtime init`, and apply them: `supabase db push` for a hosted "
    "project, `supabase migration up` for `supabase start`, `runtime local start` for the local stack."
)
UPGRADE_CURE = "If it was migrated by a newer release, `pip install -U agent-runtime` here."
_READ_ONLY = "25006"
# Of `stream_send`, about a message that requires a listener.
_UNHEARD = "RT001"
ISOLATION_CURE = (
    "A default of the role or the database asks for a stricter isolation than the runtime can work in: alter role "
    "authenticator set default_transaction_isolation = 'read committed'; and the same for service_role, or for the "
    "role in DATABASE_URL"
)


def nature_of(code: str, text: str = "") -> Nature:
    """Return the nature of an SQLSTATE with its message."""
    if code.startswith(("XX", "53")) and any(words in text for words in _TOO_LARGE):
        return "large"
    for length in (5, 2):
        if (nature := SQLSTATES.get(code[:length])) is not None:
            return nature
    return "refused"


def remedy_of(error: StoreError) -> Remedy:
    """Return a pump's reaction to an error of a store."""
    return REMEDIES[error.nature]


def fault_of(code: str, text: str, *, place: str, cure: str) -> StoreError:
    """Return the runtime's error for an SQLSTATE.

    Args:
        code: five characters, from the database.
        text: its message, with its hint.
        place: the store's address.
        cure: what to check if the role may not do this.
    """
    text = text.rstrip(".")
    nature = nature_of(code, text)
    if nature == "missing":
        return missing(text, place=place, code=code)
    if nature in ("forbidden", "credentials"):
        return Unauthorized(f"{place} does not allow this: {text}. {cure}", code=code, nature=nature)
    if code == _UNHEARD:
        return NobodyListens(
            f"Nothing was sent: {text}. `runtime subscriptions` lists what listens.", code=code
        )
    if nature == "refused" or code.startswith("54"):
        kind = Duplicate if code == "23505" and "dedup_key" in text else Refused
        return kind(f"{text}.", code=code, nature=nature)
    if code == _READ_ONLY:
        text = f"{text}; it is a replica, or its disk is full"
    if nature == "setup":
        text = f"{text}. {ISOLATION_CURE}"
    return StoreUnavailable(
        f"{place} cannot serve the request now: {text}.",
        code=code,
        maybe_applied=code.startswith(_GONE),
        nature=nature,
    )


def missing(text: str, *, place: str, code: str | None) -> MigrationMissing:
    """Return the error for functions that do not exist, or not as this release calls them."""
    # The rest is advice on the spelling and the types of the call, which the runtime made.
    text = text.partition(". ")[0]
    if code is not None and code.startswith("PGRST2"):
        text = f"{text}; after a migration the API must reload its schema: `notify pgrst, 'reload schema'`"
    return MigrationMissing(
        f"{place} lacks the runtime's schema, or has another version of it ({text}). {MIGRATION_CURE} {UPGRADE_CURE}",
        code=code,
    )


# HTTP

# Statuses that do not depend on the request's content. Any other one below 500, without an error of the API itself, is
# a refusal by a proxy or firewall in front of it.
STATUSES: Mapping[int, Nature] = MappingProxyType({
    402: "away", 404: "away", 407: "away", 408: "slow", 421: "away", 423: "away", 425: "away", 429: "away", 540: "away",
})  # fmt: skip
_PAUSED = 540
# Words of a project's gateway about a key, in a 403.
_OF_KEYS = ("key", "token", "jwt", "credential", "consume", "authoriz", "authentic")


def nature_of_status(status: int, problem: Mapping[str, object]) -> Nature:
    """Return the nature of an answer without a code of PostgREST or of the database.

    Args:
        status: its HTTP status.
        problem: its JSON object, or an empty one.
    """
    said = str(problem.get("message") or problem.get("error") or problem.get("msg") or "").lower()
    if problem and (status == 401 or (status == 403 and any(word in said for word in _OF_KEYS))):
        return "credentials"
    if 300 <= status < 400:
        return "away"
    return STATUSES.get(status, "garbled" if status >= 500 or status < 300 else "blocked")


def fault_of_status(
    status: int, problem: Mapping[str, object], text: str, *, place: str, url_cure: str
) -> StoreError:
    """Return the runtime's error for an HTTP status; the store itself makes the error for a refused key."""
    nature = nature_of_status(status, problem)
    if nature == "blocked":
        return Blocked(
            f"{place} answered {status} ({text}), and that is not the API's own answer: a proxy or a web application "
            f"firewall in front of it refuses {_refused_part(status)}. Let requests to /rest/v1/rpc/ pass there with "
            "any text and of up to 16 MB.",
            status=status,
        )
    said, maybe_applied = f"answered {status}: {text}.", status >= 500 or status == 408
    if status == _PAUSED:
        said, maybe_applied = "is paused: resume the project in the dashboard.", False
    elif status == 402:
        said = f"answered 402: {text}. Is the project over its quota?"
    elif status == 429:
        said = "answered 429: too many requests."
    elif 300 <= status < 400:
        said = f"answered {status} and points elsewhere. {url_cure} With https?"
    elif status == 404:
        said = f"answered 404: {text}. {url_cure}"
    return StoreUnavailable(f"{place} {said}", maybe_applied=maybe_applied, nature=nature, status=status)


def _refused_part(status: int) -> str:
    if status == 413:
        return "a body as large as this"
    if status in (414, 431, 494):
        return "a head as large as this"
    return "this request, perhaps for its text"


# Answers


def foreign(came: str, *, place: str, cure: str, status: int | None = None) -> StoreUnavailable:
    """Return the error for an answer that is not the API's; `came` describes it."""
    return StoreUnavailable(
        f"{place} answered with {came}, and that is no answer of the runtime's schema. {cure} A proxy in front of it "
        "may answer in its place.",
        nature="garbled",
        status=status,
    )
