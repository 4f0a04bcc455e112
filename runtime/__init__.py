"""A realtime event-driven agent runtime on Supabase: agents wake on a row, and nothing is lost."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.agent.agent import Agent
    from runtime.agent.approval import Decision
    from runtime.agent.batch import BatchContext
    from runtime.agent.context import Context
    from runtime.agent.retry import Reject, Retry, RetryLater
    from runtime.agent.schedule import Tick
    from runtime.agent.source import Source
    from runtime.agent.step_call import Step
    from runtime.agent.waiting import WaitFor
    from runtime.broadcast import Broadcast
    from runtime.client.blocking import BlockingStream, connect_blocking
    from runtime.client.stream import Stream, connect
    from runtime.client.text_follower import TextPiece
    from runtime.message import Answer, Message, Priority
    from runtime.worker.serverless import drain
    from runtime.worker.worker import Worker

__all__ = [
    "Agent", "Answer", "BatchContext", "BlockingStream", "Broadcast", "Context", "Decision", "Message", "Priority",
    "Reject", "Retry", "RetryLater", "Source", "Step", "Stream", "TextPiece", "Tick", "WaitFor", "Worker", "connect",
    "connect_blocking", "drain",
]  # fmt: skip

_HOMES = {
    "Agent": "agent.agent", "Answer": "message", "BatchContext": "agent.batch", "BlockingStream": "client.blocking",
    "Broadcast": "broadcast", "Context": "agent.context",
    "Decision": "agent.approval", "Message": "message", "Priority": "message",
    "Reject": "agent.retry", "Retry": "agent.retry", "RetryLater": "agent.retry", "Source": "agent.source",
    "Step": "agent.step_call", "Stream": "client.stream", "TextPiece": "client.text_follower", "Tick": "agent.schedule",
    "WaitFor": "agent.waiting", "Worker": "worker.worker",
    "connect": "client.stream", "connect_blocking": "client.blocking", "drain": "worker.serverless",
}  # fmt: skip

if not TYPE_CHECKING:  # A type checker must go on refusing names that do not exist.

    def __getattr__(name: str) -> object:
        """Load an export at its first use: a module of agents needs no client of any store."""
        if name not in _HOMES:
            raise AttributeError(f"module 'runtime' has no attribute {name!r}")
        export = getattr(import_module(f"runtime.{_HOMES[name]}"), name)
        globals()[name] = export
        return export


def __dir__() -> list[str]:
    """The exports, for completion in a shell."""
    return sorted({*globals(), *__all__})
