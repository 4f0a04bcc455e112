"""A finding of `runtime doctor`: what is wrong, and the cure.

One file per kind of evidence: `access` checks the settings alone, `database` the facts that the database reports, and
`round_trip` sends nonces and a row all the way round. Every check gives one finding.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """The outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: its name.
        text: the state, in one sentence.
        cure: what to do about a fault or a warning.
        details: figures and names for machines.
    """

    check: str
    verdict: Verdict
    text: str
    cure: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON data."""
        return {name: getattr(self, name) for name in self.__slots__}


def ok(check: str, text: str, **details: Any) -> Finding:
    """Nothing is wrong."""
    return Finding(check, Verdict.OK, text, details=details)


def fault(check: str, text: str, cure: str, **details: Any) -> Finding:
    """Something does not work until it is mended."""
    return Finding(check, Verdict.FAULT, text, cure, details)


def warning(check: str, text: str, cure: str, **details: Any) -> Finding:
    """It works, and could be better or soon be worse."""
    return Finding(check, Verdict.WARNING, text, cure, details)


def skipped(check: str, why: str) -> Finding:
    """The check does not apply, or cannot be made before something else is mended."""
    return Finding(check, Verdict.SKIPPED, why)
