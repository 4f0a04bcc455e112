"""What `import runtime` gives, and what it leaves unloaded."""

import subprocess
import sys

import pytest

import runtime

HEAVY = ["supabase", "realtime", "websockets", "asyncpg", "starlette", "uvicorn", "httpx"]


def test_the_exports_are_few_and_all_there() -> None:
    names = ["Agent", "Context", "Message", "Priority", "Reject", "Retry", "RetryLater", "Tick", "connect"]
    assert names == runtime.__all__
    assert set(names) <= set(dir(runtime))
    assert all(callable(getattr(runtime, name)) for name in names)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Agnet'"):
        runtime.Agnet  # type: ignore[attr-defined] # noqa: B018


@pytest.mark.parametrize(
    "statement",
    ["import runtime", "from runtime import Agent, Context, Message, Priority, Reject, Retry, RetryLater"],
)
def test_declaring_agents_loads_no_client_of_any_store(statement: str) -> None:
    script = f"{statement}; import sys; print(*({set(HEAVY)} & set(sys.modules)))"
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == ""
