"""What does an SQLSTATE mean for whoever asked?"""

import pytest

from runtime.errors import Duplicate, MigrationMissing, Refused, StoreUnavailable, Unauthorized
from runtime.store.sqlstates import fault_of


@pytest.mark.parametrize(
    ("code", "kind", "maybe_applied"),
    [
        ("57P01", StoreUnavailable, True),
        ("08006", StoreUnavailable, True),
        ("XX000", StoreUnavailable, True),
        ("57014", StoreUnavailable, False),
        ("53100", StoreUnavailable, False),
        ("40001", StoreUnavailable, False),
        ("25006", StoreUnavailable, False),
        ("42883", MigrationMissing, None),
        ("3F000", MigrationMissing, None),
        ("42501", Unauthorized, None),
        ("55P03", StoreUnavailable, False),
        ("22023", Refused, None),
        ("23505", Refused, None),
    ],
)
def test_a_code_says_whose_fault_it_is_and_whether_it_may_have_been_done(
    code: str, kind: type[Exception], maybe_applied: bool | None
) -> None:
    error = fault_of(code, "what the database said.", place="here", cure="Do that.")
    assert type(error) is kind
    assert error.code == code
    assert getattr(error, "maybe_applied", None) is maybe_applied
    assert ".." not in str(error)


def test_a_used_dedup_key_is_told_apart_from_other_unique_keys() -> None:
    error = fault_of("23505", "a message with this dedup_key was stored before", place="", cure="")
    assert type(error) is Duplicate
