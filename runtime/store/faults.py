"""The database said no: whose fault is it, and may the request be made again?"""

from runtime.errors import Duplicate, MigrationMissing, Refused, StoreError, StoreUnavailable, Unauthorized

ROLLED_BACK = frozenset({"40001", "40P01"})
"""Lost races: the transaction left no trace, and the same one may succeed at once."""

# A statement that was cut off, a server that is full, read-only, starting or ending: it is nobody's request that
# is at fault, so no report must suffer for it.
_AWAY_CLASSES = ("08", "40", "53", "57", "58", "XX")
_READ_ONLY = "25006"
_MISSING = ("42883", "3F000", "42P01")
# Here the connection may have gone as well, and with it, perhaps, the answer to a commit.
_GONE = ("08", "57P", "XX")

MIGRATION_CURE = (
    "Bring the migrations up to this release with `runtime init`, and apply them: `supabase db push` for a hosted "
    "project, `supabase migration up` for `supabase start`, `runtime local start` for the local stack."
)
UPGRADE_CURE = "If it was migrated by a newer release, `pip install -U agent-runtime` here."


def fault_of(code: str, text: str, *, place: str, cure: str) -> StoreError:
    """The error of ours that an SQLSTATE means.

    Args:
        code: five characters, from the database.
        text: its message, with its hint.
        place: where that was.
        cure: what to check when the role may not do this.
    """
    text = text.rstrip(".")
    if code in _MISSING:
        return missing(text, place=place, code=code)
    if code == "42501":
        return Unauthorized(f"{place} does not allow this: {text}. {cure}", code=code)
    if code == _READ_ONLY:
        text = f"{text}; it is a replica, or its disk is full"
    if code == _READ_ONLY or code.startswith(_AWAY_CLASSES):
        return StoreUnavailable(
            f"{place} cannot serve the request now: {text}.", code=code, maybe_applied=code.startswith(_GONE)
        )
    kind = Duplicate if code == "23505" and "dedup_key" in text else Refused
    return kind(f"{text}.", code=code)


def missing(text: str, *, place: str, code: str | None) -> MigrationMissing:
    """The functions are not there, or not as this release calls them."""
    return MigrationMissing(
        f"{place} lacks the runtime's schema, or has another version of it ({text}). {MIGRATION_CURE} {UPGRADE_CURE}",
        code=code,
    )
