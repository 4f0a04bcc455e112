"""The hint for `python agents/a.py`, which declares agents and ends."""

import atexit
import os
import sys
from types import FrameType
from typing import Final

# The files that were told of, or will be at the end.
_hinted: Final[set[str]] = set()


def hint_at_running(frame: FrameType) -> None:
    """Print how to run an agent when the program ends, if its own file declares it and nothing here has run it.

    Args:
        frame: of the code that declares the agent.
    """
    file = frame.f_globals.get("__file__")
    # In a notebook, at a prompt and under `python -m` the main module has no file of agents.
    if frame.f_globals.get("__name__") != "__main__" or not isinstance(file, str) or file in _hinted:
        return
    _hinted.add(file)
    atexit.register(_hint, file, os.getpid())


def _hint(file: str, process: int) -> None:
    # What runs agents imports the worker. After an error the hint would only distract from it.
    if "runtime.worker.worker" in sys.modules or hasattr(sys, "last_type") or process != os.getpid():
        return
    shown = os.path.relpath(file) if os.path.isabs(file) else file
    sys.stderr.write(f"{shown} declares agents, and nothing has run them: `runtime run {shown}` does.\n")
