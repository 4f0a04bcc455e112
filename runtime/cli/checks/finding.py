"""A finding of `runtime doctor`: what is wrong, and the cure.

One file per kind of evidence: `access` judges the settings alone, `database` what the database tells of itself, and
`journey` sends something all the way round. Every check gives one finding.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        said: what is so, in one sentence.
        cure: what to do about it, where something is to be done.
        details: figures and names for machines.
    """

    check: str
    verdict: Verdict
    said: str
    cure: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON data."""
        return {name: getattr(self, name) for name in self.__slots__}


def ok(check: str, said: str, **details: Any) -> Finding:
    """Nothing is wrong."""
    return Finding(check, Verdict.OK, said, details=details)


def fault(check: str, said: str, cure: str, **details: Any) -> Finding:
    """Something does not work until it is mended."""
    return Finding(check, Verdict.FAULT, said, cure, details)


def warning(check: str, said: str, cure: str, **details: Any) -> Finding:
    """It works, and could be better or soon be worse."""
    return Finding(check, Verdict.WARNING, said, cure, details)


def skipped(check: str, why: str) -> Finding:
    """The check does not apply, or cannot be made before something else is mended."""
    return Finding(check, Verdict.SKIPPED, why)
