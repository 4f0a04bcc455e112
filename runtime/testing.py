"""Tests of agents over a real PostgreSQL: `async def test_it(harness): async with harness.running(agent): …`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import anyio
from pydantic import SecretStr

from runtime.agent.agent import Agent
from runtime.agent.step_names import UNDO, UNDONE, WAIT_PREFIX
from runtime.client.dead_letters import DeadLetterFilter
from runtime.client.stream import connect
from runtime.encoding.json import encode, legible
from runtime.extras import needing
from runtime.message import Message
from runtime.settings import Settings
from runtime.store import Delivery, Sent
from runtime.worker.execution.attempt import Observer
from runtime.worker.execution.deaths import Deaths, MortalSteps
from runtime.worker.worker import Worker

with needing("runtime.testing", "local"):
    from runtime.local import keys
    from runtime.local.bootstrap import connected
    from runtime.local.faults import FaultyGateway
    from runtime.local.gateway_process import GatewayProcess
    from runtime.local.ports import free_port

__all__ = ["FaultyGateway", "Harness", "NotDrained"]

_LOOK_SECONDS: Final = 0.005
_ALL: Final = 10_000
_ANYTHING: Final = object()

# The kernel uses only the database's clock, so `advance` moves the rows into the past. Leased deliveries stay as they
# are: the worker's own clock counts their leases too.
_ADVANCE: Final = (
    "update runtime.deliveries set visible_at = visible_at - $1::interval "
    "where visible_at < 'infinity' and lease is null",
    "update public.consciousness_stream set created_at = created_at - $1::interval, "
    "deliver_at = deliver_at - $1::interval, expires_at = expires_at - $1::interval",
    "update runtime.dedup set forget_at = forget_at - $1::interval",
    "update runtime.dead_letters set died_at = died_at - $1::interval",
    "update runtime.runs set ended_at = ended_at - $1::interval",
    "update runtime.limits set filled_at = filled_at - $1::interval",
    "update runtime.steps set created_at = created_at - $1::interval",
    "update runtime.waits set until = until - $1::interval, created_at = created_at - $1::interval",
)

_LAPSE: Final = """
    update runtime.deliveries set lease = null, visible_at = clock_timestamp()
    where message_id = $1 and subscription = $2
"""

_WAITING: Final = """
    select s.name, count(*) filter (where d.lease is not null) as running,
           count(*) filter (where d.lease is null) as waiting,
           (select string_agg(h.version, ', ' order by h.version)
            from runtime.held_back() h where h.subscription = s.id) as held_back,
           not s.settled as is_settling, s.paused_at is not null as is_paused
    from runtime.subscriptions s
    left join runtime.deliveries d on d.subscription = s.id and d.visible_at is distinct from 'infinity'
        and (d.visible_at is null or d.visible_at <= clock_timestamp() or d.lease is not null)
    group by s.id
    having count(d.*) > 0 or not s.settled
    order by s.name
