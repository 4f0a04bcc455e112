"""A project's URL and key come from one source, together; other mixtures are refused, without the key's text."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from runtime.client.factories import open_store, settings_of
from runtime.errors import SettingsError
from runtime.settings import Settings
from supabase import create_async_client

OURS = {"SUPABASE_URL": "https://ours.supabase.co", "SUPABASE_SERVICE_ROLE_KEY": "ours.s3cret.key"}
CLI = {"API_URL": "http://127.0.0.1:54321", "SERVICE_ROLE_KEY": "local.s3cret.key"}
OTHER = "https://api.other.example"
STAGING = "https://staging.supabase.co"


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Say":
    """An environment and a .env that hold what a test puts there and nothing else."""
    monkeypatch.chdir(tmp_path)
    return Say(monkeypatch, tmp_path / ".env")


class Say:
    """Puts variables into the environment and the file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
        self._monkeypatch, self._file = monkeypatch, file

    def __call__(self, environment: dict[str, str], file: dict[str, str]) -> Settings:
        for name, text in environment.items():
            self._monkeypatch.setenv(name, text)
        self._file.write_text("".join(f'{name}="{text}"\n' for name, text in file.items()))
        return Settings.load()


def pair(settings: Settings) -> tuple[str | None, str | None]:
    """The URL and the key that are used."""
    key = settings.supabase_key
    return settings.supabase_url, None if key is None else key.get_secret_value()


PAIR = tuple(OURS.values())
LOCAL = tuple(CLI.values())


@pytest.mark.parametrize(
    ("environment", "file", "used"),
    [
        (OURS, {}, PAIR),
        ({}, OURS, PAIR),
        (CLI, {}, LOCAL),
        ({}, CLI, LOCAL),
        # Supabase's own name wins over the command line's, wherever it stands.
        ({"API_URL": OTHER}, OURS, PAIR),
        ({"API_URL": "http://127.0.0.1:8000"}, OURS, PAIR),
        (CLI, OURS, PAIR),
        (OURS, CLI, PAIR),
        ({"API_URL": OTHER}, CLI, LOCAL),
        # The source of the URL gives the key.
        ({"SUPABASE_SERVICE_ROLE_KEY": "stale.s3cret.key"}, OURS, PAIR),
        ({"SERVICE_ROLE_KEY": "stale.s3cret.key"}, OURS, PAIR),
        (OURS, {"SUPABASE_URL": STAGING, "SUPABASE_SECRET_KEY": "sb_secret_staging"}, PAIR),
        (OURS, {"SUPABASE_SECRET_KEY": "sb_secret_staging"}, PAIR),
        # Both name the same project: then either's key is its key.
        ({"SUPABASE_URL": "https://OURS.supabase.co/"}, OURS, ("https://ours.supabase.co", PAIR[1])),
        ({"SUPABASE_URL": ""}, OURS, PAIR),
        ({"SUPABASE_URL": " ", "SUPABASE_SECRET_KEY": '""'}, OURS, PAIR),
        ({"SUPABASE_URL": STAGING}, {}, (STAGING, None)),
    ],
)
def test_n4_url_and_key_come_from_one_source(
    say: Say, environment: dict[str, str], file: dict[str, str], used: tuple[str, str]
) -> None:
    assert pair(say(environment, file)) == used


@pytest.mark.parametrize(
    ("environment", "file"),
    [
        ({"SUPABASE_URL": STAGING}, OURS),
        ({"SUPABASE_URL": STAGING}, {"SUPABASE_SERVICE_ROLE_KEY": PAIR[1]}),
        ({"SUPABASE_SERVICE_ROLE_KEY": PAIR[1]}, {"SUPABASE_URL": STAGING}),
        ({"SUPABASE_URL": STAGING}, CLI),
        ({"API_URL": "http://127.0.0.1:54321"}, {"SERVICE_ROLE_KEY": PAIR[1]}),
        ({"SUPABASE_SECRET_KEY": "sb_secret_s3cret"}, {"API_URL": "http://127.0.0.1:54321"}),
        (CLI, {"SUPABASE_URL": STAGING}),
    ],
)
def test_n4_a_key_goes_to_no_url_of_another_source(
    say: Say, environment: dict[str, str], file: dict[str, str]
) -> None:
    with pytest.raises(SettingsError, match="a key goes only to the URL that stands beside it") as caught:
        say(environment, file)
    assert "s3cret" not in str(caught.value)
    assert ".env" in str(caught.value)
    assert "the environment" in str(caught.value)


