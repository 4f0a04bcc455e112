"""The settings, read once from the environment and passed in."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    AliasChoices,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from runtime.connection.addresses import (
    DatabaseAddress,
    are_two_projects,
    check_key,
    project_ref,
    project_url,
)
from runtime.connection.allow_list import AllowList
from runtime.connection.environment import non_blank
from runtime.connection.local_stack import running_stack
from runtime.connection.project import DATABASE_NAME, KEY_NAMES, URL_NAMES, Origin, beside_code, choose
from runtime.connection.public_url import check_links
from runtime.errors import SettingsError, did_you_mean, nearest

_log = logging.getLogger("runtime.settings")
_PREFIX = "RUNTIME_"
# No variable or argument can have this name.
_ORIGIN = "the origin"
# Variables that other parts of the package read.
_OTHER_VARIABLES = {"RUNTIME_LOCAL_DIR", "RUNTIME_DASHBOARD_TOKEN"}
_told: set[str] = set()
# Optional settings: a blank, or empty quotes, counts as unset.
_UNSET_WHEN_BLANK = (
    "supabase_url", "supabase_key", "database_url", "webhook", "webhook_secret", "metrics_port", "retention_days",
    "approval_secret", "public_url", "mcp_token",
)  # fmt: skip


class _OneSource(PydanticBaseSettingsSource):
    """The environment over the file .env, with a project's URL and key both from one of the two."""

    def __init__(
        self, settings: type[BaseSettings], environment: EnvSettingsSource, file: EnvSettingsSource
    ) -> None:
        super().__init__(settings)
        self._environment, self._file = environment, file

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Return nothing: the two sources read their fields themselves."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the values of both sources, by the names of the variables."""
        sources = {
            "the environment": _capitals(self._environment.env_vars),
            str(Path(".env").resolve()): _capitals(self._file.env_vars),
        }
        _tell_misspelt(sources)
        code = self.current_state
        known = Settings.model_fields.keys() | {*URL_NAMES, *KEY_NAMES, DATABASE_NAME}
        if unknown := sorted(code.keys() - known):
            meant = did_you_mean(unknown[0], Settings.model_fields) or "."
            raise SettingsError(f"Settings(…) take no {unknown[0]}=…{meant}")
        is_placed = "supabase_url" in code or any(name in code for name in URL_NAMES)
        has_key = "supabase_key" in code or any(name in code for name in KEY_NAMES)
        if is_placed:
            url = next((code[name] for name in ("supabase_url", *URL_NAMES) if name in code), None)
            origin = beside_code(sources, None if url is None else str(url), has_key=has_key)
        else:
            origin = choose(sources, has_key=has_key)
        together = {**self._file(), **self._environment()}
        for name in ("supabase_url", "supabase_key", *URL_NAMES, *KEY_NAMES):
            together.pop(name, None)
        for found in (origin.url, origin.key):
            if found is not None:
                together[found[0]] = sources[found[1]][found[0]]
        if origin.database is not None:
            together[DATABASE_NAME] = sources[origin.database[1]][DATABASE_NAME]
        together[_ORIGIN] = origin
        return together


def _tell_misspelt(sources: Mapping[str, Mapping[str, str]]) -> None:
    """Warn, once in a process, of variables `RUNTIME_…` that are none but nearly one."""
    known = {f"{_PREFIX}{name}".upper() for name in Settings.model_fields} | _OTHER_VARIABLES
    for source, variables in sources.items():
        for name in variables:
            if not name.startswith(_PREFIX) or name in known or name in _told:
                continue
            _told.add(name)
            if (meant := nearest(name, known)) is not None:
                _log.warning(
                    "%s of %s is no setting, and has no effect; did you mean %s?", name, source, meant
                )


def _capitals(variables: Mapping[str, str | None]) -> dict[str, str]:
    return {name.upper(): text for name, text in variables.items() if text}


