"""The hints for `python agents/a.py`, which declares agents and ends, or does not find the project's own modules."""

import atexit
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Final

# How far above its folder a file's project is looked for.
_LEVELS: Final = 3
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


def _hint_at_missing(process: int) -> None:
    """Print how to run a file of agents that ended since it did not find a module of its own project."""
    error, trace = getattr(sys, "last_value", None), getattr(sys, "last_traceback", None)
    if not isinstance(error, ModuleNotFoundError) or trace is None or process != os.getpid():
        return
    # Other programs, such as pytest, note the last error too.
    outermost = trace.tb_frame
    file = outermost.f_code.co_filename
    if outermost.f_globals.get("__name__") != "__main__" or not file.endswith(".py"):
        return
    missing = (error.name or "").partition(".")[0]
    above = Path(file).resolve().parents[1 : 1 + _LEVELS]
    if missing and any(
        (folder / missing).is_dir() or (folder / f"{missing}.py").is_file() for folder in above
    ):
        shown = os.path.relpath(file)
        sys.stderr.write(
            f"Python looks for {missing} beside {shown} alone: `runtime run {shown}` finds it, and runs the agents.\n"
        )


# At the import: a file that misses a module ends before it declares an agent.
atexit.register(_hint_at_missing, os.getpid())
