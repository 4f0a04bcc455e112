"""Addresses of databases as every client writes them: read, translated, or refused before any connection."""

from pathlib import Path
from typing import Any

import asyncpg
import pytest

from runtime.connection.addresses import DatabaseAddress, project_ref
from runtime.errors import SettingsError
from runtime.local.bootstrap import connected
from runtime.settings import Settings
from runtime.store.postgres import PostgresStore
from tests.conftest import Cluster

pytestmark = pytest.mark.anyio

POOLER = "aws-0-eu-central-1.pooler.supabase.com"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variables of libpq, no files of its in the home, no .env."""
    import os

    for name in list(os.environ):
        if name.startswith("PG") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def read_by_driver(url: str) -> tuple[Any, Any]:
    """What asyncpg makes of a URL: the addresses, and the parameters."""
    from asyncpg.connect_utils import _parse_connect_dsn_and_args

    names = (
        "host", "port", "user", "password", "passfile", "database", "ssl", "service", "servicefile", "direct_tls",
        "server_settings", "target_session_attrs", "krbsrvname", "gsslib",
    )  # fmt: skip
    found: tuple[Any, Any] = _parse_connect_dsn_and_args(dsn=url, **dict.fromkeys(names))
    return found


@pytest.mark.parametrize(
    ("url", "user", "password", "hosts", "database"),
    [
        ("postgresql://u:p@h.example/d", "u", "p", [("h.example", 5432)], "d"),
        ("postgres://u:p@h.example:6000/d", "u", "p", [("h.example", 6000)], "d"),
        ("POSTGRESQL://u:p@H.example/d", "u", "p", [("H.example", 5432)], "d"),
        ("postgresql+asyncpg://u:p@h.example/d", "u", "p", [("h.example", 5432)], "d"),
        ("postgresql+psycopg2://u:p@h.example/d", "u", "p", [("h.example", 5432)], "d"),
        ("postgres+psycopg://u:p@h.example/d", "u", "p", [("h.example", 5432)], "d"),
        ("jdbc:postgresql://h.example:5433/d?user=u&password=p", "u", "p", [("h.example", 5433)], "d"),
        ("psql 'postgresql://u:p@h.example/d?sslmode=require'", "u", "p", [("h.example", 5432)], "d"),
        ('"postgresql://u:p@h.example/d"', "u", "p", [("h.example", 5432)], "d"),
        ("  postgresql://u:p@h.example/d/ \n", "u", "p", [("h.example", 5432)], "d"),
        ("postgresql://u:p@ss@h.example/d", "u", "p@ss", [("h.example", 5432)], "d"),
        ("postgresql://u:p@@@h.example/d", "u", "p@@", [("h.example", 5432)], "d"),
        ("postgresql://u:p%40s%2Fs%23%3F@h.example/d", "u", "p@s/s#?", [("h.example", 5432)], "d"),
        ("postgresql://u:p:q:r@h.example/d", "u", "p:q:r", [("h.example", 5432)], "d"),
        ("postgresql://u:100%pure@h.example/d", "u", "100%pure", [("h.example", 5432)], "d"),
        ("postgresql://u:a+b=c&d!$*@h.example/d", "u", "a+b=c&d!$*", [("h.example", 5432)], "d"),
        ("postgresql://u:pä€@h.example/d", "u", "pä€", [("h.example", 5432)], "d"),
        ("postgresql://u@h.example/d?password=a+b", "u", "a+b", [("h.example", 5432)], "d"),
        (f"postgresql://postgres.abc:p@{POOLER}:5432/postgres", "postgres.abc", "p", [(POOLER, 5432)], "postgres"),
        ("postgresql://u:p@[::1]:5433/d", "u", "p", [("::1", 5433)], "d"),
        ("postgresql://u:p@[2001:db8::1]/d", "u", "p", [("2001:db8::1", 5432)], "d"),
        ("postgresql://u:p@a:1,b:2,c/d", "u", "p", [("a", 1), ("b", 2), ("c", 5432)], "d"),
        ("postgresql://u:p@[::1],b:2/d", "u", "p", [("::1", 5432), ("b", 2)], "d"),
        ("postgresql://u:p@a,b/d?port=1,2", "u", "p", [("a", 1), ("b", 2)], "d"),
        ("postgresql://u:p@a/d?port=7", "u", "p", [("a", 7)], "d"),
        ("postgresql:///d?host=/run/Pg&user=u&password=p", "u", "p", ["/run/Pg/.s.PGSQL.5432"], "d"),
        ("postgresql://u:p@/d?host=/cloudsql/x:y:z", "u", "p", ["/cloudsql/x:y:z/.s.PGSQL.5432"], "d"),
        ("postgresql://u:p@%2Frun%2FPg:6000/d", "u", "p", ["/run/Pg/.s.PGSQL.6000"], "d"),
        ("postgresql://u:p@/d?host=h.example&port=6000", "u", "p", [("h.example", 6000)], "d"),
        ("postgresql://u:p@h.example?dbname=d", "u", "p", [("h.example", 5432)], "d"),
        ("postgresql://u:p@h.example/my%20db#here", "u", "p", [("h.example", 5432)], "my db"),
    ],
)  # fmt: skip
def test_n1_the_driver_reads_what_was_meant(
    url: str, user: str, password: str, hosts: list[Any], database: str
) -> None:
    addresses, parameters = read_by_driver(DatabaseAddress.parse(url).url)
    assert (parameters.user, parameters.password, parameters.database) == (user, password, database)
    assert addresses == hosts
    assert not parameters.server_settings


# Each as some client, page or framework writes it; a test connects with all of them.
PARAMETERS = [
    "connect_timeout=10", "channel_binding=require", "channel_binding=prefer&sslmode=prefer", "gssencmode=disable",
    "keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3", "tcp_user_timeout=1000",
    "client_encoding=utf8", "fallback_application_name=x", "application_name=shop", "target_session_attrs=read-write",
    "target_session_attrs=any", "load_balance_hosts=disable", "sslnegotiation=postgres", "sslcompression=0",
    "sslsni=1", "krbsrvname=postgres", "options=-c%20statement_timeout%3D50000", "options=-csearch_path%3Dpublic",
    "statement_timeout=50000&lock_timeout=4000", "idle_in_transaction_session_timeout=60000", "TimeZone=UTC",
    "search_path=public", "app.tenant=7",
    "ssl=false", "ssl=prefer", "sslmode=disable", "sslmode=allow", "sslmode=prefer", "ssl=0", "SSLMode=Disable",
    "pgbouncer=true", "pgbouncer=true&connection_limit=1&pool_timeout=0", "schema=public", "socket_timeout=5",
    "statement_cache_size=0", "connection_limit=5&sslmode=prefer",
    "supa=base-pooler.x", "workaround=supabase-pooler.vercel", "uselibpqcompat=true&sslmode=prefer",
    "pool=5&prepared_statements=false", "encoding=unicode", "conn_max_age=600", "pool_max_conns=10",
    "default_query_exec_mode=simple_protocol", "prepared_statement_cache_size=0", "prepareThreshold=0",
    "currentSchema=public&ApplicationName=shop&reWriteBatchedInserts=true", "ssl=false&loginTimeout=2",
    "async_fallback=True", "max_overflow=3&pool_size=5&pool_pre_ping=true", "max=10&idle_timeout=20",
    "statusColor=686B6F&env=local&name=shop&tLSMode=0&usePrivateKey=false&LazyLoad=true", "", "&&", "connect_timeout",
    "sslmode=&application_name=",
]  # fmt: skip


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> Any:
    """The URL of a migrated database."""
    name = cluster.make_database()
    yield cluster.url(name)
    cluster.drop_database(name)


async def test_n1_a_store_connects_with_every_client_s_parameters(database: str) -> None:
    assert len(PARAMETERS) >= 35
    for parameters in PARAMETERS:
        store = PostgresStore(f"{database}?{parameters}")
        try:
            assert await store.check_schema(), parameters
        finally:
            await store.close()


async def test_n1_settings_of_the_server_reach_it(database: str) -> None:
    for parameters, name, value in (
        ("options=-c%20statement_timeout%3D50000", "statement_timeout", "50s"),
        ("statement_timeout=40000", "statement_timeout", "40s"),
        ("TimeZone=Asia/Tokyo", "timezone", "Asia/Tokyo"),
        ("app.tenant=7", "app.tenant", "7"),
        ("ApplicationName=shop", "application_name", "shop"),
    ):
        connection = await asyncpg.connect(DatabaseAddress.parse(f"{database}?{parameters}").url)
        assert await connection.fetchval("select current_setting($1)", name) == value
        await connection.close()


@pytest.mark.parametrize(
    ("parameters", "mode"),
    [
        ("ssl=true", "require"), ("ssl=1", "require"), ("ssl=require", "require"), ("ssl", "require"),
        ("ssl=no-verify", "require"), ("sslmode=no-verify", "require"), ("sslmode=require&ssl=false", "require"),
        ('ssl={"rejectUnauthorized":false}', "require"), ("sslaccept=accept_invalid_certs", "require"),
        ("sslmode=require&sslaccept=strict", "verify_full"), ("ssl=verify-full&sslrootcert=system", "verify_full"),
        ("sslmode=verify_ca&sslrootcert=system", "verify_ca"), ("ssl=false", "disable"), ("", "prefer"),
    ],
)  # fmt: skip
def test_n1_every_client_s_word_for_encryption_is_understood(parameters: str, mode: str) -> None:
    _, read = read_by_driver(DatabaseAddress.parse(f"postgresql://u:p@h.example/d?{parameters}").url)
    assert read.sslmode.name == mode


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://u:s3cret@h/d", "postgresql://"),
        ("prisma://accelerate.example/?api_key=s3cret", "Prisma"),
        ("prisma+postgres://localhost:1/?api_key=s3cret", "Prisma"),
        ("host=h user=u password=s3cret", "postgresql://"),
        ("postgresql://u:s3cret@h/d?foo=bar", "'foo'"),
        ("postgresql://u:s3cret@h/d?sslmode=s3cret", "sslmode"),
        ("postgresql://u:s3cret@h/d?ssl=s3cret", "sslmode"),
        ("postgresql://u:s3cret@h/d?target_session_attrs=s3cret", "target_session_attrs"),
        ("postgresql://u:s3cret@h/d?sslmode=require&sslrootcert=/nowhere/s3cret.crt", "sslrootcert"),
        ("postgresql://u:s3cret@h/d?sslcert=/nowhere/s3cret.crt", "sslcert"),
        ("postgresql://u:s3cret@h/d?sslmode=verify-full", "sslrootcert"),
        ("postgresql://u:s3cret@h/d?sslmode=verify-ca", "sslrootcert"),
        ("postgresql://u:s3cret@h:port/d", "port"),
        ("postgresql://u:s3cret@h:0/d", "port"),
        ("postgresql://u:s3cret@h:99999/d", "port"),
        ("postgresql://u:s3cret@h/d?port=s3cret", "port"),
        ("postgresql://u:s3cret@a,,b/d", "host"),
        ("postgresql://u:s3cret@::1/d", "brackets"),
        ("postgresql://u:s3cret@[::1/d", "brackets"),
        ("postgresql://u:s3/cret@h/d", "percent-encoded"),
        ("postgresql://u:s3#cret@h/d", "percent-encoded"),
        ("postgresql://u:s3?cret@h/d", "percent-encoded"),
        ("postgresql://u:s3 cret@h/d", "percent-encoded"),
        ("postgresql://u:s3\ncret@h/d", "percent-encoded"),
        ("postgresql://u:[s3cret]@h/d", "brackets"),
        ("postgresql://u:[YOUR-PASSWORD]@h/d", "placeholder"),
    ],
)
def test_n1_what_cannot_be_read_is_a_settings_error_before_any_connection(url: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(database_url=url)
    said = str(caught.value)
    assert words in said
    assert "DATABASE_URL" in said
    assert "s3cret" not in said
    assert "cret" not in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PGSSLMODE", "s3cret"),
        ("PGTARGETSESSIONATTRS", "s3cret"),
        ("PGSSLCERT", "/nowhere/s3cret.crt"),
        ("PGPORT", "s3cret"),
        ("PGPORT", "5432,5433"),
    ],
)
def test_n1_a_wrong_variable_of_libpq_is_named(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(SettingsError, match=name) as caught:
        DatabaseAddress.parse("postgresql://u:p@h.example/d")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_n1_a_wrong_certificate_is_named(
    content: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "ca.crt"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("PGSSLROOTCERT", str(file))
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    with pytest.raises(SettingsError, match="PGSSLROOTCERT"):
        DatabaseAddress.parse("postgresql://u:p@h.example/d")


@pytest.mark.parametrize(
    "variables",
    [
        {"PGSSLMODE": "require"},
        {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/nowhere.crt"},
        {"PGHOST": "elsewhere.example", "PGPORT": "6000", "PGDATABASE": "other", "PGUSER": "other"},
        {"PGPASSWORD": "other", "PGSERVICE": "other"},
    ],
)
async def test_n1_variables_of_libpq_say_nothing_of_a_whole_local_address(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    store = PostgresStore(database)
    assert await store.check_schema()
    await store.close()
    async with connected(database) as connection:
        assert await connection.fetchval("select 1") == 1


@pytest.mark.parametrize(
    ("url", "ref"),
    [
        ("postgresql://postgres:p@db.abc.supabase.co:5432/postgres", "abc"),
        ("postgresql://postgres:p@DB.ABC.supabase.co/postgres", "abc"),
        (f"postgresql://postgres.abc:p@{POOLER}:6543/postgres", "abc"),
        (f"postgresql://app.role.abc:p@{POOLER}:6543/postgres", "abc"),
        (f"postgresql://postgres:p@{POOLER}/postgres", None),
        ("postgresql://postgres.abc:p@db.example/postgres", None),
    ],
)
def test_n5_an_address_names_its_project(url: str, ref: str | None) -> None:
    assert DatabaseAddress.parse(url).ref == ref


@pytest.mark.parametrize(
    ("url", "ref"),
    [
        ("https://abc.supabase.co", "abc"),
        ("https://ABC.supabase.co", "abc"),
        ("https://abc.supabase.red", "abc"),
        ("https://api.shop.example", None),
        ("http://kong:8000", None),
        ("http://127.0.0.1:54321", None),
    ],
)
def test_n5_a_url_names_its_project(url: str, ref: str | None) -> None:
    assert project_ref(url) == ref


HOSTED = "https://abc.supabase.co"


@pytest.mark.parametrize(
    "database",
    [
        "postgresql://postgres:s3cret@db.other.supabase.co/postgres",
        f"postgresql://postgres.other:s3cret@{POOLER}/postgres",
    ],
)
def test_n5_two_projects_are_refused(database: str) -> None:
    with pytest.raises(SettingsError, match=r"abc.*other") as caught:
        Settings.load(supabase_url=HOSTED, supabase_key="a.b.c", database_url=database)
    assert "s3cret" not in str(caught.value)
    for url in ("https://other.supabase.co", "https://OTHER.supabase.co", "https://api.shop.example"):
        assert Settings.load(supabase_url=url, supabase_key="a.b.c", database_url=database)
