"""PostgREST's errors: their texts and their statuses.

Source: PostgREST's reference, "Errors": https://docs.postgrest.org/en/stable/references/errors.html
"""

from typing import Any

import asyncpg
from starlette.responses import JSONResponse

from runtime.local.gateway.token_refusals import unserved

_BY_CODE = {
    "23503": 409, "23505": 409, "25006": 405, "53400": 500, "42883": 404, "42P01": 404, "42P17": 500, "P0001": 400,
}  # fmt: skip
_BY_CLASS = {
    "08": 503, "09": 500, "0L": 403, "0P": 403, "25": 500, "28": 403, "2D": 500, "38": 500, "39": 500, "3B": 500,
    "40": 500, "53": 503, "54": 500, "55": 500, "57": 500, "58": 500, "F0": 500, "HV": 500, "P0": 500, "XX": 500,
}  # fmt: skip


class Problem(Exception):
    """An error of PostgREST's own, as the answer to a request."""

    def __init__(
        self, status: int, code: str, message: str, *, details: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "details": details, "hint": hint, "message": message}

    def response(self) -> JSONResponse:
        """Return the answer."""
        return JSONResponse(self.body, self.status)


class Unserved(Problem):
    """A request for a feature that only the real stack has."""

    def __init__(self, what: str) -> None:
        super().__init__(501, "LOCAL501", unserved(what))


def database_problem(error: asyncpg.PostgresError, role: str) -> JSONResponse:
    """Return the answer to a request that the database refused."""
    code = error.sqlstate or "XX000"
    body: dict[str, Any] = {
        "code": code,
        "details": getattr(error, "detail", None),
        "hint": getattr(error, "hint", None),
        "message": error.args[0] if error.args else str(error),
    }
    return JSONResponse(body, _status(code, role, str(body["message"])))


def database_away() -> JSONResponse:
    """Return the answer while the database is away."""
    message = "Could not query the database for the schema cache. Retrying."
    return Problem(503, "PGRST002", message).response()


def not_served(what: str) -> JSONResponse:
    """Return the answer for a service that this gateway lacks; with 404, since clients hide the text of a 5xx."""
    return JSONResponse(Unserved(what).body, 404)


def _status(code: str, role: str, message: str) -> int:
    if code == "22023" and message.startswith("role ") and message.endswith("does not exist"):
        return 401  # the token names a role that does not exist
    if code == "42501":
        return 401 if role == "anon" else 403
    if code.startswith("PT") and code[2:].isdigit():
        return int(code[2:])
    return _BY_CODE.get(code) or _BY_CLASS.get(code[:2], 400)
