"""The stream for programs without async: scripts, notebooks, Django views."""

import atexit
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar, overload

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from runtime.agent.known_options import takes_known_options
from runtime.broadcast import Broadcast
from runtime.client.stream import Stream, connect
from runtime.errors import RuntimeFault
from runtime.message import Message
from runtime.settings import Settings

Options = ParamSpec("Options")
T = TypeVar("T")


@takes_known_options
def connect_blocking(settings: Settings | None = None) -> "BlockingStream":
    """Open the stream that the settings name, for code without async.

    One thread with an event loop does the work, so it can be used in a notebook too, whose own loop runs already.

    Args:
        settings: where the stream is; read from the environment by default.

    Returns:
        The stream: open, to be closed by `with` or by `close()`.

    Raises:
        SettingsError: nothing says where the stream is.
    """
    return BlockingStream(settings)


def _blocking(
    method: Callable[Concatenate[Stream, Options], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["BlockingStream", Options], T]:
    """The same method of `BlockingStream`: it returns when the result is there."""

    @takes_known_options
    @wraps(method)
    def call(self: "BlockingStream", /, *args: Options.args, **kwargs: Options.kwargs) -> T:
        return self.run(lambda stream: method(stream, *args, **kwargs))

    return call


class BlockingStream:
    """The shared table, for code without async: `Stream`'s methods, which block. It may be used from any thread.

    It belongs to the process that opened it: after a fork, open another one.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._process = os.getpid()
        self._portal: BlockingPortal | None = None
        with ExitStack() as opened:
            portal = opened.enter_context(start_blocking_portal(name="runtime-stream"))
            # What other threads still wait for ends with the stream.
            opened.callback(lambda: portal.call(portal.stop, True))
            self._stream = opened.enter_context(portal.wrap_async_context_manager(connect(settings)))
            self._opened = opened.pop_all()
        self._portal = portal
        # A program that ends without closing would wait for ever for a thread that is gone.
        atexit.register(self.close)

    def __repr__(self) -> str:
        return f"<BlockingStream at {self.place}{'' if self._portal else ', closed'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send the broadcasts so far, and close every connection. A closed stream is not used again."""
        if self._portal is None or self._process != os.getpid():
            return
        self._portal = None
        atexit.unregister(self.close)
        self._opened.close()

    @property
    def place(self) -> str:
        """Where the stream is, for display: a host and port, without secrets."""
        return self._stream.place

    send = _blocking(Stream.send)
    send_all = _blocking(Stream.send_all)
    ask = _blocking(Stream.ask)
    ask_all = _blocking(Stream.ask_all)
    flush_broadcasts = _blocking(Stream.flush_broadcasts)
    get = _blocking(Stream.get)
    read = _blocking(Stream.read)
    latest = _blocking(Stream.latest)
    latest_of_each = _blocking(Stream.latest_of_each)
    stats = _blocking(Stream.stats)

    def broadcast(self, key: str, value: object) -> None:
        """Send a value to the present listeners; see `Stream.broadcast`."""

        async def send(stream: Stream) -> None:
            stream.broadcast(key, value)

        self.run(send)

    @overload
    def listen(
        self,
        pattern: str,
        *,
        since: int | None = None,
        broadcasts: Literal[False] = False,
        timeout: float | None = None,
    ) -> Iterator[Message[Any]]: ...

    @overload
    def listen(
        self,
        pattern: str,
        *,
        since: int | None = None,
        broadcasts: Literal[True],
        timeout: float | None = None,
    ) -> Iterator[Message[Any] | Broadcast[Any]]: ...

    @takes_known_options
    def listen(
        self,
        pattern: str,
        *,
        since: int | None = None,
        broadcasts: bool = False,
        timeout: float | None = None,
    ) -> Iterator[Message[Any] | Broadcast[Any]]:
        """Yield messages as they are written, while the loop over them waits; see `Stream.listen`.

        Args:
            pattern: a key, or a pattern such as site.>.
            since: begin with the messages after this id; by default with those committed from now on.
            broadcasts: yield broadcasts as well, each a `Broadcast`, at most once.
            timeout: end when nothing has come for so many seconds; None for never.
        """
        if broadcasts:
            coming: Any = self._stream.listen(pattern, since=since, broadcasts=True)
        else:
            coming = self._stream.listen(pattern, since=since)

        async def next_one(_: Stream) -> Message[Any] | Broadcast[Any] | None:
            with anyio.move_on_after(timeout):
                found: Message[Any] | Broadcast[Any] = await anext(coming)
                return found
            return None

        while (found := self.run(next_one)) is not None:
            try:
                yield found
            except BaseException:
                # The loop was left.
                self.run(lambda _: coming.aclose())
                raise

    def run(self, function: Callable[[Stream], Awaitable[T]]) -> T:
        """Run an async function of the stream and return its result: for what has no blocking method here.

        Args:
            function: for example `lambda stream: stream.operations.pause("publisher.publish")`.

        Raises:
            RuntimeFault: the stream is closed, was closed meanwhile, or was opened before a fork.
        """
        if self._process != os.getpid():
            raise RuntimeFault(
                "This stream was opened before the process was forked: call connect_blocking() in the process that "
                "uses it."
            )
        if self._portal is None:
            raise RuntimeFault("This stream is closed: call connect_blocking() again.")
        result: Future[T] = self._portal.start_task_soon(partial(function, self._stream))
        try:
            return result.result()
        except CancelledError:
            raise RuntimeFault("This stream was closed while it was waited for.") from None
        except BaseException:
            # Ctrl-C ends the wait in this thread only.
            result.cancel()
            raise
