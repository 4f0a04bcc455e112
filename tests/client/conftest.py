"""What the tests of clients share."""

import pytest


@pytest.fixture
def nothing_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, a handler that asks waits in its process; `tests/worker` has those that do not."""
    monkeypatch.setattr("runtime.worker.execution.services.GRACE_SECONDS", 600.0)
