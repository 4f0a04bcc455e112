"""The schemas of values, taken from the handlers' code in a process of its own.

The dashboard imports no agent itself: their files change while it runs, and what they do at import is not its business.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import anyio

from runtime.client.json_schema import complaints
from runtime.encoding.json import decode

_log = logging.getLogger("runtime.dashboard.schemas")
_READ_SECONDS: Final = 20.0
_READ: Final = """
import json, sys
from runtime.agent.discovery import discover
from runtime.errors import DiscoveryError
def schema(signature):
    adapters = [signature.value[1]] if signature.value else []
    adapters += [each for _, each in signature.messages]
    for adapter in adapters:
        if adapter is not None:
            try:
                return adapter.json_schema()
            except Exception:
                return None
try:
    told = {"handlers": {
        handler.name: {
            "patterns": handler.patterns, "emits": handler.emits, "deliver": handler.deliver,
            "schema": schema(handler.signature),
        }
        for agent in discover(sys.argv[1:]) for handler in agent.handlers
    }}
except DiscoveryError as error:
    told = {"fault": str(error)}
print("\\n" + json.dumps(told))
"""


@dataclass(frozen=True, slots=True)
class Declared:
    """The declaration of one handler.

    Attributes:
        emits: the key its result is written under.
        schema: the JSON schema of the value it takes; None where it takes any.
        deliver: whether one worker gets a message, or each process.
    """

    patterns: tuple[str, ...]
    emits: str | None = None
    schema: Mapping[str, Any] | None = None
    deliver: str = "once"

    def complaints(self, value: object) -> list[str]:
        """Return what is wrong with a value, a sentence each."""
        return [] if self.schema is None else complaints(self.schema, value)


@dataclass
class Schemas:
    """The declarations of the agents at these paths.

    Args:
        paths: what `runtime run` takes.

    Attributes:
        declared: what was read last, by the handlers' names.
        fault: why they could not be read the last time, with file and line; None if they could, or were not yet.
    """

    paths: Sequence[str] = ()
    declared: dict[str, Declared] = field(default_factory=dict)
    fault: str | None = None

    async def read(self) -> None:
        """Read the declarations again; if agents cannot be imported, the previous declarations stay."""
        if not self.paths:
            return
        told, fault = await self._told()
        if told is not None:
            self.declared = {
                name: Declared(tuple(each["patterns"]), each["emits"], each["schema"], each["deliver"])
                for name, each in told.items()
            }
        if fault and fault != self.fault:
            _log.warning("the agents cannot be read, so Write cannot check values by them: %s", fault)
        self.fault = fault

    async def _told(self) -> tuple[dict[str, Any] | None, str | None]:
        """Return the handlers by their names, or why they cannot be read."""
        with anyio.move_on_after(_READ_SECONDS):
            result = await anyio.run_process([sys.executable, "-c", _READ, *self.paths], check=False)
            if result.returncode == 0:
                told = decode(result.stdout.strip().rpartition(b"\n")[2])
                return told.get("handlers"), told.get("fault")
            last = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            return (
                None,
                f"importing {', '.join(self.paths)} ended Python with {result.returncode}. {last}".strip(),
            )
        return None, f"importing {', '.join(self.paths)} takes more than {_READ_SECONDS:.0f} s."
