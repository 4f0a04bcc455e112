"""What `import runtime` gives, and what it leaves unloaded."""

import subprocess
import sys

import pytest

import runtime

CLIENTS = {
    "supabase",
    "realtime",
    "websockets",
    "asyncpg",
    "httpx",
    "httptools",
    "uvloop",
    "starlette",
    "uvicorn",
}
HEAVY = CLIENTS | {
    "pydantic",
    "pydantic_settings",
    "anyio",
    "typer",
    "rich",
    "jwt",
    "psutil",
    "watchfiles",
    "jinja2",
}


def test_the_exports_are_few_and_all_there() -> None:
    names = [
        "Agent",
        "Answer",
        "BatchContext",
        "BlockingStream",
        "Broadcast",
        "Context",
        "Decision",
        "Message",
        "Priority",
        "Reject",
        "Retry",
        "RetryLater",
        "Source",
        "Step",
        "Stream",
        "TextPiece",
        "Tick",
        "WaitFor",
        "Worker",
        "connect",
        "connect_blocking",
        "drain",
    ]
    assert names == runtime.__all__
    assert set(names) <= set(dir(runtime))
    assert all(callable(getattr(runtime, name)) for name in names)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Agnet'"):
        runtime.Agnet  # type: ignore[attr-defined] # noqa: B018


EXPORTS = "from runtime import Agent, Context, Message, Priority, Reject, Retry, RetryLater"
COMMANDS = {"typer", "rich", "jwt", "psutil", "watchfiles", "jinja2"}


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [("import runtime", HEAVY), (EXPORTS, CLIENTS | COMMANDS)],
    ids=["bare", "exports"],
)
def test_declaring_agents_loads_no_client_of_any_store(statement: str, heavy: set[str]) -> None:
    assert loaded_by(statement) & heavy == set()


def test_each_store_loads_only_its_own_client() -> None:
    assert loaded_by("import runtime.worker.worker") & CLIENTS == set()
    assert loaded_by("import runtime.store.postgres, runtime.wakeups.notify") & CLIENTS == {"asyncpg"}
    assert not loaded_by("import runtime.store.supabase, runtime.wakeups.realtime") & {"asyncpg", "starlette"}


def loaded_by(statement: str) -> set[str]:
    """The outermost names of the modules that are there after a statement."""
    script = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(run.stdout.split())
