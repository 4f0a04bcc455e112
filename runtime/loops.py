"""Which event loop do workers run on? uvloop where it is: each wait, wake and hop between threads costs less there."""

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import TypeVar, TypeVarTuple, Unpack

import anyio

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


def run(function: Callable[[Unpack[Arguments]], Awaitable[Result]], *arguments: *Arguments) -> Result:
    """Run an async function on a loop of its own, and return what it returns."""
    # Its wheels are for every system but Windows, where anyio's own choice is kept.
    return anyio.run(function, *arguments, backend_options={"use_uvloop": find_spec("uvloop") is not None})
