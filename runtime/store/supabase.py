"""The store over a Supabase project's REST API (PostgREST's RPC), through supabase-py."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import httpx

from runtime.connection.addresses import check_key, project_url
from runtime.connection.claims import claims_of, expiry_of
from runtime.connection.project import is_on_this_machine
from runtime.connection.proxies import CERTIFICATE_CURE, request_options
from runtime.encoding.json import decode, encode
from runtime.errors import InvalidPayload, Refused, SettingsError, StoreError, StoreUnavailable, Unauthorized
from runtime.store import Store
from runtime.store.functions import FUNCTIONS
from runtime.store.shapes import mismatch
from runtime.store.sqlstates import fault_of, fault_of_status, foreign, missing, nature_of_status

if TYPE_CHECKING:
    from supabase import AsyncClient

_NOT_SENT = (
    httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError,
)  # fmt: skip
_KEY_CURE = (
    "Set SUPABASE_SECRET_KEY (or SUPABASE_SERVICE_ROLE_KEY) to an sb_secret_… key or the service_role key of this "
    "very project; the anon and publishable keys may not run workers."
)
_URL_CURE = "Is SUPABASE_URL the URL of a Supabase project?"
_CONNECTIONS = 8
_KEPT_SECONDS = 50


class SupabaseStore(Store):
    """Messages over the REST API of a Supabase project.

    Args:
        client: supabase-py's async client, with a key that stands for service_role.
        request_seconds: how long one request may take.
        source: the variable that names the project, with its source, for errors.
    """

    def __init__(
        self, client: "AsyncClient", *, request_seconds: float = 15, source: str | None = None
    ) -> None:
        self._source = source
        self._client = client
        self._rest = str(client.rest_url).rstrip("/")
        self._own_session: httpx.AsyncClient | None = None
        self._request_seconds = request_seconds

    def __repr__(self) -> str:
        return f"<SupabaseStore at {self.place}>"

    @classmethod
    async def connect(
        cls, url: str, key: str, *, request_seconds: float = 15, source: str | None = None
    ) -> "SupabaseStore":
        """Return a store with a client of its own for a project.

        Raises:
            SettingsError: `url` is no URL of a project, the key does not have the form of one, or a variable of the
                environment names a proxy or certificates that cannot be used.
        """
        from supabase import AsyncClientOptions, SupabaseException, create_async_client

        url, key = project_url(url), check_key(key)
        # Not HTTP/2: over it httpx fails on connections that the server has closed (supabase-py#1064), and its header
        # compression writes the key into the debug log.
        # Connections are kept longer than httpx's default: opening one over TLS takes several round trips.
        limits = httpx.Limits(max_connections=_CONNECTIONS, keepalive_expiry=_KEPT_SECONDS)
        session = httpx.AsyncClient(limits=limits, **request_options(url))
        try:
            client = await create_async_client(url, key, AsyncClientOptions(httpx_client=session))
        except SupabaseException as error:
            raise SettingsError(f"SUPABASE_URL or the key cannot be used: {error}.") from None
        store = cls(client, request_seconds=request_seconds, source=source)
        store._own_session = session
        return store

    @property
    def place(self) -> str:
        """The project's URL."""
        parts = urlsplit(self._rest.removesuffix("/rest/v1"))
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        """Call one SQL function once; see `Store.call`."""
        # The JSON arguments are texts already, and go into the body unchanged, so no digit is lost.
        kinds = FUNCTIONS[function]
        body = ",".join(
            f'"{name}":{value if kinds[name].startswith("json") else encode(value)}'
            for name, value in arguments.items()
        )
        response = await self._post(f"{self._rest}/rpc/{function}", f"{{{body}}}".encode())
        if not response.is_success:
            raise self._error(response)
        try:
            answer = decode(response.content)
        except InvalidPayload:
            came = "something that is no JSON" if response.content else f"{response.status_code} and nothing"
            raise foreign(came, place=self.place, cure=_URL_CURE, status=response.status_code) from None
        if wrong := mismatch(function, arguments, answer):
            raise foreign(wrong, place=self.place, cure=_URL_CURE, status=response.status_code)
        return answer

    async def close(self) -> None:
        """Close the connections, except those of the user's own client."""
        if self._own_session is not None:
            await self._own_session.aclose()

    async def _post(self, url: str, body: bytes) -> httpx.Response:
        """Send one request and read its whole answer within the time limit."""
        seconds = self._request_seconds
        try:
            postgrest = self._client.postgrest
            # The profiles too: the user's own client may be set to another schema.
            headers = httpx.Headers(postgrest.headers)
            headers.update({
                "Content-Type": "application/json", "Content-Profile": "public", "Accept-Profile": "public",
            })  # fmt: skip
            # httpx's timeout bounds each step only; a server that answers byte by byte could take for ever.
            with anyio.fail_after(seconds):
                return await postgrest.session.post(
                    url,
                    content=body,
                    headers=headers,
                    timeout=httpx.Timeout(seconds, connect=seconds / 2, pool=seconds / 2),
                    # A redirect would turn the POST into a GET and send the key to another host.
                    follow_redirects=False,
                )
        except _NOT_SENT as error:
            raise StoreUnavailable(
                f"{self.place} could not be reached: {_text_of(error)}. {self._reach_cure(error)}",
                maybe_applied=False,
            ) from error
        except (httpx.LocalProtocolError, UnicodeEncodeError):
            # The error's text repeats the header with the key.
            raise Unauthorized(
                f"The key for {self.place} has characters that no key has. {_KEY_CURE}"
            ) from None
        except (httpx.HTTPError, TimeoutError) as error:
            is_slow = isinstance(error, (TimeoutError, httpx.TimeoutException))
            raise StoreUnavailable(
                f"{self.place} did not answer: {_text_of(error)}. Whether the request took effect is not known.",
                nature="slow" if is_slow else "garbled",
            ) from error
        except RuntimeError as error:
            # httpx has no class of its own for a closed client.
            if not self._client.postgrest.session.is_closed:
                raise
            raise StoreUnavailable(
                f"The client of {self.place} is closed: close it after the stream.", maybe_applied=False
            ) from error

    def _reach_cure(self, error: Exception) -> str:
        if isinstance(error, httpx.ProxyError):
            return "This error comes from a proxy: check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY."
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return CERTIFICATE_CURE
        if self._source and self._source.endswith("the local stack"):
            return "The local stack has stopped, or its gateway has: `runtime local start` starts it again."
        said = f" The address comes from {self._source}." if self._source else ""
        if is_on_this_machine(self.place):
            start = "Nothing listens there: start the local stack with `runtime local start` (or `supabase start`)"
            return f"{start}.{said} If its stack is gone, remove SUPABASE_URL and its key."
        return f"Is it running, and is SUPABASE_URL right?{said} (The name of a paused project does not resolve.)"

    def _error(self, response: httpx.Response) -> StoreError:
        """Map an error of PostgREST, or of a gateway or proxy in front of it."""
        status, problem = response.status_code, _problem(response)
        code = str(problem.get("code") or "")
        reason = problem.get("message") or problem.get("error") or response.reason_phrase or "no reason given"
        text = str(reason).rstrip(".")
        if hint := problem.get("hint"):
            text = f"{text}. {hint}".rstrip(".")
        if code.startswith("PGRST"):
            return self._postgrest_error(code, status, text)
        if len(code) == 5 and "message" in problem:
            return fault_of(code, text, place=self.place, cure=self._key_cure())
        if nature_of_status(status, problem) == "credentials":
            return self._key_refused(text, None)
        return fault_of_status(status, problem, text, place=self.place, url_cure=_URL_CURE)

    def _postgrest_error(self, code: str, status: int, text: str) -> StoreError:
        """Map an error with a code of PostgREST's own."""
        if code in ("PGRST202", "PGRST203", "PGRST205"):
            return missing(text, place=self.place, code=code)
        if code == "PGRST106":
            return missing(
                f"{text}; expose the schema public in the API settings", place=self.place, code=code
            )
        if status in (401, 403):
            return self._key_refused(text, code)
        if code.startswith("PGRST00"):
            # PGRST001: the connection was lost during a request.
            return StoreUnavailable(
                f"{self.place} has no connection to its database: {text}.",
                code=code,
                maybe_applied=code == "PGRST001",
            )
        if status >= 500:
            return StoreUnavailable(f"{self.place} answered {status}: {text}.", code=code, nature="garbled")
        return Refused(f"{text}.", code=code)

    def _key_refused(self, text: str, code: str | None) -> Unauthorized:
        expiry = expiry_of(self._client.supabase_key)
        if expiry is not None and expiry < time.time():
            text = f"JWT expired at {datetime.fromtimestamp(expiry, UTC):%Y-%m-%d %H:%M:%S} UTC ({text})"
        return Unauthorized(f"{self.place} refused the key: {text}. {self._key_cure()}", code=code)

    def _key_cure(self) -> str:
        role = _role_of(self._client.supabase_key)
        return f"This is a key of the role {role}. {_KEY_CURE}" if role else _KEY_CURE


def _problem(response: httpx.Response) -> dict[str, Any]:
    """Return the error's JSON object, or an empty one: a proxy may answer with anything."""
    try:
        problem = response.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _text_of(error: Exception) -> str:
    """Return the library's own text, never the request, which holds the key."""
    return str(error).rstrip(".") or type(error).__name__


def _role_of(key: str) -> str | None:
    """Return the role of a key; None if the key does not tell."""
    if key.startswith("sb_publishable_"):
        return "anon"
    role = (claims_of(key) or {}).get("role")
    return None if role is None else str(role)
