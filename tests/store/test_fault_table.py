"""What every fault means: by SQLSTATE, by HTTP status, by a pooler's words, and by the body of an answer."""

import math
from typing import Any, get_args

import pytest

from runtime.connection.database import entry_of
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
from runtime.store.functions import FUNCTIONS
from runtime.store.shapes import LISTS, OBJECTS, mismatch
from runtime.store.sqlstates import (
    REMEDIES,
    fault_of,
    fault_of_status,
    nature_of_status,
    remedy_of,
)

SQLSTATES: list[tuple[str, str, type[StoreError], Nature]] = [
    ("08006", "connection failure", StoreUnavailable, "away"),
    ("0A000", "cached plan must not change result type", StoreUnavailable, "away"),
    ("22003", "out of range", Refused, "refused"),
    ("23505", "duplicate key", Refused, "refused"),
    ("23505", "dedup_key was used before", Duplicate, "refused"),
    ("25001", "needs isolation level read committed", StoreUnavailable, "setup"),
    ("25006", "cannot execute INSERT in a read-only transaction", StoreUnavailable, "away"),
    ("25P02", "current transaction is aborted", StoreUnavailable, "away"),
    ("25P03", "idle in transaction", StoreUnavailable, "away"),
    ("25P04", "transaction timeout", StoreUnavailable, "away"),
    ("26000", "no such statement", StoreUnavailable, "away"),
    ("28P01", "password authentication failed", Unauthorized, "credentials"),
    ("28000", "no pg_hba.conf entry", Unauthorized, "credentials"),
    ("3D000", "no such database", Unauthorized, "credentials"),
    ("3F000", "no such schema", MigrationMissing, "missing"),
    ("40001", "could not serialize access", StoreUnavailable, "away"),
    ("40P01", "deadlock detected", StoreUnavailable, "away"),
    ("42501", "permission denied", Unauthorized, "forbidden"),
    ("42703", "no such column, says a trigger", Refused, "refused"),
    ("42883", "no such function", MigrationMissing, "missing"),
    ("42P01", "no such table", MigrationMissing, "missing"),
    ("53100", "disk full", StoreUnavailable, "away"),
    ("53200", "out of memory", StoreUnavailable, "large"),
    ("53300", "too many connections", StoreUnavailable, "away"),
    ("53400", "configuration limit exceeded", StoreUnavailable, "away"),
    ("54000", "string buffer exceeds maximum allowed length", Refused, "large"),
    ("55000", "not in the state for it", StoreUnavailable, "locked"),
    ("55006", "object in use", StoreUnavailable, "locked"),
    ("55P03", "canceling statement due to lock timeout", StoreUnavailable, "locked"),
    ("57014", "canceling statement due to statement timeout", StoreUnavailable, "locked"),
    ("57P01", "terminating connection", StoreUnavailable, "away"),
    ("57P02", "crash of another server process", StoreUnavailable, "away"),
    ("57P03", "the database system is starting up", StoreUnavailable, "away"),
    ("58030", "I/O error", StoreUnavailable, "away"),
    ("F0001", "lock file", StoreUnavailable, "away"),
    ("P0001", "raised by a trigger of the user's own", Refused, "refused"),
    ("XX000", "cache lookup failed", StoreUnavailable, "away"),
    ("XX000", "invalid memory alloc request size 1073741824", StoreUnavailable, "large"),
    ("XX001", "data corrupted", StoreUnavailable, "away"),
]


@pytest.mark.parametrize(("code", "text", "kind", "nature"), SQLSTATES)
def test_l1_every_sqlstate_has_its_class(
    code: str, text: str, kind: type[StoreError], nature: Nature
) -> None:
    error = fault_of(code, text, place="here", cure="Do this.")
    assert type(error) is kind
    assert error.nature == nature
    assert error.code == code


@pytest.mark.parametrize(
    "code", [code for code, *_, nature in SQLSTATES if nature not in ("refused", "forbidden")]
)
def test_l1_the_state_of_the_database_is_nobodys_fault(code: str) -> None:
    error = fault_of(code, "anything", place="here", cure="")
    if code[:2] not in ("42", "3F", "28", "3D", "54") and code != "53200":
        assert remedy_of(error).blames == math.inf


def test_every_nature_has_a_remedy_and_none_is_tried_without_a_pause() -> None:
    assert set(REMEDIES) == set(get_args(Nature))
    assert all(remedy.longest_pause >= 5 and remedy.shrinks_by >= 2 for remedy in REMEDIES.values())


