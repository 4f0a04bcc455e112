"""A realtime event-driven agent runtime on Supabase: agents wake on a row, and nothing is lost."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.agent import Agent
    from runtime.batch import BatchContext
    from runtime.context import Context
    from runtime.message import Answer, Message, Priority
    from runtime.retry import Reject, Retry, RetryLater
    from runtime.said import Said
    from runtime.schedule import Tick
    from runtime.serverless import drain
    from runtime.stream import connect
    from runtime.webhooks.sources import Source

__all__ = [
    "Agent", "Answer", "BatchContext", "Context", "Message", "Priority", "Reject", "Retry", "RetryLater", "Said",
    "Source", "Tick", "connect", "drain",
]  # fmt: skip

_HOMES = {
    "Agent": "runtime.agent",
    "Answer": "runtime.message",
    "BatchContext": "runtime.batch",
    "Context": "runtime.context",
    "Message": "runtime.message",
    "Priority": "runtime.message",
    "Reject": "runtime.retry",
    "Retry": "runtime.retry",
    "RetryLater": "runtime.retry",
    "Said": "runtime.said",
    "Source": "runtime.webhooks.sources",
    "Tick": "runtime.schedule",
    "connect": "runtime.stream",
    "drain": "runtime.serverless",
}

if not TYPE_CHECKING:  # A type checker must go on refusing names that do not exist.

    def __getattr__(name: str) -> object:
        """Load an export when it is first asked for: a module of agents needs no client of any store."""
        if name not in _HOMES:
            raise AttributeError(f"module 'runtime' has no attribute {name!r}")
        export = getattr(import_module(_HOMES[name]), name)
        globals()[name] = export
        return export


def __dir__() -> list[str]:
    """The exports, for completion in a shell."""
    return sorted({*globals(), *__all__})
