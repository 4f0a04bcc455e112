"""What is an agent? A name and the handlers declared under it: nothing here touches a store or a socket."""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypedDict, TypeVar, Unpack

from runtime.agent.batch import Batching
from runtime.agent.callables import async_form, declared_at, is_async, name_of, place_of, refuse_methods
from runtime.agent.context import Context
from runtime.agent.dependencies import Provision, read_provider, state_provider
from runtime.agent.handler import Handler, Timer
from runtime.agent.limits import check_concurrency_total, check_rate
from runtime.agent.retry import Retry
from runtime.agent.schedule import Missed, Schedule, cron, every
from runtime.agent.secrets import check_secret_name
from runtime.agent.signature import Provider, read_signature
from runtime.agent.target import CONCURRENCY, PATIENCE, SECONDS, Target, check_url
from runtime.agent.validation import (
    Deliver,
    Lifespan,
    Middleware,
    Start,
    check_batch,
    check_concurrency,
    check_dead_blocks,
    check_deliver,
    check_emits,
    check_lifespan,
    check_middleware,
    check_missed,
    check_patterns,
    check_retry,
    check_segment,
    check_start,
    check_tick_key,
    check_timeout,
)
from runtime.errors import DeclarationError
from runtime.message import Message
from runtime.tracebacks import claim

Function = TypeVar("Function", bound=Callable[..., object])


class TimerOptions(TypedDict, total=False):
    """What `every` and `cron` take of what `on` takes."""

    retry: Retry | None
    concurrency: int | None
    emits: str | None
    timeout: float | None
    name: str | None


@dataclass(slots=True)
class Around:
    """What surrounds the handlers of an agent.

    Attributes:
        lifespan: what each process sets up before the first of them and takes down after the last.
        middlewares: what goes around each attempt, the outermost first.
        providers: what gives handlers their arguments, by the annotation of those.
    """

    lifespan: Lifespan | None = None
    middlewares: list[Middleware] = field(default_factory=list)
    providers: dict[Any, Provider] = field(default_factory=dict)


