"""The parameters of database URLs, as PostgreSQL's many clients write them: kept, translated or ignored."""

import re
from typing import Final
from urllib.parse import unquote

from runtime.errors import SettingsError

# Parameters of the driver itself.
_DRIVERS: Final = frozenset(
    {
        "host", "port", "dbname", "database", "user", "password", "passfile", "service", "sslmode", "sslcert", "sslkey",
        "sslrootcert", "sslcrl", "sslpassword", "ssl_min_protocol_version", "ssl_max_protocol_version",
        "target_session_attrs", "krbsrvname",
    }
)  # fmt: skip
# Settings of the server, which the driver passes on. Settings that the runtime itself depends on are not among them.
_SERVERS: Final = frozenset(
    {
        "application_name", "options", "role", "search_path", "timezone", "statement_timeout", "lock_timeout",
        "idle_in_transaction_session_timeout", "idle_session_timeout", "transaction_timeout", "work_mem", "jit",
        "default_transaction_read_only", "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count",
        "default_transaction_isolation", "datestyle", "intervalstyle", "extra_float_digits", "client_min_messages",
    }
)  # fmt: skip
# Parameters of other clients, ignored: pooling, waiting, preparing and retrying follow the runtime's own settings; and
# those of libpq that the driver does not have.
_OTHERS: Final = frozenset(
    name
    for line in (
        # libpq
        "connect_timeout keepalives keepalives_idle keepalives_interval keepalives_count tcp_user_timeout gssencmode",
        "gssdelegation gsslib channel_binding require_auth requirepeer requiressl sslcompression sslsni sslcertmode",
        "sslcrldir hostaddr client_encoding fallback_application_name load_balance_hosts min_protocol_version",
        "max_protocol_version replication sslnegotiation",
        # Prisma
        "pgbouncer connection_limit pool_timeout socket_timeout schema statement_cache_size sslidentity",
        "max_idle_connection_lifetime max_connection_lifetime single_use_connections",
        # Vercel, node-postgres, postgres.js, Drizzle
        "supa workaround uselibpqcompat max min pool pool_size pool_max pool_min idle_timeout idletimeoutmillis",
        "connectiontimeoutmillis query_timeout max_lifetime prepare fetch_types keepalive timeout",
        # Rails, Django
        "encoding prepared_statements reaping_frequency checkout_timeout variables advisory_locks conn_max_age",
        "conn_health_checks disable_server_side_cursors charset",
        # pgx, lib/pq
        "pool_max_conns pool_min_conns pool_min_idle_conns pool_max_conn_lifetime pool_max_conn_lifetime_jitter",
        "pool_max_conn_idle_time pool_health_check_period default_query_exec_mode statement_cache_capacity",
        "description_cache_capacity binary_parameters sslinline",
        # SQLAlchemy, asyncpg, psycopg
        "prepared_statement_cache_size prepared_statement_name_func async_fallback command_timeout min_size max_size",
        "minsize maxsize max_overflow pool_recycle pool_pre_ping pool_use_lifo prepare_threshold",
        # JDBC
        "currentschema preparethreshold preparedstatementcachequeries preparedstatementcachesizemib preferquerymode",
        "rewritebatchedinserts stringtype targetservertype loadbalancehosts defaultrowfetchsize binarytransfer",
        "autosave readonly readonlymode connecttimeout logintimeout sockettimeout tcpkeepalive sslfactory",
        "sslresponsetimeout assumeminserverversion useunicode characterencoding hostrecheckseconds cancelsignaltimeout",
        # TablePlus
        "statuscolor env name label tlsmode useprivatekey safemodelevel advancedsafemodelevel driverversion lazyload",
    )
    for name in line.split()
)
_RENAMED: Final = {"applicationname": "application_name", "tz": "timezone"}
# The sslmode for the words of clients in other languages.
_TLS: Final = {
    "true": "require", "1": "require", "yes": "require", "on": "require", "require": "require", "required": "require",
    "no-verify": "require", "noverify": "require", "": "require", "allow": "allow", "prefer": "prefer",
    "preferred": "prefer", "false": "disable", "0": "disable", "no": "disable", "off": "disable", "disable": "disable",
    "disabled": "disable", "verify-ca": "verify-ca", "verify_ca": "verify-ca", "verify-full": "verify-full",
    "verify_full": "verify-full", "verify_identity": "verify-full",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,40}", re.ASCII)


def translate(query: str) -> tuple[dict[str, str], bool]:
    """Return the parameters for the driver, and whether one of them tells that a transaction pooler listens there.

    Args:
        query: of the URL, still encoded.

    Raises:
        SettingsError: no known client has a parameter of this name, or its value is wrong.
    """
    given: dict[str, str] = {}
    for pair in query.split("&"):
        name, _, text = pair.partition("=")
        if name:
            # Not parse_qs: libpq does not read + as a blank, and a password may hold a +.
            given[unquote(name)] = unquote(text)
    kept: dict[str, str] = {}
    is_pooled = False
    for name, text in given.items():
        small = _RENAMED.get(name.lower(), name.lower())
        is_pooled = is_pooled or (small == "pgbouncer" and text.lower() in ("true", "1", "yes"))
        # A name with a dot is a setting of an extension or a custom one.
        if small in _DRIVERS or small in _SERVERS or re.fullmatch(r"[a-z_]+\.[a-z_]+", small):
            if text:
                kept[small] = text
        elif small not in _OTHERS and small not in ("ssl", "sslaccept"):
            raise SettingsError(_unknown(name))
    _settle_tls(kept, {name.lower(): text for name, text in given.items()})
    return kept, is_pooled


def _settle_tls(kept: dict[str, str], given: dict[str, str]) -> None:
    """Set one `sslmode` from the words of any client."""
    mode = given.get("sslmode") or given.get("ssl")
    if mode is not None and (mode or "ssl" in given):
        # node-postgres takes an object; the only one in use is {"rejectUnauthorized": false}.
        settled = "require" if mode.startswith("{") else _TLS.get(mode.lower().strip(), "")
        if not settled:
            raise SettingsError(
                "sslmode in DATABASE_URL must be one of disable, allow, prefer, require, verify-ca and verify-full."
            )
        kept["sslmode"] = settled
    if given.get("sslaccept") == "strict":
        # Prisma calls the authority's certificate sslcert.
        authority = kept.pop("sslcert", "system") if "sslkey" not in kept else "system"
        kept["sslmode"] = "verify-full"
        kept.setdefault("sslrootcert", authority)
    elif "sslaccept" in given:
        kept.setdefault("sslmode", "require")


def _unknown(name: str) -> str:
    shown = f"the parameter {name!r}" if _NAME.fullmatch(name) else "a parameter"
    return (
        f"DATABASE_URL has {shown}, which neither PostgreSQL nor any known client of it has: remove it. (It follows a "
        "?. If that belongs to the password, write it as %3F.)"
    )
