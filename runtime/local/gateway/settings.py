"""The gateway's settings: its address, its database, its keys."""

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from runtime.local import keys


class GatewaySettings(BaseSettings):
    """The gateway's own environment, `GATEWAY_…`. Times are in seconds."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", frozen=True)

    host: str = "127.0.0.1"
    port: int = keys.API_PORT
    # For the role `authenticator`, a member of the roles that a token may name; a superuser becomes that role.
    database_url: SecretStr
    # For `supabase_realtime_admin`, which may replicate and owns realtime.messages; by default `database_url`.
    realtime_database_url: SecretStr | None = None
    jwt_secret: SecretStr = SecretStr(keys.JWT_SECRET)
    publishable_key: SecretStr = SecretStr(keys.PUBLISHABLE_KEY)
    secret_key: SecretStr = SecretStr(keys.SECRET_KEY)
    # Asymmetric keys, as `supabase gen signing-key` writes them; read again when the file has changed.
    signing_keys: Path | None = None
    # The origins of web pages that may use it, besides those of this machine: "https://app.example".
    allowed_origins: tuple[str, ...] = ()
    # The real server asks its replication slot every 100 to 500 ms.
    changes_poll_seconds: float = 0.1
    realtime_idle_seconds: float = 60.0
    realtime_handshake_refusal_seconds: float = 2.0
    realtime_join_refusal_seconds: float = 5.0
    connections: int = 10
