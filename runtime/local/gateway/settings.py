"""Where does the gateway listen, and where is its database?"""

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from runtime.local import keys


class GatewaySettings(BaseSettings):
    """The gateway's own environment, `GATEWAY_…`. Times are in seconds."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", frozen=True)

    host: str = "127.0.0.1"
    port: int = keys.API_PORT
    # As a superuser: every request becomes the role of its token, and replication needs one.
    database_url: SecretStr
    jwt_secret: SecretStr = SecretStr(keys.JWT_SECRET)
    anon_key: SecretStr = SecretStr(keys.ANON_KEY)
    service_role_key: SecretStr = SecretStr(keys.SERVICE_ROLE_KEY)
    publishable_key: SecretStr = SecretStr(keys.PUBLISHABLE_KEY)
    secret_key: SecretStr = SecretStr(keys.SECRET_KEY)
    # The real server asks its replication slot every 100 to 500 ms.
    changes_poll_seconds: float = 0.1
    realtime_idle_seconds: float = 60.0
    realtime_handshake_refusal_seconds: float = 2.0
    realtime_join_refusal_seconds: float = 5.0
    connections: int = 10