"""


class NotDrained(AssertionError):
    """Work was left at the deadline; the message says of which handlers, and the last error."""


class Harness:
    """A stream for one test.

    Args:
        database_url: a fresh database with every migration, as the role `postgres`.
        admin_url: the same as the superuser, who can read the runtime's own tables and advance the time.
        settings: fields of `Settings` for everything that runs here.

    Attributes:
        settings: of this stream; pass them to `connect` or `Worker` for more than this class offers.
    """

    def __init__(self, database_url: str, admin_url: str, **settings: Any) -> None:
        given = {
            "supabase_url": None,
            "supabase_key": None,
            "database_url": SecretStr(database_url),
            # A failing test should not wait long for its handlers.
            "drain_seconds": 5,
            **settings,
        }
        self.settings = Settings.load(**given)
        self._admin_url = admin_url
        # Settings by which workers that start in `faults` reach the stream.
        self._fault_settings: dict[str, Any] = {}
        self._workers: list[Worker] = []
        self._deaths = Deaths(self._lapse)

    def __repr__(self) -> str:
        return f"<Harness [{len(self._workers)} workers]>"

    async def send(self, key: str, value: object = None, **options: Any) -> Sent:
        """Write one message; the same arguments as `Stream.send`."""
        async with connect(self.settings) as stream:
            return await stream.send(key, value, **options)

    async def ask(self, key: str, value: object = None, **options: Any) -> Any:
        """Ask the agents that run here; the same arguments as `Stream.ask`."""
        async with connect(self.settings) as stream:
            return await stream.ask(key, value, **options)

    async def messages(self, pattern: str = ">") -> list[Message[Any]]:
        """Return the messages under a key or pattern, in the order of ids."""
        async with connect(self.settings) as stream:
            return await stream.read(pattern, limit=_ALL)

    async def dead_letters(self, subscription: str | None = None) -> list[dict[str, Any]]:
        """Return the dead letters, the oldest first, each with its message, error, traceback and attempts."""
        async with connect(self.settings) as stream:
            found = await stream.operations.dead_letters(
                DeadLetterFilter(subscription=subscription), limit=_ALL, details=True
            )
        return found[::-1]

    @asynccontextmanager
    async def running(
        self, *agents: Agent, observer: Observer | None = None, **settings: Any
    ) -> AsyncIterator[Worker]:
        """Run agents in a worker of this process; it yields when every message sent from then on reaches them.

        Args:
            agents: to run.
            observer: gets every attempt.
            settings: fields of `Settings` on top of the harness's own.
        """
        update = {**self._fault_settings, **settings}
        worker = Worker(agents, self.settings.model_copy(update=update), observer=observer)
        worker.step_keeper = partial(MortalSteps, self._deaths)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            self._workers.append(worker)
            try:
                await self._settled([each.name for each in worker.handlers if each.deliver == "once"])
                while not worker.is_listening:  # noqa: ASYNC110 - told by another thread
                    await anyio.sleep(_LOOK_SECONDS)
                yield worker
            finally:
                self._workers.remove(worker)
                worker.stop()

    @asynccontextmanager
    async def faults(self) -> AsyncIterator[FaultyGateway]:
        """Let workers that start in this block reach the stream through a Supabase gateway with injected faults.

        They use REST and Realtime, as with a hosted project; the test's own calls use a direct connection without
        faults. Starting takes about a second.

        Yields:
            The injector: `drop`, `delay`, `double`, `refuse`, `hang_up`, `lose_answer`, `freeze`, `go_deaf` and so
            on, each until `heal`, or so many `times`.
        """
        with TemporaryDirectory(prefix="agent-runtime-test-") as folder:
            gateway = GatewayProcess(Path(folder), port=free_port(), database_url=self._admin_url)
            try:
                await anyio.to_thread.run_sync(gateway.start)
                async with FaultyGateway(f"http://127.0.0.1:{gateway.port}") as faults:
                    self._fault_settings = {
                        "supabase_url": faults.url,
                        "supabase_key": SecretStr(keys.SERVICE_ROLE_KEY),
                        "database_url": None,
                    }
                    yield faults
            finally:
                self._fault_settings = {}
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(gateway.kill)

    async def drain(self, *, seconds: float = 10) -> None:
        """Return when nothing is due or running; delayed messages and retries are left.

        Raises:
            NotDrained: something was due or running after so many seconds.
        """
        deadline = anyio.current_time() + seconds
        async with connected(self._admin_url) as connection:
            while left := await connection.fetch(_WAITING):
                # After the look: what is left is named, however long the look took.
                if anyio.current_time() >= deadline:
                    raise NotDrained(await self._complaint(left, seconds))
                await anyio.sleep(_LOOK_SECONDS)

    async def advance(self, seconds: float) -> None:
        """Let so many seconds pass at once: delays, retries, sleeps and deadlines come due, messages age and expire."""
        async with connected(self._admin_url) as connection, connection.transaction():
            for statement in _ADVANCE:
                await connection.execute(statement.replace("$1", f"'{float(seconds)} s'"))
        for worker in self._workers:
            worker.look()

    async def decide(
        self,
        approved: bool = True,
        *,
        title: str | None = None,
        answer: Any = None,
        by: str = "a test",
        why: str | None = None,
        seconds: float = 10,
    ) -> dict[str, Any]:
        """Decide what a handler asks by `context.approve`, as soon as it has asked; returns the request.

        Args:
            approved: yes or no.
            title: of the request; by default the oldest open one.
            answer: the value that goes with an approval.
            by: who decides.
            why: the reason.
            seconds: how long to wait for the request.

        Raises:
            AssertionError: there is no such request after so many seconds; the message lists those there are.
        """
        # It looks at least once, and no look is cut short: a connection that is given up while it is made leaves an
        # error behind that nobody awaits.
        deadline = anyio.current_time() + seconds
        async with connect(self.settings) as stream:
            while True:
                found: list[dict[str, Any]] = await stream.operations.approvals()
                for each in found:
                    if title in (None, each["title"]):
                        await stream.operations.decide(
                            each["request"], approved, answer=answer, by=by, why=why
                        )
                        return each
                if anyio.current_time() >= deadline:
                    break
                await anyio.sleep(_LOOK_SECONDS)
        titles = ", ".join(repr(each["title"]) for each in found) or "none"
        raise AssertionError(f"No handler has asked {title or 'anything'} in {seconds:g} s. Open: {titles}")

    @asynccontextmanager
    async def crash_after(self, *steps: str) -> AsyncIterator[list[str]]:
        """Kill handlers within this block: an attempt that has kept one of these steps ends as if its process had died.

        Each step of a message kills once, and another attempt goes on after it; such a death is not counted as a crash.
        The code after the step does not run; its `finally` blocks do, which a real death would leave out.

        Args:
            steps: their names, `undo.charge` for the undo of `charge`; without any, every step kills in turn.

        Yields:
            The names of the steps after which attempts have died so far, in order.

        Raises:
            AssertionError: no attempt has died after one of the steps; a test that kills nothing proves nothing.
        """
        deaths = self._deaths
        deaths.steps, deaths.died = frozenset(steps), []
        try:
            yield deaths.died
        finally:
            deaths.steps = None
        if missed := (set(steps) - set(deaths.died)) or (set() if deaths.died else {"any step"}):
            raise AssertionError(
                f"No attempt died after {', '.join(sorted(missed))}. Died after: {deaths.died}"
            )

    async def assert_same_end(
        self, key: str, value: object = None, *, values: bool = True, seconds: float = 30
    ) -> None:
        """Send a message undisturbed, and once more for each step of its handlers, which are killed after that step.

        All have to come to the same end: the same messages caused, and the same states of their handlers.

        Args:
            key: of the message.
            value: of the message.
            values: whether the values of the caused messages have to be the same, too; False where they hold
                something that differs from message to message, such as an idempotency key.
            seconds: how long one of them may take.

        Raises:
            AssertionError: the handlers keep no step, or one that was killed came to another end.
            NotDrained: something was due or running after so many seconds.
        """
        undisturbed, steps = await self._end(key, value, values, seconds)
        if not steps:
            raise AssertionError(
                f"No handler of {key} keeps a step, so there is none after which to kill it."
            )
        for step in steps:
            async with self.crash_after(step):
                killed, _ = await self._end(key, value, values, seconds)
            if killed != undisturbed:
                raise AssertionError(
                    f"Killed after step {step!r} it came to another end:\n{killed}\nUndisturbed:\n{undisturbed}"
                )

    async def _end(
        self, key: str, value: object, values: bool, seconds: float
    ) -> tuple[list[str], list[str]]:
        """Send a message; returns what became of it and of all it caused, and the names of the steps."""
        sent = await self.send(key, value)
        await self.drain(seconds=seconds)
        async with connect(self.settings) as stream:
            found = (await stream.views.trace(sent.id, limit=1_000))["messages"]
        steps = [step["name"] for each in found for handled in each["handled"] for step in handled["steps"]]
        own = (UNDO, UNDONE)
        ends = [
            " ".join(
                [
                    each["key"],
                    *([legible(each["value"])] if values else []),
                    *sorted(f"{handled['subscription']}={handled['state']}" for handled in each["handled"]),
                ]
            )
            for each in found
        ]
        kept = [step for step in steps if step not in own and not step.startswith(WAIT_PREFIX)]
        return sorted(ends), list(dict.fromkeys(kept))

    async def _lapse(self, delivery: Delivery) -> list[Any]:
        """End the lease of a delivery; a worker takes it again at once."""
        async with connected(self._admin_url) as connection:
            await connection.execute(_LAPSE, *delivery.place)
        for worker in self._workers:
            worker.look()
        return []

    async def assert_emitted(
        self, key: str, value: object = _ANYTHING, *, times: int = 1
    ) -> list[Message[Any]]:
        """Return the messages under a key or pattern, if there are exactly `times`.

        Args:
            key: a key or pattern.
            value: count only messages with this value, compared as JSON.
            times: the expected number.

        Raises:
            AssertionError: there are more or fewer; the message lists the messages there are.
        """
        found = chosen = await self.messages(key)
        if value is not _ANYTHING:
            chosen = [each for each in found if legible(each.value) == encode(value)]
        if len(chosen) != times:
            others = found or await self.messages()
            shown = [f"#{each.id} {each.key} {legible(each.value)[:200]}" for each in others]
            what = key if value is _ANYTHING else f"{key} with the value {encode(value)[:200]}"
            raise AssertionError(
                f"{len(chosen)} messages under {what}, not {times}. There are:\n" + "\n".join(shown[-20:])
            )
        return chosen

    async def assert_no_dead_letters(self) -> None:
        """Check that no delivery has failed for good.

        Raises:
            AssertionError: there are dead letters; the message shows the traceback of the last.
        """
        letters = await self.dead_letters()
        if letters:
            lines = [f"{each['subscription']} on #{each['message_id']}: {each['error']}" for each in letters]
            raise AssertionError("\n".join(["Dead letters:", *lines, "", letters[-1]["traceback"] or ""]))

    async def _settled(self, names: Sequence[str]) -> None:
        async with connected(self._admin_url) as connection:
            count = "select count(*) from runtime.subscriptions where settled and name = any ($1)"
            while await connection.fetchval(count, list(names)) < len(names):  # noqa: ASYNC110 - as above
                await anyio.sleep(_LOOK_SECONDS)

    async def _complaint(self, left: Sequence[Any], seconds: float) -> str:
        lines = [f"Work was left after {seconds:g} s:"]
        for row in left:
            state = (", not settled" if row["is_settling"] else "") + (", paused" if row["is_paused"] else "")
            if row["held_back"]:
                state += f", of which some wait for a worker of version {row['held_back']}"
            lines.append(f"{row['name']}: {row['waiting']} waiting, {row['running']} running{state}")
        if not self._workers:
            lines.append("No agent runs here: async with harness.running(agent): …")
        async with connected(self._admin_url) as connection:
            error = await connection.fetchval(
                "select error from runtime.runs where error is not null order by ended_at desc limit 1"
            )
        return "\n".join([*lines, *([f"Last error: {error}"] if error else [])])
