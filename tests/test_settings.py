"""What does the environment say, and what is told to whoever set it wrong?"""

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from runtime.errors import SettingsError
from runtime.settings import Settings

SIGNING = "a-secret-that-signs-links-of-approvals"
# Every setting, by its name in the environment, with a value it does not have by default.
GIVEN = {
    "SUPABASE_URL": ("supabase_url", "https://abc.supabase.co", "https://abc.supabase.co"),
    "API_URL": ("supabase_url", "http://127.0.0.1:54321", "http://127.0.0.1:54321"),
    "SUPABASE_SERVICE_ROLE_KEY": ("supabase_key", "a.b.c", SecretStr("a.b.c")),
    "SUPABASE_SECRET_KEY": ("supabase_key", "sb_secret_x", SecretStr("sb_secret_x")),
    "SERVICE_ROLE_KEY": ("supabase_key", "a.b.c", SecretStr("a.b.c")),
    "DATABASE_URL": ("database_url", "postgresql://u:p@h/d", SecretStr("postgresql://u:p@h/d")),
    "RUNTIME_BROADCAST": ("broadcast", "false", False),
    "RUNTIME_POSTGRES_CHANGES": ("postgres_changes", "0", False),
    "RUNTIME_NOTIFY": ("notify", "no", False),
    "RUNTIME_WEBHOOK": ("webhook", "127.0.0.1:9000", "127.0.0.1:9000"),
    "RUNTIME_WEBHOOK_SECRET": ("webhook_secret", "word", SecretStr("word")),
    "RUNTIME_WEBHOOKS_ALLOW": ("webhooks_allow", "10.0.0.0/8, intranet", "10.0.0.0/8, intranet"),
    "RUNTIME_SERVERLESS": ("serverless", "true", True),
    "RUNTIME_BUDGET_SECONDS": ("budget_seconds", "50", 50),
    "RUNTIME_AGENTS": ("agents", "shop/agents,till.py", "shop/agents,till.py"),
    "RUNTIME_SOURCES": ("sources", "[]", "[]"),
    "RUNTIME_APPROVAL_SECRET": ("approval_secret", f"{SIGNING} {SIGNING}", SecretStr(f"{SIGNING} {SIGNING}")),
    "RUNTIME_PUBLIC_URL": ("public_url", "https://agents.example/in", "https://agents.example/in"),
    "RUNTIME_MCP_TOKEN": ("mcp_token", "word", SecretStr("word")),
    "RUNTIME_MCP_WRITES": ("mcp_writes", "true", True),
    "RUNTIME_TELEMETRY": ("telemetry", "true", True),
    "RUNTIME_METRICS_PORT": ("metrics_port", "9464", 9464),
    "RUNTIME_METRICS_HOST": ("metrics_host", "0.0.0.0", "0.0.0.0"),
    "RUNTIME_CONCURRENCY": ("concurrency", "7", 7),
    "RUNTIME_LEASE_SECONDS": ("lease_seconds", "12.5", 12.5),
    "RUNTIME_DRAIN_SECONDS": ("drain_seconds", "0", 0),
    "RUNTIME_BLOCKED_LOOP_SECONDS": ("blocked_loop_seconds", "9", 9),
    "RUNTIME_SWEEP_SECONDS": ("sweep_seconds", "5", 5),
    "RUNTIME_RETENTION_DAYS": ("retention_days", "30", 30),
    "RUNTIME_UPKEEP_SECONDS": ("upkeep_seconds", "5", 5),
    "RUNTIME_POLL_FAST_SECONDS": ("poll_fast_seconds", "0.05", 0.05),
    "RUNTIME_POLL_SLOW_SECONDS": ("poll_slow_seconds", "3", 3),
    "RUNTIME_BROADCAST_GATHER_SECONDS": ("broadcast_gather_seconds", "0.5", 0.5),
    "RUNTIME_TEXT_PIECES_PER_SECOND": ("text_pieces_per_second", "20", 20),
    "RUNTIME_REQUEST_SECONDS": ("request_seconds", "4", 4),
    "RUNTIME_HEARTBEAT_SECONDS": ("heartbeat_seconds", "20", 20),
    "RUNTIME_NONCE_SECONDS": ("nonce_seconds", "6", 6),
    "RUNTIME_NONCE_DEADLINE_SECONDS": ("nonce_deadline_seconds", "3", 3),
    "RUNTIME_LOG_FORMAT": ("log_format", "json", "json"),
    "RUNTIME_LOG_LEVEL": ("log_level", "debug", "debug"),
}
# Each of them is refused without the other.
TOGETHER = {"RUNTIME_APPROVAL_SECRET": "RUNTIME_PUBLIC_URL", "RUNTIME_PUBLIC_URL": "RUNTIME_APPROVAL_SECRET"}
PASSWORD_CURE = "percent-encoded"
NO_URL = "must look like https://"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that says nothing, in a folder without a .env."""
    for name in list(os.environ):
        if name in GIVEN or name.startswith("RUNTIME_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_every_setting_is_listed_here() -> None:
    listed = {field for field, _, _ in GIVEN.values()}
    assert listed == set(Settings.model_fields)


def test_every_setting_says_what_it_is_and_bears_its_unit() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if field.annotation in (float, float | None):
            assert name.endswith(("_seconds", "_days"))


@pytest.mark.parametrize("name", GIVEN)
def test_it_comes_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    field, text, value = GIVEN[name]
    assert getattr(Settings.load(), field) != value
    monkeypatch.setenv(name, text)
    if (other := TOGETHER.get(name)) is not None:
        monkeypatch.setenv(other, GIVEN[other][1])
    assert getattr(Settings.load(), field) == value


@pytest.mark.parametrize("name", GIVEN)
def test_it_comes_from_a_file_and_the_environment_wins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    field, text, value = GIVEN[name]
    Path(".env").write_text(f'{name}="{text}"\nSOMETHING_ELSE=1\n')
    if (with_it := TOGETHER.get(name)) is not None:
        monkeypatch.setenv(with_it, GIVEN[with_it][1])
    assert getattr(Settings.load(), field) == value
    other = {"lease_seconds": 40.0}
    monkeypatch.setenv("RUNTIME_LEASE_SECONDS", "40")
    assert Settings.load().lease_seconds == other["lease_seconds"]


@pytest.mark.parametrize(
    ("secret", "url", "told"),
    [
        (SIGNING, None, "RUNTIME_PUBLIC_URL is not"),
        (" ", "https://agents.example", "RUNTIME_APPROVAL_SECRET is not"),
        (f"{SIGNING} short-old-one", "https://agents.example", "at least 32 bytes"),
        (SIGNING, "agents.example", "must look like https://"),
        (SIGNING, "https://agents.example/?in", "must look like https://"),
        (SIGNING, "https://ada:word@agents.example", "must look like https://"),
    ],
)
def test_links_need_a_secret_nobody_guesses_and_where_they_lead(
    secret: str, url: str | None, told: str
) -> None:
    with pytest.raises(SettingsError, match=told) as refused:
        Settings.load(approval_secret=secret, public_url=url)
    assert not [each for each in (SIGNING, "short-old", "word") if each in str(refused.value)]


def test_what_is_given_wins_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_LEASE_SECONDS", "40")
    assert Settings.load(lease_seconds=3).lease_seconds == 3


def test_a_line_to_be_filled_in_is_not_set() -> None:
    Path(".env").write_text("SUPABASE_URL=\nSUPABASE_SECRET_KEY=\nDATABASE_URL=\nRUNTIME_SWEEP_SECONDS=\n")
    settings = Settings.load()
    assert (settings.supabase_url, settings.supabase_key, settings.database_url) == (None, None, None)


def test_white_space_around_is_nobodys_intention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_URL", " https://abc.supabase.co/ \n")
    monkeypatch.setenv("SUPABASE_SECRET_KEY", " sb_secret_x\n")
    settings = Settings.load()
    assert settings.supabase_url == "https://abc.supabase.co"
    assert settings.supabase_key == SecretStr("sb_secret_x")


@pytest.mark.parametrize("suffix", ["", "/", "/rest/v1", "/rest/v1/", "/auth/v1"])
def test_the_urls_parts_people_copy_along_do_no_harm(suffix: str) -> None:
    assert Settings.load(supabase_url=f"http://a.b{suffix}").supabase_url == "http://a.b"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("RUNTIME_LEASE_SECONDS", "s3cret", "RUNTIME_LEASE_SECONDS: input should be a valid number"),
        ("RUNTIME_LEASE_SECONDS", "nan", "RUNTIME_LEASE_SECONDS: input should be a finite number"),
        ("RUNTIME_SWEEP_SECONDS", "inf", "RUNTIME_SWEEP_SECONDS: input should be a finite number"),
        ("RUNTIME_LEASE_SECONDS", "0", "greater than or equal to 1"),
        ("RUNTIME_HEARTBEAT_SECONDS", "99", "RUNTIME_HEARTBEAT_SECONDS: input should be less than or equal to 30"),
        ("RUNTIME_NOTIFY", "s3cret", "RUNTIME_NOTIFY: input should be a valid boolean"),
        ("RUNTIME_LOG_LEVEL", "s3cret", "'debug', 'info', 'warning' or 'error'"),
        ("RUNTIME_POLL_SLOW_SECONDS", "0.01", "must not be less than RUNTIME_POLL_FAST_SECONDS"),
        ("SUPABASE_URL", "s3cret", NO_URL),
        ("SUPABASE_URL", "ftp://s3cret", NO_URL),
        ("SUPABASE_URL", "https://[s3cret", NO_URL),
        ("SUPABASE_URL", "https://a:s3cret", NO_URL),
        ("SUPABASE_URL", "https://user:s3cret@host", "without user"),
        ("SUPABASE_URL", "https://supabase.com/dashboard/project/abcdef", "use https://abcdef.supabase.co"),
        ("SUPABASE_URL", "https://app.supabase.com", "use https://<ref>.supabase.co"),
        ("SUPABASE_SECRET_KEY", "s3cret with space", "SUPABASE_SECRET_KEY"),
        ("SUPABASE_SECRET_KEY", "sb_s3cret_…", "SUPABASE_SECRET_KEY"),
        ("DATABASE_URL", "mysql://u:s3cret@h", "postgresql://"),
        ("DATABASE_URL", "postgresql://u:pa/s3cret@h/d", PASSWORD_CURE),
        ("DATABASE_URL", "postgresql://u:12/s3cret@h/d", PASSWORD_CURE),
        ("DATABASE_URL", "postgresql://u:pa#s3cret@h/d", PASSWORD_CURE),
        ("DATABASE_URL", "postgresql://u:12?s3cret@h/d", PASSWORD_CURE),
        ("DATABASE_URL", "postgresql://u:[s3cret]@h/d", PASSWORD_CURE),
        ("DATABASE_URL", "postgresql://u:[YOUR-PASSWORD]@h/d", "placeholder"),
    ],
)  # fmt: skip
def test_a_wrong_one_is_told_in_a_sentence_without_its_value(
    name: str, text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(SettingsError) as error:
        Settings.load()
    assert words in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert "s3cret" not in str(error.value)
    assert error.value.__cause__ is None


def test_two_wrong_ones_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_SWEEP_SECONDS", "x")
    monkeypatch.setenv("RUNTIME_CONCURRENCY", "0")
    with pytest.raises(
        SettingsError, match=r"RUNTIME_CONCURRENCY.*RUNTIME_SWEEP_SECONDS|RUNTIME_SWEEP_SECONDS.*RUNTIME_CONC"
    ):
        Settings.load()


def test_a_file_that_is_no_text_is_told() -> None:
    Path(".env").write_bytes(b"SUPABASE_URL=\xff\xfe\n")
    with pytest.raises(SettingsError, match=r"\.env cannot be read"):
        Settings.load()


def test_secrets_are_in_no_repr() -> None:
    settings = Settings.load(supabase_key="sb_secret_word", database_url="postgresql://u:word@h/d")
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert "word" not in text


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.load().concurrency = 2  # type: ignore[misc]


@pytest.mark.parametrize(("given", "meant"), [("lease", "lease_seconds"), ("concurency", "concurrency")])
def test_a_setting_that_does_not_exist_is_refused_in_code(given: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=rf"take no {given}=…; did you mean {meant}\?"):
        Settings.load(**{given: 3})
