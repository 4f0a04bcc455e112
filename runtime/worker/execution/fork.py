"""What a forked child keeps of its worker: nothing.

A handler may fork. Its child begins with a copy of everything: the signal handlers and the descriptor they write to, so
that a signal to the child would be taken for one to the worker; and the call that forked, which would lead back into a
second worker on the same sockets. So signals are as in a fresh process there, and a child that comes back from its
handler ends.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable

from runtime.tracebacks import trace_of


class Generation:
    """Tells a process from the children that are forked off it: each fork makes the child's the next one."""

    number = 0


_in_children: list[Callable[[], None]] = []


def in_each_child(function: Callable[[], None]) -> Callable[[], None]:
    """Call a function at the beginning of each child that is forked from now on; returns what ends that."""
    _in_children.append(function)
    return lambda: _in_children.remove(function)


def leave(error: BaseException | None = None) -> None:
    """End this process, a child that has come back from its handler.

    Args:
        error: what the handler raised in the child, if it did: `sys.exit(3)` ends it with 3.
    """
    code = 0
    try:
        if error is not None and issubclass(type(error), SystemExit):
            given = error.code  # type: ignore[attr-defined]
            code = given if isinstance(given, int) else 0 if given is None else 1
        elif error is not None:
            code = 1
            sys.stderr.write(trace_of(error))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - nothing may lead the child back into the worker
        code = code or 1
    finally:
        os._exit(code & 0xFF)


_masks = threading.local()


def _before() -> None:
    # A signal that reaches the child before it has its own handlers would be written to the worker, and lost to the
    # child: it waits until then.
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))


def _go_on_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _begin_child() -> None:
    try:
        Generation.number += 1
        for function in _in_children:
            function()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_go_on_in_parent, after_in_child=_begin_child)
