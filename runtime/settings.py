"""What does the environment say? Read once, passed in, never read again."""

from typing import Literal, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from runtime.addresses import DatabaseAddress, check_key, project_url
from runtime.allowance import Allowed
from runtime.errors import SettingsError
from runtime.secrets import given

_PREFIX = "RUNTIME_"
# Settings that may be absent: a blank, or quotes around nothing, leaves them so.
_UNSET_WHEN_BLANK = (
    "supabase_url", "supabase_key", "database_url", "webhook", "webhook_secret", "metrics_port", "retention_days",
)  # fmt: skip


class Settings(BaseSettings):
    """Everything that can be set from outside, with its default.

    Names in the environment are the field names in capitals with the prefix `RUNTIME_`, but for the Supabase
    variables, which keep the names every Supabase project uses; those of `supabase status -o env` do too. A
    `.env` file in the working directory is read as well; the environment wins.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_file=".env",
        # `SUPABASE_URL=` in a file is a line to be filled in.
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        str_strip_whitespace=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    supabase_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("SUPABASE_URL", "API_URL"),
        description="The project's URL, such as https://<ref>.supabase.co.",
    )
    supabase_key: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SECRET_KEY", "SERVICE_ROLE_KEY"),
        description="The service_role JWT or an sb_secret_… key.",
    )
    database_url: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("DATABASE_URL"),
        description="A PostgreSQL URL: adds the direct store, the fast path.",
    )

    broadcast: bool = Field(default=True, description="Listen to Realtime broadcast from the database.")
    postgres_changes: bool = Field(default=True, description="Listen to Realtime postgres_changes.")
    notify: bool = Field(default=True, description="LISTEN for NOTIFY when there is a direct connection.")

    webhook: str | None = Field(
        default=None, description="HOST:PORT where a Supabase Database Webhook may post, as one more wake-up."
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="What the webhook sends as `authorization: Bearer …` or `x-webhook-secret`."
    )
    webhooks_allow: str = Field(
        default="",
        description="Hosts, addresses and networks, with commas between them, that webhooks out may reach though "
        "they are private, and by plain http; * for all.",
    )

    serverless: bool = Field(
        default=False,
        description="For `runtime.asgi:app`: run no worker, and drain what is due when called.",
    )
    budget_seconds: float = Field(
        default=25, ge=1, description="How long one call of a serverless application may take."
    )
    agents: str = Field(
        default="",
        description="For `runtime.asgi:app`: files, folders and modules of agents, with commas between.",
    )
    sources: str = Field(
        default="",
        description="For `runtime.asgi:app` and `runtime serve`: sources of webhooks, as a JSON list of objects.",
    )

    telemetry: bool = Field(
        default=False, description="Make OpenTelemetry spans and metrics; needs the extra `otel`."
    )
    metrics_port: int | None = Field(
        default=None, ge=0, le=65_535, description="Port for /metrics, /healthz and /readyz; none by default."
    )
    metrics_host: str = Field(default="127.0.0.1", description="The address that port is opened at.")

    concurrency: int = Field(default=100, ge=1, description="Handlers running at once in one worker.")
    lease_seconds: float = Field(
        default=30, ge=1, description="How long a delivery stays taken without renewal."
    )
    drain_seconds: float = Field(
        default=30, ge=0, description="How long running handlers may finish at shutdown."
    )
    blocked_loop_seconds: float = Field(
        default=60, ge=1, description="How long a handler may block its event loop before its leases lapse."
    )
    sweep_seconds: float = Field(
        default=20, ge=1, description="How often a worker looks though nothing woke it."
    )
    retention_days: float | None = Field(
        default=None, ge=0, description="How long messages are kept; for ever by default."
    )
    upkeep_seconds: float = Field(
        default=60, gt=0, description="How often the elected worker removes what is too old."
    )
    poll_fast_seconds: float = Field(default=0.1, gt=0, description="Polling interval right after activity.")
    poll_slow_seconds: float = Field(default=2.0, gt=0, description="Polling interval when nothing happens.")
    say_seconds: float = Field(
        default=0.1, ge=0, description="How long what is said gathers before it is sent in one frame."
    )
    request_seconds: float = Field(
        default=15, gt=0, description="How long one request to the store may take."
    )
    heartbeat_seconds: float = Field(default=25, gt=0, le=30, description="Realtime heartbeat interval.")
    nonce_seconds: float = Field(
        default=60, gt=0, description="How often the push path is proved end to end."
    )
    nonce_deadline_seconds: float = Field(
        default=10, gt=0, description="How long a nonce may take before the path counts as deaf."
    )
    log_format: Literal["auto", "lines", "json"] = Field(
        default="auto", description="How a worker's log is written; auto: JSON where stderr is no terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level logged."
    )

    @field_validator(*_UNSET_WHEN_BLANK, mode="before")
    @classmethod
    def _blank_is_none(cls, value: object) -> object:
        if value is None or isinstance(value, str | SecretStr):
            return given(value)
        return value

    @field_validator("supabase_url")
    @classmethod
    def _is_project_url(cls, url: str | None) -> str | None:
        return None if url is None else project_url(url)

    @field_validator("supabase_key")
    @classmethod
    def _is_key(cls, key: SecretStr | None) -> SecretStr | None:
        return None if key is None else SecretStr(check_key(key.get_secret_value()))

    @field_validator("database_url")
    @classmethod
    def _is_database_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            DatabaseAddress.parse(url.get_secret_value())
        return url

    @field_validator("webhooks_allow")
    @classmethod
    def _is_allowance(cls, text: str) -> str:
        Allowed.parse(text)
        return text

    @model_validator(mode="after")
    def _paces_agree(self) -> Self:
        if self.poll_slow_seconds < self.poll_fast_seconds:
            raise ValueError("RUNTIME_POLL_SLOW_SECONDS must not be less than RUNTIME_POLL_FAST_SECONDS")
        return self

    @classmethod
    def load(cls, **overrides: object) -> Self:
        """Read the environment once.

        Args:
            overrides: fields by name that win over the environment.

        Raises:
            SettingsError: a variable does not hold what its field needs. Values are not repeated: one may
                be a secret.
        """
        try:
            return cls(**overrides)  # type: ignore[arg-type]
        except ValidationError as error:
            wrong = " ".join(
                dict.fromkeys(
                    _sentence(item) for item in error.errors(include_input=False, include_url=False)
                )
            )
            raise SettingsError(f"{wrong} Mend the environment or the file .env.") from None
        except (OSError, UnicodeError):
            raise SettingsError("The file .env cannot be read: it must be a text file in UTF-8.") from None


def _sentence(item: ErrorDetails) -> str:
    """What is wrong with one setting, by the name it has in the environment."""
    # pydantic's word for a validator that raised ValueError.
    text = item["msg"].removeprefix("Value error, ").rstrip(".")
    field = str(item["loc"][0]) if item["loc"] else ""
    known = Settings.model_fields.get(field)
    if known is not None and known.validation_alias is None:
        field = f"{_PREFIX}{field}".upper()
    text = text[:1].lower() + text[1:] if field else text
    return f"{field}: {text}." if field else f"{text}."
