"""How are messages reached with nothing but a Supabase URL and a key? By PostgREST's RPC, through supabase-py."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx

from runtime.errors import (
    Duplicate,
    MigrationMissing,
    Refused,
    SettingsError,
    StoreError,
    StoreUnavailable,
    Unauthorized,
)  # fmt: skip
from runtime.store import FUNCTIONS, MIGRATION_CURE, Store
from runtime.values import decode, encode

if TYPE_CHECKING:
    from supabase import AsyncClient

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_KEY_CURE = (
    "Set SUPABASE_SERVICE_ROLE_KEY (or SUPABASE_SECRET_KEY) to the service_role key or an sb_secret_… key of this "
    "very project; the anon and publishable keys may not run workers."
)


class SupabaseStore(Store):
    """Messages over the REST API of a Supabase project.

    Args:
        client: supabase-py's async client, with a key that stands for service_role.
        request_seconds: how long one request may take.
    """

    def __init__(self, client: "AsyncClient", *, request_seconds: float = 15) -> None:
        self._client = client
        self._rest = str(client.rest_url).rstrip("/")
        self._owns_client = False
        self._timeout = httpx.Timeout(request_seconds)

    @classmethod
    async def connect(cls, url: str, key: str, *, request_seconds: float = 15) -> "SupabaseStore":
        """Make a client of its own for a project.

        Raises:
            SettingsError: `url` is no URL of a project, or the key has no form that a key can have.
        """
        from supabase import AsyncClientOptions, SupabaseException, create_async_client

        session = httpx.AsyncClient(http2=True, follow_redirects=True, timeout=request_seconds)
        try:
            client = await create_async_client(url, key, AsyncClientOptions(httpx_client=session))
        except SupabaseException as error:
            raise SettingsError(f"SUPABASE_URL or the key cannot be used: {error}.") from None
        store = cls(client, request_seconds=request_seconds)
        store._owns_client = True
        return store

    @property
    def place(self) -> str:
        """The project's URL."""
        return self._rest.removesuffix("/rest/v1")

    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        """Call one SQL function once; see `Store.call`."""
        # The JSON arguments are texts already: they are set into the body as they are, so no digit is lost.
        kinds = FUNCTIONS[function]
        body = ",".join(
            f'"{name}":{value if kinds[name].startswith("json") else encode(value)}'
            for name, value in arguments.items()
        )
        try:
            response = await self._client.postgrest.session.post(
                f"{self._rest}/rpc/{function}",
                content=f"{{{body}}}".encode(),
                headers={**self._client.postgrest.headers, "Content-Type": "application/json"},
                timeout=self._timeout,
            )
        except _NOT_SENT as error:
            raise StoreUnavailable(
                f"{self.place} could not be reached: {error or type(error).__name__}.", maybe_applied=False
            ) from error
        except httpx.HTTPError as error:
            raise StoreUnavailable(
                f"{self.place} did not answer: {error or type(error).__name__}."
            ) from error
        if response.is_success:
            return decode(response.content) if response.content else None
        raise self._error(response)

    async def close(self) -> None:
        """Close the client, unless it is the user's own."""
        if self._owns_client:
            await self._client.postgrest.aclose()

    def _error(self, response: httpx.Response) -> StoreError:
        """PostgREST's error, or its gateway's, as ours."""
        status = response.status_code
        problem = _problem(response)
        code = problem.get("code")
        text = str(problem.get("message") or problem.get("error") or response.reason_phrase or status).rstrip(
            "."
        )
        if hint := problem.get("hint"):
            text = f"{text}. {hint}"
        if code in ("PGRST202", "PGRST205", "PGRST106", "42883", "3F000", "42P01"):
            return MigrationMissing(
                f"{self.place} lacks the runtime's schema ({text}). {MIGRATION_CURE}", code=code
            )
        if code == "42501" or status in (401, 403):
            return Unauthorized(f"{self.place} refused the key: {text}. {_KEY_CURE}", code=code)
        if status in (408, 429) or status >= 500 or (code or "").startswith("PGRST00"):
            if code in ("40001", "40P01", "55P03"):
                return Refused(text, code=code)
            return StoreUnavailable(
                f"{self.place} answered {status}: {text}.", code=code, maybe_applied=status not in (429, 503)
            )
        if code == "23505" and "dedup_key" in text:
            return Duplicate(text, code=code)
        if status == 404 and code is None:
            return Unauthorized(f"{self.place} answers 404: is SUPABASE_URL the URL of a Supabase project?")
        return Refused(text, code=code)


def _problem(response: httpx.Response) -> dict[str, Any]:
    """The error's JSON object, or an empty one: a proxy in between answers what it likes."""
    try:
        problem = response.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}