class Settings(BaseSettings):
    """All settings, with their defaults.

    Names in the environment are the field names in capitals with the prefix `RUNTIME_`, except the Supabase variables:
    they have the names that every Supabase project uses, or those of `supabase status -o env`. A `.env` file in the
    working directory is read too; the environment takes precedence. A project's URL and its key come together from one
    of the two.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_file=".env",
        # `SUPABASE_URL=` in a file is a line not filled in yet.
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
        validation_alias=AliasChoices(*URL_NAMES),
        description="The project's URL, such as https://<ref>.supabase.co.",
    )
    supabase_key: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices(*KEY_NAMES),
        description="An sb_secret_… key or the service_role JWT.",
    )
    database_url: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices(DATABASE_NAME),
        description="A PostgreSQL URL: adds the direct store, the fast path.",
    )

    broadcast: bool = Field(default=True, description="Listen to Realtime broadcast from the database.")
    postgres_changes: bool = Field(default=True, description="Listen to Realtime postgres_changes.")
    notify: bool = Field(default=True, description="LISTEN for NOTIFY when there is a direct connection.")

    webhook: str | None = Field(
        default=None,
        description="HOST:PORT where a Supabase Database Webhook may post, as a wake-up; needs the extra `serve`.",
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="What the webhook sends as `authorization: Bearer …` or `x-webhook-secret`."
    )
    webhooks_allow: str = Field(
        default="",
        description="Private hosts, addresses and networks, with commas between, that webhooks out may reach, also by "
        "plain http; * for all.",
    )

    serverless: bool = Field(
        default=False,
        description="For `runtime.asgi:app`: run no worker, and handle what is due in each request.",
    )
    budget_seconds: float = Field(default=25, ge=1, description="Time limit of one serverless call.")
    agents: str = Field(
        default="",
        description="For `runtime.asgi:app`: files, folders and modules of agents, with commas between.",
    )
    sources: str = Field(
        default="",
        description="For `runtime.asgi:app` and `runtime serve`: sources of webhooks, as a JSON list of objects.",
    )

    approval_secret: SecretStr | None = Field(
        default=None,
        description="Signs the links that decide approvals: 32 bytes at least, an old one after a space; with "
        "RUNTIME_PUBLIC_URL.",
    )
    public_url: str | None = Field(
        default=None,
        description="Where people reach `runtime serve`, or the host application, with the path it is mounted at.",
    )

    mcp_token: SecretStr | None = Field(
        default=None, description="Bearer token of `/mcp` in `runtime.asgi`; needs the extra `mcp`."
    )
    mcp_writes: bool = Field(default=False, description="Whether tools over MCP may write to the stream.")

    telemetry: bool = Field(
        default=False, description="OpenTelemetry spans and metrics; needs the extra `otel`."
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65_535,
        description="Port for /metrics, /healthz and /readyz, none by default; needs the extra `serve`.",
    )
    metrics_host: str = Field(default="127.0.0.1", description="The address that port is opened at.")

    concurrency: int = Field(default=100, ge=1, description="Handlers running at once in one worker.")
    lease_seconds: float = Field(default=30, ge=1, description="How long a lease lasts without renewal.")
    drain_seconds: float = Field(default=30, ge=0, description="Time for running handlers at shutdown.")
    blocked_loop_seconds: float = Field(
        default=60, ge=1, description="How long a handler may block its event loop before its leases lapse."
    )
    sweep_seconds: float = Field(default=20, ge=1, description="Interval of looks without a wake-up.")
    retention_days: float | None = Field(
        default=None, ge=0, description="How long messages are kept; for ever by default."
    )
    upkeep_seconds: float = Field(
        default=60, gt=0, description="How often the elected worker removes messages past the retention."
    )
    poll_fast_seconds: float = Field(default=0.1, gt=0, description="Polling interval right after activity.")
    poll_slow_seconds: float = Field(default=2.0, gt=0, description="Polling interval when idle.")
    broadcast_gather_seconds: float = Field(
        default=0.08, ge=0, description="How long broadcasts gather before they are sent in one frame."
    )
    text_pieces_per_second: int = Field(
        default=50,
        ge=1,
        description="Broadcasts a second for texts that are being written, in all workers of the project together.",
    )
    request_seconds: float = Field(default=15, gt=0, description="Time limit of a request to the store.")
    heartbeat_seconds: float = Field(default=25, gt=0, le=30, description="Realtime heartbeat interval.")
    nonce_seconds: float = Field(default=60, gt=0, description="How often push paths are tested end to end.")
    nonce_deadline_seconds: float = Field(
        default=10, gt=0, description="How long a nonce may take before its path counts as broken."
    )
    log_format: Literal["auto", "lines", "json"] = Field(
        default="auto", description="The format of a worker's log; auto: JSON if stderr is no terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The lowest level that is logged."
    )

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the environment and the file as one source, which keeps a project's URL and key together."""
        assert isinstance(env_settings, EnvSettingsSource)
        assert isinstance(dotenv_settings, EnvSettingsSource)
        return init_settings, _OneSource(settings_cls, env_settings, dotenv_settings), file_secret_settings

    @model_validator(mode="wrap")
    @classmethod
    def _keeps_origin(cls, data: Any, make: ModelWrapValidatorHandler[Self]) -> Self:
        origin = data.pop(_ORIGIN, None) if isinstance(data, dict) else None
        settings = make(data)
        if isinstance(origin, Origin):
            settings._origin = origin
        return settings

    @property
    def origin(self) -> Origin:
        """The variables, with their sources, that say where the stream is."""
        return self._origin

    def describe_stream(self) -> str:
        """Return which stream this is and which variables say so, without secrets."""
        url = None if self.database_url is None else self.database_url.get_secret_value()
        return self._origin.sentence(
            self.supabase_url, None if url is None else DatabaseAddress.parse(url).place
        )

    def with_stream(self, source: str, **stream: object) -> Self:
        """Return the settings with a stream from another source than the environment.

        Args:
            source: its name for people: "the local stack".
            stream: supabase_url, supabase_key, database_url.
        """
        copy = self.model_copy(update=stream)
        url = None if copy.supabase_url is None else ("SUPABASE_URL", source)
        copy._origin = Origin(url, url and ("its key", source), None)
        return copy

    @field_validator(*_UNSET_WHEN_BLANK, mode="before")
    @classmethod
    def _blank_is_none(cls, value: object) -> object:
        if value is None or isinstance(value, str | SecretStr):
            return non_blank(value)
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
        AllowList.parse(text)
        return text

    @model_validator(mode="after")
    def _paces_agree(self) -> Self:
        if self.poll_slow_seconds < self.poll_fast_seconds:
            raise ValueError("RUNTIME_POLL_SLOW_SECONDS must not be less than RUNTIME_POLL_FAST_SECONDS")
        return self

    @model_validator(mode="after")
    def _links_are_whole(self) -> Self:
        secret = self.approval_secret
        check_links(None if secret is None else secret.get_secret_value(), self.public_url)
        return self

    @model_validator(mode="after")
    def _is_one_project(self) -> Self:
        if self.supabase_url is None or self.database_url is None:
            return self
        one, other = (
            project_ref(self.supabase_url),
            DatabaseAddress.parse(self.database_url.get_secret_value()).ref,
        )
        if are_two_projects(one, other):
            raise ValueError(
                f"SUPABASE_URL is of the project {one}, and DATABASE_URL of the project {other}: messages would be "
                "stored in one and announced in the other. Take both from the same project"
            )
        return self

    @classmethod
    def find(cls, **overrides: object) -> Self:
        """Read the environment; if it names no stream, use the local stack of the project here, if that runs.

        Args:
            overrides: as for `load`.

        Raises:
            SettingsError: a variable has a wrong value, or the project's `supabase/config.toml` cannot be read.
        """
        settings = cls.load(**overrides)
        if settings.supabase_url is not None or settings.database_url is not None:
            return settings
        stack = running_stack()
        if stack is None:
            # Opening the store raises the error that says what to set.
            return settings
        if settings.origin.typo:
            _log.warning("%s The local stack is used.", settings.origin.typo)
        key = SecretStr(stack.secret_key)
        return settings.with_stream("the local stack", supabase_url=stack.api_url, supabase_key=key)

    @classmethod
    def load(cls, **overrides: object) -> Self:
        """Read the environment once.

        Args:
            overrides: fields by name that win over the environment.

        Raises:
            SettingsError: a variable has a wrong value, which is not repeated: it may be a secret.
        """
        try:
            return cls(**overrides)  # type: ignore[arg-type]
        except ValidationError as error:
            items = error.errors(include_input=False, include_url=False)
            wrong = " ".join(dict.fromkeys(_sentence(item) for item in items))
            raise SettingsError(f"{wrong} Correct the environment or the file .env.") from None
        except (OSError, UnicodeError):
            raise SettingsError("The file .env cannot be read: it must be a text file in UTF-8.") from None


def _sentence(item: ErrorDetails) -> str:
    """Say what is wrong with one setting, by its name in the environment."""
    # pydantic's prefix for a validator that raised ValueError.
    text = item["msg"].removeprefix("Value error, ").rstrip(".")
    field = str(item["loc"][0]) if item["loc"] else ""
    known = Settings.model_fields.get(field)
    if known is not None and known.validation_alias is None:
        field = f"{_PREFIX}{field}".upper()
    text = text[:1].lower() + text[1:] if field else text
    return f"{field}: {text}." if field else f"{text}."