@pytest.mark.parametrize(
    ("status", "problem", "nature"),
    [
        *((status, {}, "blocked") for status in (400, 401, 403, 405, 406, 409, 410, 411, 412, 413, 414, 415)),
        *((status, {}, "blocked") for status in (416, 417, 418)),
        *((status, {}, "blocked") for status in (422, 424, 426, 428, 431, 444, 451, 494, 495, 499)),
        *((status, {}, "garbled") for status in (200, 204, 500, 501, 502, 503, 504, 520, 522, 524, 530)),
        *((status, {}, "away") for status in (301, 302, 307, 308, 402, 404, 421, 425, 429, 540)),
        (408, {}, "slow"),
        (401, {"message": "Invalid API key"}, "credentials"),
        (401, {"message": "No API key found in request"}, "credentials"),
        (403, {"message": "You cannot consume this service"}, "credentials"),
        (403, {"message": "Forbidden"}, "blocked"),
        (403, {"error": "blocked by rule 942100"}, "blocked"),
        (429, {"message": "rate limited"}, "away"),
    ],
)  # fmt: skip
def test_l2_every_status_that_is_not_the_apis_own_has_its_class(
    status: int, problem: dict[str, object], nature: Nature
) -> None:
    assert nature_of_status(status, problem) == nature
    if nature != "credentials":
        error = fault_of_status(status, problem, "text", place="https://x", url_cure="Look.")
        assert isinstance(error, Blocked if nature == "blocked" else StoreUnavailable)
        assert error.nature == nature
        assert "https://x" in str(error)


@pytest.mark.parametrize(
    ("code", "text", "nature"),
    [
        ("28P01", 'password authentication failed for user "postgres"', "credentials"),
        ("28000", 'no pg_hba.conf entry for host "1.2.3.4", user "postgres", no encryption', "credentials"),
        ("28000", 'role "x" is not permitted to log in', "credentials"),
        ("3D000", 'database "x" does not exist', "credentials"),
        ("XX000", "Tenant or user not found", "credentials"),
        ("XX000", "(ENOTFOUND) tenant/user postgres.abc not found", "credentials"),
        ("XX000", "(ENOIDENTIFIER) no tenant identifier provided", "credentials"),
        ("XX000", "(ECIRCUITBREAKER) too many authentication failures", "credentials"),
        ("XX000", "Circuit breaker open: too many failed attempts", "credentials"),
        ("XX000", "Address not in tenant allow_list: {1, 2, 3, 4}", "credentials"),
        ("XX000", "(EADDRNOTALLOWED) address not in tenant allow_list", "credentials"),
        ("XX000", "SSL connection is required", "credentials"),
        ("08P01", "SSL required", "credentials"),
        ("08P01", "no such user: x", "credentials"),
        (None, "PostgreSQL server at \"h:5432\" rejected SSL upgrade", "credentials"),
        ("XX000", 'Authentication error, reason: "Invalid format for user or db_name"', "credentials"),
        ("XX000", "Max client connections reached", "away"),
        ("XX000", "MaxClientsInSessionMode: max clients reached", "away"),
        ("XX000", "(EMAXCONNSESSION) max clients reached in session mode", "away"),
        ("XX000", "Unable to check out connection from the pool due to timeout", "away"),
        ("XX000", "DbHandler exited. Check logs for more information.", "away"),
        ("53300", "sorry, too many clients already", "away"),
        ("53300", "remaining connection slots are reserved for roles with the SUPERUSER attribute", "away"),
        ("57P03", "the database system is starting up", "away"),
        ("08006", "connection failure during authentication", "away"),
        (None, "[Errno 111] Connect call failed", "away"),
        (None, "TimeoutError", "away"),
    ],
)  # fmt: skip
def test_n3_what_servers_and_poolers_say_on_the_way_in_has_its_class(
    code: str | None, text: str, nature: Nature
) -> None:
    assert entry_of(code, text) == nature


STRANGE: list[Any] = [None, [], {}, 7, "x", True, 1.5, [1], [None], [{}], {"ok": True}, {"message": "hello"}]
# What the API itself could have said.
FITTING = {"stream_broadcast": [True], "stream_last_good": [None]}
BY_NAME = ("stream_handling", "stream_note_webhooks")


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
def test_l3_no_function_takes_the_answer_of_a_stranger_for_its_own(function: str) -> None:
    arguments = {"n": 3}
    for answer in STRANGE:
        is_fitting = any(answer is each for each in FITTING.get(function, []))
        is_fitting = is_fitting or (function in LISTS and answer == [])
        is_fitting = is_fitting or (function in BY_NAME and isinstance(answer, dict))
        assert (mismatch(function, arguments, answer) is None) is is_fitting, answer


def test_l3_every_function_has_a_shape() -> None:
    assert OBJECTS.keys() | LISTS.keys() | {"stream_broadcast"} == FUNCTIONS.keys()
    assert not OBJECTS.keys() & LISTS.keys()


@pytest.mark.parametrize(
    "answer",
    [
        {"n": 4, "taken": []}, {"n": 3}, {"n": 3, "taken": None}, {"n": 3, "taken": {}}, {"n": 3, "taken": [[1, 2]]},
        {"n": 3, "taken": [{}]}, {"n": "3", "taken": []},
    ],
)  # fmt: skip
def test_l3_an_exchange_is_answered_by_its_number_and_with_deliveries(answer: dict[str, Any]) -> None:
    assert mismatch("stream_exchange", {"n": 3}, answer) is not None
    assert mismatch("stream_exchange", {"n": 3}, {"n": 3, "taken": [], "refused": [], "more": {}}) is None
    assert mismatch("stream_exchange", {"n": 3}, {"n": 5, "stale": True}) is None
