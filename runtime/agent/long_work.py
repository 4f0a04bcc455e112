"""Long work within one handler: steps whose results are kept, and waits that hold nothing."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from inspect import Parameter
from typing import Any

from runtime.agent.remote_tools import RemoteServer, RemoteTools
from runtime.agent.retry import Retry
from runtime.agent.step import Steps
from runtime.agent.step_call import StepCall
from runtime.agent.text import TextKeeper, TextWriting
from runtime.agent.transaction import Transactions
from runtime.agent.waiting import Suspended, WaitFor, Waits, seconds_of, timeout_of
from runtime.agent.work_keeper import WorkKeeper
from runtime.message import Message


class LongWork(TextWriting):
    """The part of a context that lets a handler work for hours or days: steps and waits."""

    __slots__ = ("_steps", "_waits")

    handler: str
    message: Message[Any]
    work: WorkKeeper | None
    _steps: Steps | None
    _waits: Waits | None

    @property
    def idempotency_key(self) -> str:
        """A key for the outside world; see `Context.idempotency_key`."""
        raise NotImplementedError

    def _check_thread(self, method: str) -> None:
        raise NotImplementedError

    async def step(
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *arguments: Any,
        key: str = "",
        returns: Any = Parameter.empty,
        retry: Retry | None = None,
        timeout: float | None = None,
        transaction: bool = False,
    ) -> Any:
        """Call a function and keep its result: a later attempt of this delivery gets that without calling it again.

        The result is stored before this returns. A process that dies between the function's end and that moment has
        lost it, so the next attempt calls the function again: for the other side, a parameter of the function that is
        annotated `Step` gets a stable `idempotency_key`.

        Args:
            name: names the step within the handler. A step that is come to several times, as in a loop, is told apart
                by its occurrence.
            function: an async function, or a plain one, which runs in a thread. Its result needs a JSON form, of 1 MiB
                at most; what is returned is that, as the type of the function's annotation.
            arguments: the function's positional arguments; `functools.partial` gives it others.
            key: tells steps of one name apart, as steps that run at the same time have to be.
            returns: the type of the result, where the function's annotation does not say it.
            retry: how often the function is called within this attempt; once by default.
            timeout: seconds that one call may take.
            transaction: the function gets a connection first, for statements of its own: they are committed together
                with its result, or neither is. An async function gets asyncpg's, a plain one the same queries as
                `BlockingConnection` has them. It needs a direct connection to the database, DATABASE_URL.

        Raises:
            InvalidValue: the result or an option cannot be kept, or two steps of one name run at the same time.
            LeaseLost: the delivery belongs to another worker by now, which works on without this result.
            StoreError: the result could not be stored.
            TimeoutError: the function took too long.
        """
        return await self._opened_steps().run(
            StepCall(name, function, arguments, key, returns, retry, timeout, transaction)
        )

    def step_blocking(
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *arguments: Any,
        key: str = "",
        returns: Any = Parameter.empty,
        retry: Retry | None = None,
        transaction: bool = False,
    ) -> Any:
        """Do the same as `step` in a handler that is a plain function, with a plain function, in its thread."""
        return self._opened_steps().run_blocking(
            StepCall(name, function, arguments, key, returns, retry, transaction=transaction)
        )

    def mcp(
        self,
        server: RemoteServer,
        *,
        headers: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> RemoteTools:
        """Return the tools of an MCP server: `await context.mcp(server).call("search", {"query": "pens"})` is a step.

        Args:
            server: its URL, or its command with arguments, started for each call; or an open `mcp.Client`.
            headers: sent with each request to a URL, such as one that authorizes it.
            env: variables for a command, beside the few that every program needs; it gets no others of the worker's.
            timeout: seconds that one call may take.

        Raises:
            InvalidValue: an argument makes no sense.
        """
        return RemoteTools.of(self, server, headers, env, timeout)

    async def no_return(self) -> None:
        """Mark the point after which this delivery only goes forward: if it dies later, nothing is undone.

        The mark is stored before this returns, and holds in every later attempt.

        Raises:
            LeaseLost: the delivery belongs to another worker by now.
            StoreError: the mark could not be stored.
        """
        await self._opened_steps().end_undos()

    def no_return_blocking(self) -> None:
        """Do the same as `no_return` in a handler that is a plain function."""
        self._check_thread("no_return")
        self._opened_steps().end_undos_blocking()

    @property
    def undoes(self) -> bool:
        """Whether a finished step is undone if the delivery dies now."""
        return self._steps is not None and self._steps.has_undos

    @property
    def opened_steps(self) -> Steps:
        """The steps of the delivery, for an adapter that keeps more in them than results of functions."""
        return self._opened_steps()

    def _opened_steps(self) -> Steps:
        if self._steps is None:
            self._steps = (
                Steps(self.handler, self.idempotency_key)
                if self.work is None
                else self.work.open_steps(self.handler, self.idempotency_key)
            )
        return self._steps

    def _opened_transactions(self) -> Transactions | None:
        return self._opened_steps().transactions

    async def sleep(self, seconds: float | str | timedelta, *, key: str = "") -> None:
        """Sleep without holding anything, if it takes more than a moment: no slot, no lease and no memory.

        A sleep of more than two seconds suspends the delivery: an exception that is not to be caught unwinds the
        handler, and when the time has come it runs from the top, on any worker, with its steps and waits answered from
        storage. What lies between steps runs again. An attempt is not counted.

        Args:
            seconds: how long; also a text such as "90s", "15m", "2h" or "7d". At most a year.
            key: tells sleeps apart that go on at the same time.

        Raises:
            InvalidValue: it is no such time.
            LeaseLost: the delivery belongs to another worker by now.
            StoreError: the wait could not be stored.
        """
        await self._opened_waits().sleep(seconds_of(seconds, "The time of a sleep"), key)

    async def wait_for(
        self,
        pattern: str,
        where: Any = None,
        *,
        timeout: float | str | timedelta | None = None,
        since: int | None = None,
        key: str = "",
    ) -> Message[Any]:
        """Wait for a message of the stream, and return it: the first one after the message that is handled.

        What was written before the wait began counts. A wait of more than two seconds suspends the delivery, as `sleep`
        does; it goes on the moment a matching message is committed. One message ends any number of waits, and is
        handled by its own handlers all the same.

        Args:
            pattern: the message's key, or a pattern such as payment.*.
            where: what its value contains, as JSON data: `{"order": 7}` matches a value with more fields, too.
            timeout: how long to wait: seconds, or a text such as "30s", "15m", "2h" or "7d"; None for ever.
            since: the id of a message: those after it count.
            key: tells waits for one pattern apart that go on at the same time.

        Raises:
            InvalidKey: `pattern` is no pattern.
            InvalidValue: an option makes no sense.
            WaitTimeout: no such message came in time; a later attempt is told the same.
            LeaseLost: the delivery belongs to another worker by now.
            StoreError: the wait could not be stored.
        """
        wait = WaitFor(pattern, where, timeout, since, key)
        return (await self._opened_waits().all([wait]))[0]

    async def wait_any(
        self, *waits: WaitFor, timeout: float | str | timedelta | None = None
    ) -> tuple[int, Message[Any]]:
        """Wait for the first of several messages; returns which wait it has ended, counted from 0, and the message.

        Args:
            waits: what to wait for.
            timeout: how long, where a wait has no shorter time of its own.

        Raises:
            WaitTimeout: none came in time.
        """
        return await self._opened_waits().any(waits, timeout_of(timeout))

    async def wait_all(
        self, *waits: WaitFor, timeout: float | str | timedelta | None = None
    ) -> list[Message[Any]]:
        """Wait for several messages; returns them in the order of the waits.

        Args:
            waits: what to wait for.
            timeout: how long, where a wait has no shorter time of its own.

        Raises:
            WaitTimeout: one of them did not come in time.
        """
        return await self._opened_waits().all(waits, timeout_of(timeout))

    def sleep_blocking(self, seconds: float | str | timedelta, *, key: str = "") -> None:
        """Do the same as `sleep` in a handler that is a plain function."""
        self._check_thread("sleep")
        self._opened_waits().sleep_blocking(seconds_of(seconds, "The time of a sleep"), key)

    def wait_for_blocking(
        self,
        pattern: str,
        where: Any = None,
        *,
        timeout: float | str | timedelta | None = None,
        since: int | None = None,
        key: str = "",
    ) -> Message[Any]:
        """Do the same as `wait_for` in a handler that is a plain function."""
        self._check_thread("wait_for")
        return self._opened_waits().all_blocking([WaitFor(pattern, where, timeout, since, key)])[0]

    def wait_any_blocking(
        self, *waits: WaitFor, timeout: float | str | timedelta | None = None
    ) -> tuple[int, Message[Any]]:
        """Do the same as `wait_any` in a handler that is a plain function."""
        self._check_thread("wait_any")
        return self._opened_waits().any_blocking(waits, timeout_of(timeout))

    def wait_all_blocking(
        self, *waits: WaitFor, timeout: float | str | timedelta | None = None
    ) -> list[Message[Any]]:
        """Do the same as `wait_all` in a handler that is a plain function."""
        self._check_thread("wait_all")
        return self._opened_waits().all_blocking(waits, timeout_of(timeout))

    @property
    def suspended(self) -> Suspended | None:
        """The exception that has suspended this attempt, if one has."""
        return None if self._waits is None else self._waits.suspended

    @property
    def kept_waits(self) -> Waits | None:
        """The waits of the delivery; None where it cannot be suspended."""
        if self.work is None or self._opened_waits().keeper is None:
            return None
        return self._opened_waits()

    def _opened_waits(self) -> Waits:
        if self._waits is None:
            steps = self._opened_steps()
            self._waits = Waits(self.handler, steps) if self.work is None else self.work.open_waits(steps)
        return self._waits

    def _text_keeper(self) -> TextKeeper | None:
        return None if self.work is None else self.work.open_texts()

    @property
    def unasked_steps(self) -> list[str]:
        """The names of the steps that earlier attempts have kept, and this one has not asked for."""
        return self._opened_steps().unasked()
