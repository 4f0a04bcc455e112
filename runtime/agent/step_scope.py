"""Scopes of steps: what a part of a handler comes to, told apart from what other parts come to."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_MAX_KEY_BYTES: Final = 200
_scope: ContextVar[str] = ContextVar("runtime_step_scope", default="")


@contextmanager
def step_scope(key: str) -> Iterator[None]:
    """Give the steps and waits that are come to in this block keys below this one, in tasks that it starts as well.

    A part that may be left out in a later attempt, since its own result is kept, needs one: what lies behind it would
    be counted otherwise, and get the results that were kept in it. So do parts that go on at the same time.

    Args:
        key: tells the part apart, with the scope around it: what `scoped` returns.
    """
    token = _scope.set(key)
    try:
        yield
    finally:
        _scope.reset(token)


def scoped(key: str) -> str:
    """Return a key as it is kept: below that of the part in which the code runs, if there is one."""
    if not (scope := _scope.get()):
        return key
    return safe_key(f"{scope}/{key}" if key else scope)


def safe_key(text: str) -> str:
    """Return a text as a key: the id of a call perhaps, which another program has made of anything."""
    if text.isprintable() and len(text.encode()) <= _MAX_KEY_BYTES:
        return text
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