class Agent:
    """A named set of handlers.

    Args:
        name: letters, digits, `_`, `:` and `-`; the writer's name on what its handlers emit.

    Attributes:
        handlers: what was declared, in order.
        around: what surrounds them.
        place: the file and line that made it.

    Raises:
        DeclarationError: `name` is not one segment of a key.
    """

    def __init__(self, name: str) -> None:
        self.name = check_segment(name, "An agent's name")
        self.handlers: list[Handler] = []
        self.around = Around()
        self.place = declared_at()
        claim(self.place.rpartition(":")[0])

    def __repr__(self) -> str:
        handlers = ", ".join(handler.name for handler in self.handlers)
        return f"<Agent {self.name} [{handlers or 'no handlers'}]>"

    def on(
        self,
        *patterns: str,
        retry: Retry | None = None,
        concurrency: int | None = None,
        emits: str | None = None,
        ordered: bool = False,
        dead_blocks: bool = False,
        start: Start = "latest",
        timeout: float | None = None,
        deliver: Deliver = "once",
        name: str | None = None,
        batch: int | None = None,
        within: float | None = None,
        rate: str | None = None,
        concurrency_total: int | None = None,
    ) -> Callable[[Function], Function]:
        """Register a function, async or plain, for the messages that match any of the patterns.

        The function stays as it was and can be called directly, by a test for example.

        Args:
            patterns: keys, or patterns such as `task.*` and `task.>`.
            retry: what happens after a failure; five attempts with growing waits by default.
            concurrency: how many may run at once in one worker.
            emits: the key under which what the function returns is written.
            ordered: handle messages of one key one after another, in the order they were written; never two of a
                key at once, whichever worker has them.
            dead_blocks: with `ordered`, a dead letter holds up its key until it is redriven, discarded or past the
                retention; otherwise the next message passes it.
            start: "earliest" makes a new subscription begin with all there is, "latest" with what comes.
            timeout: seconds one attempt may take.
            deliver: "each" has every live process get each message, at most once, as Redis pub/sub does: nothing is
                kept, so there is no retry and no dead letter, and what is written while it is away passes it by.
            name: the handler's name instead of the function's; work waiting in the store is found by it.
            batch: hand the function up to so many messages at once, as a `list[Message[…]]` or a list of values.
            within: with `batch`, seconds to wait for more after the first has come; 0 by default.
            rate: how many messages all workers together take: "10/s", "600/m", "1000/h".
            concurrency_total: how many messages all workers together may have in hand.

        Raises:
            DeclarationError: the declaration makes no sense; the message says what to do.
        """
        if any(callable(pattern) for pattern in patterns):
            raise DeclarationError('Write @agent.on("some.key"), not @agent.on alone: it needs a pattern.')
        fields = self._fields(
            check_patterns(patterns),
            retry=retry,
            concurrency=concurrency,
            emits=emits,
            ordered=ordered,
            dead_blocks=dead_blocks,
            start=start,
            timeout=timeout,
            rate=rate,
            concurrency_total=concurrency_total,
            batch=check_batch(batch, within),
        )
        not_for_each = {
            "retry": retry is not None,
            "ordered": ordered,
            "dead_blocks": dead_blocks,
            "start": start != "latest",
            "batch": batch is not None,
            "rate": rate is not None,
            "concurrency_total": concurrency_total is not None,
        }
        fields["deliver"] = check_deliver(deliver, not_for_each)
        # Classes that a function body defines are found neither among a module's names nor by typing itself.
        local_names = sys._getframe(1).f_locals

        def register(function: Function) -> Function:
            self._add(function, name, fields, local_names)
            return function

        return register

    def every(
        self,
        interval: str | float | timedelta,
        *,
        missed: Missed = "one",
        key: str | None = None,
        **options: Unpack[TimerOptions],
    ) -> Callable[[Function], Function]:
        """Register a function to run each so many seconds, once for all workers together.

        The slots are counted from 1970 in UTC, so that restarts and other workers change nothing about them. Each
        writes a message, a `Tick`, which is seen, retried and replayed like any other.

        Args:
            interval: `"90s"`, `"5m"`, `"12h"`, a number of seconds or a timedelta; whole seconds.
            missed: which ticks are written for slots nobody was there for: the last ("one"), "all", or "none".
            key: the key of the ticks; `timer.agent.function` by default. Others may listen to it too.
            options: as for `on`: retry, concurrency, emits, timeout, name.

        Raises:
            DeclarationError: the declaration makes no sense; the message says what to do.
        """
        return self._by_time(every(interval), missed, key, options, sys._getframe(1).f_locals)

    def cron(
        self,
        expression: str,
        *,
        timezone: str = "UTC",
        missed: Missed = "one",
        key: str | None = None,
        **options: Unpack[TimerOptions],
    ) -> Callable[[Function], Function]:
        """Register a function to run at the moments of a cron expression, once for all workers together.

        Args:
            expression: minute, hour, day of the month, month and day of the week, as Debian's cron reads them:
                `"0 7 * * mon-fri"`.
            timezone: a name of the IANA database, such as Europe/Paris. A time of day that the clocks leave out in
                spring is made up for at once; one that comes twice in autumn counts once.
            missed: as for `every`.
            key: as for `every`.
            options: as for `on`: retry, concurrency, emits, timeout, name.

        Raises:
            DeclarationError: the declaration makes no sense; the message says what to do.
        """
        return self._by_time(cron(expression, timezone), missed, key, options, sys._getframe(1).f_locals)

    def lifespan(self, function: Function) -> Function:
        """Register what each process sets up before the agent's first handler starts, and takes down after the last.

        Above an async function that yields once, or a function that returns an async context manager. What it yields
        is `context.state`. Until it has yielded, this process takes none of the agent's messages; if it fails, it is
        entered again with growing waits, and a process in which no agent can work ends.

        Raises:
            DeclarationError: it is no such function, or the agent has a lifespan already.
        """
        self.around.lifespan = check_lifespan(function, self.around.lifespan)
        if (provider := state_provider(function, names=sys._getframe(1).f_locals)) is not None:
            self._keep_provider(provider)
        return function

    def provide(self, function: Function) -> Function:
        """Register what gives the handlers below, and other providers, their arguments of one type.

        Above a function, async or plain, whose return annotation is that type, or an iterator of it: what follows its
        `yield` runs when the attempt has ended, and an error of the handler is raised there. Its own parameters are
        filled by annotation: with the Context, a Message, and what is provided above it. It is called once per
        attempt that needs it. A plain one runs where the handler runs: in its thread, for a plain handler.

        Raises:
            DeclarationError: it does not say what it provides, something else does so, or a parameter cannot be filled.
        """
        names = sys._getframe(1).f_locals
        self._keep_provider(read_provider(function, names=names, known=self.around.providers))
        return function

    def _keep_provider(self, provider: Provider) -> None:
        for name, signature in (
            *((each.name, each.signature) for each in self.handlers),
            *((name_of(each.call), each.signature) for each in self.around.providers.values()),
        ):
            if signature.misses(provider):
                raise DeclarationError(
                    f"{name} has a parameter of {provider.provided!r}, which is provided only below it. Declare what "
                    "provides it above the handlers that need it."
                )
        self.around.providers[provider.provided] = provider

    def middleware(self, function: Function) -> Function:
        """Register what goes around each attempt of the agent's handlers; the one declared first is outermost.

        Above `async def timing(context, call_next)`, which awaits `call_next()`, and so sees what the handler returns
        or raises. What it returns itself, unless that is None, or raises itself, takes the place of that.

        Raises:
            DeclarationError: it is no such function.
        """
        self.around.middlewares.append(check_middleware(function))
        return function

    def post(
        self,
        *patterns: str,
        to: str,
        secret: str,
        emits: str | None = None,
        retry: Retry = PATIENCE,
        concurrency: int | None = CONCURRENCY,
        concurrency_total: int | None = None,
        rate: str | None = None,
        ordered: bool = False,
        dead_blocks: bool = False,
        start: Start = "latest",
        timeout: float = SECONDS,
        name: str = "post",
    ) -> None:
        """Have messages posted to a URL: a handler in any language, wherever it runs.

        Requests are signed as Standard Webhooks says. A target that keeps failing rests, and messages wait.

        Args:
            patterns: keys, or patterns such as `task.*` and `task.>`.
            to: the URL. Only public addresses are reached, but for those that RUNTIME_WEBHOOKS_ALLOW names.
            secret: the name of the environment variable with the secret, `whsec_…`; with two, both sign.
            emits: the key under which the JSON of the answer is written.
            retry: what happens after a failure; by default 15 attempts within about half a day.
            concurrency: how many requests one worker makes at once.
            concurrency_total: how many requests all workers together make at once.
            rate: how many messages all workers together take: "10/s", "600/m", "1000/h".
            ordered: post messages of one key one after another.
            dead_blocks: as for `on`.
            start: as for `on`.
            timeout: seconds one request may take.
            name: the handler's name; work waiting in the store is found by it.

        Raises:
            DeclarationError: the declaration makes no sense; the message says what to do.
        """
        target = Target(
            url=check_url(to),
            secret_name=check_secret_name(secret),
            seconds=check_timeout(timeout) or SECONDS,
        )
        # No timeout: the request has its own end, which says what was waited for.
        fields = self._fields(
            check_patterns(patterns),
            retry=retry,
            concurrency=concurrency,
            emits=emits,
            ordered=ordered,
            dead_blocks=dead_blocks,
            start=start,
            rate=rate,
            concurrency_total=concurrency_total,
        )
        fields["target"] = target

        async def post(message: Message[Any], context: Context) -> Any:
            raise DeclarationError(f"{self.name}.{name} is posted by a worker, and cannot be called.")

        post.__doc__ = f"Posted to {target.shown}."
        self._add(post, name, fields, {})

    def _by_time(
        self,
        schedule: Schedule,
        missed: Missed,
        key: str | None,
        options: TimerOptions,
        local_names: Mapping[str, Any],
    ) -> Callable[[Function], Function]:
        known = sorted(TimerOptions.__annotations__)
        if unknown := sorted(set(options) - set(known)):
            raise DeclarationError(
                f"A timer takes no {unknown[0]}=…; beside missed and key it takes {', '.join(known)}."
            )
        missed = check_missed(missed)

        def register(function: Function) -> Function:
            name = options.get("name") or getattr(function, "__name__", "")
            ticks = key or f"timer.{self.name}.{check_segment(name, 'A timer’s name (give one with name=…)')}"
            fields = self._fields(
                (check_tick_key(ticks),),
                retry=options.get("retry"),
                concurrency=options.get("concurrency"),
                emits=options.get("emits"),
                timeout=options.get("timeout"),
            )
            fields["timer"] = Timer(ticks, schedule, missed)
            self._add(function, options.get("name"), fields, local_names)
            return function

        return register

    def _fields(
        self,
        patterns: tuple[str, ...],
        *,
        retry: object = None,
        concurrency: object = None,
        emits: str | None = None,
        ordered: bool = False,
        dead_blocks: bool = False,
        start: object = "latest",
        timeout: object = None,
        rate: object = None,
        concurrency_total: object = None,
        batch: Batching | None = None,
    ) -> dict[str, Any]:
        """What every kind of handler has, checked in one place."""
        return {
            "agent": self.name,
            "patterns": patterns,
            "retry": check_retry(retry),
            "concurrency": check_concurrency(concurrency),
            "emits": check_emits(emits),
            "ordered": bool(ordered),
            "dead_blocks": check_dead_blocks(dead_blocks, ordered),
            "start": check_start(start),
            "timeout": check_timeout(timeout),
            "rate": check_rate(rate),
            "concurrency_total": check_concurrency_total(concurrency_total, batch.size if batch else 1),
            "batch": batch,
        }

    def _add(
        self,
        function: Callable[..., object],
        name: str | None,
        fields: dict[str, Any],
        local_names: Mapping[str, Any],
    ) -> None:
        """Check the function itself and keep the handler."""
        if not inspect.isfunction(function):
            raise DeclarationError(
                f"{declared_at()}: @agent.on(…) goes above a function, not above {function!r}. Declare a function that "
                "calls it; @staticmethod and the like stand above @agent.on(…)."
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise DeclarationError(
                f"{place_of(function)} yields, but a handler returns. Use context.emit(…)."
            )
        refuse_methods(function, "@agent.on(…)")
        last = check_segment(name or function.__name__, "A handler's name (give one with name=…)")
        full_name = f"{self.name}.{last}"
        if any(handler.name == full_name for handler in self.handlers):
            raise DeclarationError(
                f"{full_name} is declared twice. Give one another name=…, or one on(…) several patterns."
            )
        signature = read_signature(
            function,
            names=local_names,
            is_batch=fields.get("batch") is not None,
            provided=self.around.providers,
        )
        runs_on_loop = is_async(function)
        self.handlers.append(
            Handler(
                name=full_name,
                function=async_form(function) if runs_on_loop else function,
                is_async=runs_on_loop,
                signature=signature,
                middlewares=self.around.middlewares,
                provision=Provision(signature.needs, is_async=runs_on_loop) if signature.needs else None,
                **fields,
            )
        )
