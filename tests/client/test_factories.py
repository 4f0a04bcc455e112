"""Which store and which wake-ups do the settings mean?"""

from pathlib import Path
from uuid import uuid4

import jwt
import pytest

from runtime.cli.checks.access import check_claims
from runtime.cli.checks.finding import Verdict
from runtime.client.factories import open_store, open_wakeups, reachable_by, settings_of
from runtime.client.stream import connect
from runtime.errors import SettingsError
from runtime.settings import Settings
from runtime.store.postgres import PostgresStore
from runtime.store.sqlstates import missing
from runtime.store.supabase import SupabaseStore
from runtime.wakeups.notify import NotifyWakeups
from runtime.wakeups.realtime import RealtimeWakeups
from supabase import create_async_client, create_client

pytestmark = pytest.mark.anyio

REST = {"supabase_url": "http://a.example", "supabase_key": "sb_secret_x"}
DIRECT = {"database_url": "postgresql://postgres:word@db.example/postgres"}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "SUPABASE_URL", "API_URL", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SECRET_KEY", "SERVICE_ROLE_KEY",
        "DATABASE_URL",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


async def test_a_database_url_means_the_direct_store_also_beside_a_project() -> None:
    store = await open_store(Settings.load(**REST, **DIRECT))
    assert isinstance(store, PostgresStore)
    assert store.place == "db.example:5432"


async def test_a_project_means_the_store_over_rest() -> None:
    store = await open_store(Settings.load(**REST))
    assert isinstance(store, SupabaseStore)
    assert store.place == "http://a.example"
    await store.close()


@pytest.mark.parametrize("given", [{}, {"supabase_url": "http://a.example"}, {"supabase_key": "x"}])
async def test_nothing_or_half_of_it_says_what_to_set(given: dict[str, str]) -> None:
    cure = "give supabase_key too" if "supabase_url" in given else "SUPABASE_URL.*runtime local start"
    with pytest.raises(SettingsError, match=cure):
        await open_store(Settings.load(**given))


async def test_the_users_own_client_wins_and_stays_open() -> None:
    client = await create_async_client("http://own.example", "sb_secret_own")
    store = await open_store(Settings.load(**REST, **DIRECT), client)
    assert isinstance(store, SupabaseStore)
    assert store.place == "http://own.example"
    await store.close()
    assert not client.postgrest.session.is_closed
    await client.postgrest.aclose()


async def test_wakeups_come_from_where_the_users_own_client_is() -> None:
    client = await create_async_client("http://own.example", "sb_secret_own")
    settings = settings_of(client, Settings.load(**REST, **DIRECT))
    assert settings.supabase_url == "http://own.example"
    assert settings.supabase_key is not None
    assert settings.supabase_key.get_secret_value() == "sb_secret_own"
    assert [type(each) for each in open_wakeups(settings, uuid4(), ["a"])] == [RealtimeWakeups]


@pytest.mark.parametrize(
    ("given", "paths", "ways"),
    [
        ({**REST}, ["broadcast", "postgres_changes"], ("realtime",)),
        ({**REST, "broadcast": False}, ["postgres_changes"], ()),
        ({**REST, "postgres_changes": False}, ["broadcast"], ("realtime",)),
        ({**REST, "postgres_changes": False, "broadcast": False}, [], ()),
        ({**DIRECT}, ["notify"], ("notify",)),
        ({**DIRECT, "notify": False}, [], ()),
        ({**REST, **DIRECT}, ["broadcast", "postgres_changes", "notify"], ("realtime", "notify")),
    ],
)
def test_every_path_is_there_that_is_not_switched_off(
    given: dict[str, object], paths: list[str], ways: tuple[str, ...]
) -> None:
    sources = open_wakeups(Settings.load(**given), uuid4(), ["a.b"])
    assert [path for source in sources for path in source.paths] == paths
    assert reachable_by(sources) == ways
    assert all(isinstance(source, (RealtimeWakeups, NotifyWakeups)) for source in sources)


async def test_n8_a_wrong_client_is_named_with_the_line_that_makes_a_right_one() -> None:
    waiting = create_async_client("http://own.example", "sb_secret_own")
    for wrong, words in (
        (create_client("http://own.example", "sb_secret_own"), "without async"),
        (waiting, "not awaited"),
        ("http://own.example", "str"),
        (object(), "object"),
        (Settings, "no client of supabase"),
    ):
        with pytest.raises(SettingsError, match=rf"{words}.*create_async_client"):
            await open_store(Settings.load(**REST), wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="connect\\(client=…\\)"):
        async with connect("http://own.example"):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize(
    ("url", "ref", "is_other"),
    [
        ("https://abcdefghijklmnopqrst.supabase.co", "abcdefghijklmnopqrst", False),
        ("https://ABCDEFGHIJKLMNOPQRST.supabase.co", "abcdefghijklmnopqrst", False),
        ("https://zyxwvutsrqponmlkjihg.supabase.co", "abcdefghijklmnopqrst", True),
        ("https://my-brand.supabase.co", "abcdefghijklmnopqrst", False),
        ("https://api.shop.example", "abcdefghijklmnopqrst", False),
        ("http://kong:8000", "abcdefghijklmnopqrst", False),
        ("http://kong.supabase.svc.cluster.local:8000", "abcdefghijklmnopqrst", False),
        ("http://supabase_kong_shop:8000", "abcdefghijklmnopqrst", False),
    ],
)
def test_n8_a_name_of_one_s_own_is_no_fault(url: str, ref: str, is_other: bool) -> None:
    key = jwt.encode({"role": "service_role", "ref": ref, "exp": 9_999_999_999}, "x" * 32)
    found = check_claims(Settings.load(supabase_url=url, supabase_key=key))
    assert (found.verdict is Verdict.FAULT) == is_other, found
    database = f"postgresql://postgres:word@db.{ref}.supabase.co/postgres"
    if is_other:
        with pytest.raises(SettingsError, match=ref):
            Settings.load(supabase_url=url, supabase_key=key, database_url=database)
    else:
        Settings.load(supabase_url=url, supabase_key=key, database_url=database)


@pytest.mark.parametrize("quote", ['"', "'"])
def test_n8_quotes_around_are_nobody_s_intention(quote: str) -> None:
    settings = Settings.load(
        supabase_url=f"{quote}https://a.example/{quote}",
        supabase_key=f" {quote}sb_secret_x{quote} ",
        database_url=f"{quote}postgresql://u:p@h/d{quote}",
    )
    assert settings.supabase_url == "https://a.example"
    assert settings.supabase_key is not None
    assert settings.supabase_key.get_secret_value() == "sb_secret_x"
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://u:p@h/d"


@pytest.mark.parametrize("code", ["PGRST202", "PGRST203", "PGRST205"])
def test_n8_an_old_schema_cache_has_its_cure(code: str) -> None:
    told = str(missing("Could not find the function", place="http://a.example", code=code))
    assert "notify pgrst, 'reload schema'" in told
    assert "notify pgrst" not in str(missing("no such function", place="db", code="42883"))
