"""What every fault of a store means, in one table: SQLSTATEs, HTTP statuses, answers of another form.

A fault tells three things: whether the same request may be made again, whether what the request carries can be at
fault, and, where one report fails alone while an empty exchange passes, whether that report fails or waits. What is
said on the way in, before any request is read, stands in `runtime.connection.database`.
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
    Refused,
    StoreError,
    StoreUnavailable,
    Unauthorized,
)

ROLLED_BACK = frozenset({"40001", "40P01"})
"""Lost races: the transaction left no trace, and the same one may succeed at once."""

UNFIT = ("25006", "25P02", "25P03", "25P04", "57P", "08")
"""After these a connection is of no more use: its server is read-only, ending, or has ended it."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """What a pump does about a fault.

    Attributes:
        tries: how often an exchange is made as it is before an empty one is made in its place, to see whether what it
            carried is at fault.
        blames: how often a report fails alone before it becomes a failed attempt; until then, or for ever, it waits.
        shrinks_by: what the next exchanges carry is divided by this.
        longest_pause: how long to wait at most before the next try, in seconds.
    """

    tries: float
    blames: float
    shrinks_by: int = 2
    longest_pause: float = (
        5.0  # Well below a lease: what is done and not reported yet must not be done again.
    )


REMEDIES: Mapping[Nature, Remedy] = MappingProxyType({
    # It is nobody's request that is at fault, so no report must suffer for it.
    "away": Remedy(tries=inf, blames=inf),
    # A lock that lasts. It may be on a row that one report alone needs; that report waits and no other.
    "locked": Remedy(tries=1, blames=inf, shrinks_by=500),
    # No answer in time: a slow road, or too much on it. Each try costs the time of a request.
    "slow": Remedy(tries=1, blames=2, shrinks_by=8),
    # No answer of ours: cut off, an error page, another service. Now and then everybody sees one.
    "garbled": Remedy(tries=2, blames=4),
    # More than the database can build in one piece.
    "large": Remedy(tries=1, blames=2, shrinks_by=8),
    # Something in front of the API refuses the body, by its size or its text.
    "blocked": Remedy(tries=1, blames=2),
    "refused": Remedy(tries=1, blames=1),
    "forbidden": Remedy(tries=1, blames=1),
    "missing": Remedy(tries=1, blames=1),
    # What is wrong before any request is read; an operator has to mend it.
    "setup": Remedy(tries=inf, blames=inf, longest_pause=60.0),
    # Or what a front says of a text that it does not like.
    "credentials": Remedy(tries=2, blames=2, longest_pause=15.0),
})  # fmt: skip

# By the longest beginning that fits. What is not here is said of the request: a value, a constraint, a trigger of the
# user's own.
SQLSTATES: Mapping[str, Nature] = MappingProxyType({
    "08": "away",
    # "cached plan must not change result type": somebody migrates.
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
    # Out of memory: of one large value, or of a full machine. The report that fails alone is not blamed for a machine.
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
# Here the connection may have gone as well, and with it, perhaps, the answer to a commit.
_GONE = ("08", "57P", "XX")
_TOO_LARGE = (
    "invalid memory alloc request size",
    "out of memory",
    "string buffer exceeds",
    "enlarge string buffer",
)

MIGRATION_CURE = (
    "Bring the migrations up to this release with `runtime init`, and apply them: `supabase db push` for a hosted "
    "project, `supabase migration up` for `supabase start`, `runtime local start` for the local stack."
)
UPGRADE_CURE = "If it was migrated by a newer release, `pip install -U agent-runtime` here."
_READ_ONLY = "25006"
ISOLATION_CURE = (
    "A default of the role or the database asks for a stricter isolation than the runtime can work in: alter role "
    "authenticator set default_transaction_isolation = 'read committed'; and the same for service_role, or for the "
    "role in DATABASE_URL"
)


def nature_of(code: str, text: str = "") -> Nature:
    """What an SQLSTATE means; `text` is what came with it."""
    if code.startswith(("XX", "53")) and any(words in text for words in _TOO_LARGE):
        return "large"
    for length in (5, 2):
        if (nature := SQLSTATES.get(code[:length])) is not None:
            return nature
    return "refused"


def remedy_of(error: StoreError) -> Remedy:
    """What a pump does about an error of a store."""
    return REMEDIES[error.nature]


def fault_of(code: str, text: str, *, place: str, cure: str) -> StoreError:
    """The error of ours that an SQLSTATE means.

    Args:
        code: five characters, from the database.
        text: its message, with its hint.
        place: where that was.
        cure: what to check when the role may not do this.
    """
    text = text.rstrip(".")
    nature = nature_of(code, text)
    if nature == "missing":
        return missing(text, place=place, code=code)
    if nature in ("forbidden", "credentials"):
        return Unauthorized(f"{place} does not allow this: {text}. {cure}", code=code, nature=nature)
    if nature == "refused" or code.startswith("54"):
        kind = Duplicate if code == "23505" and "dedup_key" in text else Refused
        refusal = kind(f"{text}.", code=code)
        refusal.nature = nature
        return refusal
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
    """The functions are not there, or not as this release calls them."""
    if code is not None and code.startswith("PGRST2"):
        text = (
            f"{text}; if it was migrated just now, the API has not seen that: `notify pgrst, 'reload schema'`"
        )
    return MigrationMissing(
        f"{place} lacks the runtime's schema, or has another version of it ({text}). {MIGRATION_CURE} {UPGRADE_CURE}",
        code=code,
    )


# HTTP

# Statuses that say nothing of what was sent. Every other one below 500 that comes without an error of the API itself is
# a refusal by something in front of it.
STATUSES: Mapping[int, Nature] = MappingProxyType({
    402: "away", 404: "away", 407: "away", 408: "slow", 421: "away", 423: "away", 425: "away", 429: "away", 540: "away",
})  # fmt: skip
_PAUSED = 540
# What the gateway of a project says of a key, beside a 403.
_OF_KEYS = ("key", "token", "jwt", "credential", "consume", "authoriz", "authentic")


def nature_of_status(status: int, problem: Mapping[str, object]) -> Nature:
    """What an answer means that bears no code of PostgREST or of the database.

    Args:
        status: its HTTP status.
        problem: its JSON object; empty where there was none.
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
    """The error of ours that such an answer means; refused keys are told elsewhere, where the key is known."""
    nature = nature_of_status(status, problem)
    if nature == "blocked":
        return Blocked(
            f"{place} answered {status} ({text}), and that is not the API's own answer: something in front of it, a "
            f"proxy or a web application firewall, refuses {_what(status)}. Let requests to /rest/v1/rpc/ pass there "
            "with any text and of up to 16 MB.",
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
    return StoreUnavailable(f"{place} {said}", maybe_applied=maybe_applied, nature=nature)


def _what(status: int) -> str:
    if status == 413:
        return "a body as large as this"
    if status in (414, 431, 494):
        return "a head as large as this"
    return "this request, perhaps for its text"


# Answers


def foreign(came: str, *, place: str, cure: str) -> StoreUnavailable:
    """Something answered that is not the API; `came` says what."""
    return StoreUnavailable(
        f"{place} answered with {came}, and that is no answer of the runtime's schema. {cure} Something in front of it "
        "may answer in its place.",
        nature="garbled",
    )