@pytest.mark.parametrize(
    "url", [OTHER, "http://192.168.1.5:54321", "http://localhost.example", "127.0.0.1", "::"]
)
def test_n4_api_url_counts_for_this_machine_alone(say: Say, url: str) -> None:
    assert say({"API_URL": url, "SERVICE_ROLE_KEY": "local.s3cret.key"}, {}).supabase_url is None


@pytest.mark.parametrize(
    "url", ["http://localhost:54321", "http://127.0.0.2:1", "http://[::1]:54321", CLI["API_URL"]]
)
def test_n4_this_machine_has_several_names(say: Say, url: str) -> None:
    assert say({"API_URL": url, "SERVICE_ROLE_KEY": "local.s3cret.key"}, {}).supabase_url == url


@pytest.mark.anyio
async def test_n4_an_api_url_that_does_not_count_is_named(say: Say) -> None:
    settings = say({"API_URL": OTHER, "SERVICE_ROLE_KEY": "local.s3cret.key"}, {})
    with pytest.raises(SettingsError, match=r"API_URL of the environment is not used.*Set SUPABASE_URL"):
        await open_store(settings)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SUPABASE_KEY", "Rename it"),
        ("SERVICE_KEY", "Rename it"),
        ("SUPABASE_SERVICE_KEY", "Rename it"),
        ("SUPABASE_ANON_KEY", "of the role anon"),
        ("ANON_KEY", "of the role anon"),
        ("SUPABASE_PUBLISHABLE_KEY", "of the role anon"),
    ],
)
async def test_n8_a_key_under_another_name_is_named(say: Say, name: str, words: str) -> None:
    settings = say({}, {"SUPABASE_URL": STAGING, name: "s3cret"})
    with pytest.raises(SettingsError, match=rf"{name} of .*\.env is not used.*{words}") as caught:
        await open_store(settings)
    assert "s3cret" not in str(caught.value)


def test_n4_what_is_given_in_code_is_one_source_too(say: Say) -> None:
    say(OURS, {})
    assert pair(Settings.load(supabase_url=STAGING)) == (STAGING, None)
    assert pair(Settings.load(supabase_url=PAIR[0])) == PAIR
    assert pair(Settings.load(supabase_url=STAGING, supabase_key="a.b.c")) == (STAGING, "a.b.c")
    assert pair(Settings.load(supabase_key="a.b.c")) == (PAIR[0], "a.b.c")
    assert pair(Settings.load(supabase_url=None)) == (None, None)


def test_n4_what_is_used_and_where_it_came_from_is_told(say: Say) -> None:
    settings = say({"DATABASE_URL": "postgresql://u:s3cret@db.example:6000/postgres"}, OURS)
    file = Path(".env").resolve()
    assert settings.describe_stream() == (
        f"https://ours.supabase.co (SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY of {file}) and the database at "
        "db.example:6000 (DATABASE_URL of the environment)"
    )
    placed = settings.with_stream(
        "the local stack", supabase_url="http://127.0.0.1:1", supabase_key=SecretStr("x"), database_url=None
    )
    assert "the local stack" in placed.describe_stream()
    assert (
        "the code"
        in Settings.load(supabase_url=STAGING, supabase_key="x", database_url=None).describe_stream()
    )
    assert "s3cret" not in settings.describe_stream()


@pytest.mark.anyio
async def test_n4_of_a_client_of_the_user_s_own_that_is_told(say: Say) -> None:
    client = await create_async_client("http://own.example", "sb_secret_own")
    settings = settings_of(client, say(OURS, {}))
    assert settings.describe_stream().startswith("http://own.example (SUPABASE_URL")
    assert "the client" in settings.describe_stream()
    await client.postgrest.aclose()
