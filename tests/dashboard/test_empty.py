"""Do the pages teach, and claim no fault, while nothing has been written yet?"""

import anyio
import httpx

from runtime.client.stream import connect
from runtime.dashboard.app import make_app
from runtime.dashboard.context import DashboardContext
from runtime.dashboard.live_state import LiveState
from runtime.dashboard.samples import sample_of
from runtime.dashboard.schemas import Declared, Schemas
from runtime.dashboard.security import Guard
from runtime.settings import Settings

SCHEMA = {
    "type": "object", "required": ["subject", "of"],
    "properties": {
        "subject": {"type": "string"}, "urgent": {"type": "boolean", "default": False},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "default": ["a"]},
        "of": {"$ref": "#/$defs/Customer"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    },
    "$defs": {
        "Customer": {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer", "minimum": 18}}}
    },
}  # fmt: skip


async def pages(url: str, schemas: Schemas) -> dict[str, str]:
    """The pages of an empty stream, and the stream's after its first message."""
    settings = Settings.load(database_url=url, supabase_url=None, supabase_key=None)
    await schemas.read()
    async with connect(settings) as stream:
        guard = Guard(80, None)
        app = make_app(DashboardContext(stream, LiveState(stream), guard, schemas), guard)
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            paths = ("/", "/?pattern=a.*", "/overview", "/write", "/agents", "/dead")
            found = {path: (await client.get(path)).text for path in paths}
            await stream.send("task.created", {})
            return found | {"later": (await client.get("/")).text}


def test_an_empty_stream_teaches_and_only_a_filter_matches_nothing(database: str) -> None:
    found = anyio.run(pages, database, Schemas())
    assert "runtime send task.created" in found["/"]
    assert "/write?key=task.created" in found["/"]
    assert "No message matches" not in found["/"]
    assert "No message matches" in found["/?pattern=a.*"]
    assert "Nothing to mend" in found["/overview"]
    assert "runtime run agents/" in found["/overview"]
    assert "Name a key" in found["/write"]
    assert "runtime dashboard PATH" in found["/write"]
    assert "runtime send" not in found["later"]
    # Each row links its conversation once: on a phone a second link left its key no room.
    assert found["later"].count(">conversation</a>") == 1


def test_write_says_which_agents_cannot_be_read_and_asks_for_no_path_that_was_given(database: str) -> None:
    found = anyio.run(pages, database, Schemas(["no/such/agents.py"]))
    assert "no/such/agents.py" in found["/write"]
    assert "no value is checked" in found["/write"]
    assert "runtime dashboard PATH" not in found["/write"]


def test_a_sample_is_what_its_schema_takes() -> None:
    declared = Declared(("ticket.opened",), schema=SCHEMA)
    sample = sample_of(declared)
    assert sample == {"subject": "text", "urgent": False, "tags": ["a"], "of": {"age": 18}}
    assert declared.complaints(sample) == []
    assert sample_of(None) == {}
