"""The writer: plain SQL, with what JSON and timestamps can hold, and what the table must refuse."""

import random
import time

import anyio
import asyncpg

from tests.chaos.ledger import Ledger
from tests.chaos.stage import Stage

_PAUSE_SECONDS = 0.3
_KEY = "'hostile.row'"

# What Python cannot hold: a dead letter of its own.
UNREADABLE = (
    "to_jsonb(1e131071)",
    "to_jsonb(-1e5000)",
    "to_jsonb(1e400 + 0.5)",
    "(repeat('[', 3000) || repeat(']', 3000))::jsonb",
    "(repeat('{\"a\":', 3000) || '1' || repeat('}', 3000))::jsonb",
    "(select jsonb_agg(1e131071) from generate_series(1, 20))",
    "jsonb_build_object('fine', 1, 'not', jsonb_build_array(1e9999))",
)
# Odd, and nobody's fault.
READABLE = (
    "null",
    "'null'",
    "to_jsonb(1e-16000)",
    "to_jsonb(1e4000)",
    "to_jsonb(repeat('x', 3000000))",
    "to_jsonb(repeat(E'\\u0001', 300000))",
    "(repeat('[', 190) || repeat(']', 190))::jsonb",
    "jsonb_build_object('', E'\\U0010ffff', '__proto__', '</script>', 'id', -1)",
    "(select jsonb_agg(n) from generate_series(1, 100000) n)",
)
# Columns that nobody has use for.
ODD_COLUMNS = (
    {"headers": """jsonb_build_object('reply_to', 7, 'reachable_by', 'x', 'traceparent', '[]'::jsonb)"""},
    {"headers": """jsonb_build_object('reply_to', 'no key', 'h', repeat('x', 60000))"""},
    {"agent": "repeat('\N{GRINNING FACE}', 255)", "correlation_id": "repeat(E'\\x7f', 255)"},
    {"created_at": "'0044-03-15 BC'", "expires_at": "'infinity'"},
    {"created_at": "now() + interval '30 minutes'", "parent_id": "-1"},
    {"deliver_at": "'4000-01-01 BC'", "priority": "1"},
)
REFUSED = (
    {"agent": "repeat('x', 12000000)"},
    {"correlation_id": "repeat('x', 256)"},
    {"headers": "'[1]'"},
    {"headers": "'7'"},
    {"headers": "jsonb_build_object('h', repeat('x', 1000000))"},
    {"value": "to_jsonb(repeat('x', 30000000))"},
    {"deliver_at": "'infinity'"},
    {"deliver_at": "'9999-01-01'"},
    {"created_at": "'infinity'"},
    {"created_at": "'3000-01-01'"},
    {"priority": "2"},
    {"key": "'hostile..row'"},
    {"key": "repeat('x', 256)"},
    {"key": "'hostile.*'"},
)


async def write(stage: Stage, ledger: Ledger, until: float) -> None:
    """Write until the act ends; note what was stored and what was let in that must not be."""
    while time.monotonic() < until:
        kind = random.choice(("unreadable", "readable", "columns", "refused"))
        columns = {"key": _KEY, "value": "'1'", **_columns(kind)}
        statement = (
            f"insert into public.consciousness_stream ({', '.join(columns)}, dedup_key) "
            f"values ({', '.join(columns.values())}, $1) returning id"
        )
        try:
            async with stage.connection() as connection:
                # The label outlives the answer of a connection that breaks.
                number = await connection.fetchval(statement, f"{kind} {random.randrange(2**62)}")
            ledger.driven["hostile"].append((kind, number, str(columns)[:200]))
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError):
            if kind != "refused":
                raise
            ledger.driven["hostile"].append(("was refused", 0, ""))
        except Exception:  # noqa: BLE001 - a fault has struck; whether it was committed is looked up
            await anyio.sleep(0.1)
        await anyio.sleep(random.uniform(0, _PAUSE_SECONDS))


def _columns(kind: str) -> dict[str, str]:
    if kind == "unreadable":
        return {"value": random.choice(UNREADABLE)}
    if kind == "readable":
        return {"value": random.choice(READABLE)}
    return random.choice(ODD_COLUMNS if kind == "columns" else REFUSED)
