"""The status of a stack."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.local.keys import Keys


@dataclass(frozen=True, slots=True)
class StackStatus:
    """The parts of a stack that run, and how to reach them.

    Attributes:
        folder: its data folder.
        project: the folder of the project it was started for; None if its data folder was named.
        api_url: the URL of the gateway.
        db_url: the URL of the database, with its password.
        is_database_ours: false if the PostgreSQL is run by somebody else.
        is_database_running: whether our PostgreSQL runs; true if it is not ours.
        is_gateway_running: whether the gateway runs.
        keys: the keys of its API.
    """

    folder: Path
    project: Path | None
    api_url: str
    db_url: str
    is_database_ours: bool
    is_database_running: bool
    is_gateway_running: bool
    keys: Keys

    @property
    def is_running(self) -> bool:
        """Whether everything runs."""
        return self.is_database_running and self.is_gateway_running

    @property
    def stopped(self) -> list[str]:
        """The parts that do not run."""
        parts = {"database": self.is_database_running, "gateway": self.is_gateway_running}
        return [name for name, is_running in parts.items() if not is_running]

    @property
    def values(self) -> Mapping[str, str]:
        """The values of `supabase status -o env`, under the same names, as far as the stack has them."""
        return {
            "ANON_KEY": self.keys.anon_key,
            "API_URL": self.api_url,
            "DB_URL": self.db_url,
            "JWKS_URL": f"{self.api_url}/auth/v1/.well-known/jwks.json",
            "JWT_SECRET": self.keys.jwt_secret,
            "PUBLISHABLE_KEY": self.keys.publishable_key,
            "REST_URL": f"{self.api_url}/rest/v1",
            "SECRET_KEY": self.keys.secret_key,
            "SERVICE_ROLE_KEY": self.keys.service_role_key,
        }
