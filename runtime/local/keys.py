"""The ports and keys of `supabase start`, the same here, so that every client's defaults fit.

The keys are published with the Supabase CLI and open nothing but a database that the local stack has made itself. A
database of somebody else's gets keys of its own.
"""

import secrets
import time
from dataclasses import dataclass, field
from typing import Final, Self

API_PORT: Final = 54321
DB_PORT: Final = 54322

SUPERUSER: Final = "supabase_admin"
DB_USER: Final = "postgres"
API_USER: Final = "authenticator"
REALTIME_USER: Final = "supabase_realtime_admin"
DB_PASSWORD: Final = "postgres"
DATABASE: Final = "postgres"

JWT_SECRET: Final = "super-secret-jwt-token-with-at-least-32-characters-long"
ANON_KEY: Final = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    ".eyJpc3MiOiJzdXBhYmFzZS1kZW1vIiwicm9sZSI6ImFub24iLCJleHAiOjE5ODM4MTI5OTZ9"
    ".CRXP1A7WOeoJeXxjNni43kdQwgnWNReilDMblYTn_I0"
)
SERVICE_ROLE_KEY: Final = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    ".eyJpc3MiOiJzdXBhYmFzZS1kZW1vIiwicm9sZSI6InNlcnZpY2Vfcm9sZSIsImV4cCI6MTk4MzgxMjk5Nn0"
    ".EGIM96RAZx35lJzdJsyH-qQwv8Hdp7fsn3W0YpN81IU"
)
PUBLISHABLE_KEY: Final = "sb_publishable_ACJWlzQHlZjBrEguHvfOxg_3BJgxAaH"
SECRET_KEY: Final = "sb_secret_N7UND0UgjKTVK-Uodkm0Hg_xSvEMPvz"

_FOREVER_SECONDS: Final = 10 * 365 * 86_400


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of the API of one stack; the repr shows none.

    Attributes:
        jwt_secret: signs tokens of the kind HS256.
        anon_key: the older key of browsers, such a token.
        service_role_key: the older key of servers, such a token.
        publishable_key: the newer key of browsers.
        secret_key: the newer key of servers.
    """

    jwt_secret: str = field(default=JWT_SECRET, repr=False)
    anon_key: str = field(default=ANON_KEY, repr=False)
    service_role_key: str = field(default=SERVICE_ROLE_KEY, repr=False)
    publishable_key: str = field(default=PUBLISHABLE_KEY, repr=False)
    secret_key: str = field(default=SECRET_KEY, repr=False)

    @classmethod
    def draw(cls) -> Self:
        """Return new random keys."""
        # Imported here: commands that only look for a running stack sign nothing.
        import jwt

        secret = secrets.token_urlsafe(48)
        expires = int(time.time()) + _FOREVER_SECONDS
        anon, service_role = (
            jwt.encode({"iss": "agent-runtime-local", "role": role, "exp": expires}, secret, "HS256")
            for role in ("anon", "service_role")
        )
        return cls(
            secret,
            anon,
            service_role,
            f"sb_publishable_{secrets.token_urlsafe(24)}",
            f"sb_secret_{secrets.token_urlsafe(24)}",
        )
