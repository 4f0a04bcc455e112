"""An agent: a name, and the handlers declared under it. Nothing here touches a store or a socket."""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Never, TypeVar, Unpack

from runtime.agent.callables import (
    async_form,
    declared_at,
    declaring_frame,
    is_async,
    name_of,
    place_of,
    refuse_methods,
)
from runtime.agent.context import Context
from runtime.agent.dependencies import Dependencies, read_provider, state_provider
from runtime.agent.handler import Handler, Timer
from runtime.agent.known_options import refuse_unknown, takes_known_options
from runtime.agent.options import HandlerOptions, PostOptions, TimerOptions, handler_fields
from runtime.agent.retry import Retry
from runtime.agent.schedule import Missed, Schedule, cron, every
from runtime.agent.script import hint_at_running
from runtime.agent.secrets import check_secret_name
from runtime.agent.signature import Provider, read_signature
from runtime.agent.target import POST_CONCURRENCY, POST_RETRY, POST_SECONDS, Target, check_url
from runtime.agent.undo import Undos
from runtime.agent.validation import (
    Deliver,
    Lifespan,
    Middleware,
    Start,
    check_declared_key,
    check_lifespan,
    check_middleware,
    check_missed,
    check_patterns,
    check_segment,
    check_timeout,
)
from runtime.errors import DeclarationError, nearest
from runtime.message import Message
from runtime.tracebacks import treat_as_own

Function = TypeVar("Function", bound=Callable[..., object])


@dataclass(slots=True)
class Hooks:
    """What runs around the handlers of an agent.

    Attributes:
        lifespan: set-up and tear-down of each process, around all handlers.
        middlewares: around each attempt, the outermost first.
        providers: the functions that give handlers their arguments, by the annotation of these.
        undos: what undoes the steps of handlers.
    """

    undos: Undos
    lifespan: Lifespan | None = None
    middlewares: list[Middleware] = field(default_factory=list)
    providers: dict[Any, Provider] = field(default_factory=dict)


class Agent:
    """A named set of handlers.

    Args:
        name: letters, digits, `_`, `:` and `-`; the writer's name on the messages that its handlers emit.

    Attributes:
        handlers: in the order of their declaration.
        hooks: lifespan, middlewares and providers.
        place: the file and line that made the agent.

    Raises:
        DeclarationError: `name` is not one segment of a key.
    """

    def __init__(self, name: str, **unknown: Never) -> None:
        meant = nearest(next(iter(unknown), ""), HandlerOptions.__optional_keys__)
        hint = f" {meant}=… is an option of @agent.on(…)." if meant else ""
        refuse_unknown("Agent(…)", unknown, {"name"}, hint=hint)
        self.name = check_segment(name, "An agent's name")
        self.handlers: list[Handler] = []
        self.hooks = Hooks(Undos(self.name))
        self.place = declared_at()
        hint_at_running(sys._getframe(1))
        treat_as_own(self.place.rpartition(":")[0])

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
        budget: str | None = None,
        budget_per: int | None = None,
        version: str | None = None,
        pin: bool = False,
        tool: str | None = None,
        **unknown: Never,
    ) -> Callable[[Function], Function]:
        """Register a function, async or plain, for the messages that match any of the patterns.

        The function itself is unchanged and can be called directly, for example by a test.

        Args:
            patterns: keys, or patterns such as `task.*` and `task.>`.
            retry: what happens after a failure; five attempts with growing delays by default.
            concurrency: how many may run at once in one worker.
            emits: the key under which the function's return value is written.
            ordered: handle messages of one key one after another as they were written, never two at once anywhere.
            dead_blocks: with `ordered`, let a dead letter block its key until it is redriven, discarded or too old.
            start: "earliest" makes a new subscription begin with the oldest message, "latest" with the next one.
            timeout: seconds one attempt may take.
            deliver: "each" gives every live process each message, at most once, as Redis pub/sub does: none is kept.
            name: the handler's name instead of the function's; work waiting in the store is found by it.
            batch: hand the function up to so many messages at once, as a `list[Message[…]]` or a list of values.
            within: with `batch`, seconds to wait for more after the first message; 0 by default.
            rate: how many messages all workers together take: "10/s", "600/m", "1000/h".
            concurrency_total: how many messages all workers together may be handling.
            budget: what all workers together may spend, as `context.usage` tells it: "5 USD/day", "100 USD/month".
            budget_per: give the budget to each prefix of so many segments of the key, instead of to all together.
            version: the version of the function, such as "2", kept with each step that it finishes.
            pin: only workers of this version go on with what it has begun: with a message of which it has finished a
                step, or for which it waits. Others take what nobody has begun.
            tool: the name under which language models call it over MCP, with its docstring as the description.
            unknown: refused, with the name of the option that was probably meant.

        Raises:
            DeclarationError: the declaration makes no sense; the message says what to do.
        """
        if any(callable(pattern) for pattern in patterns):
            raise DeclarationError('Write @agent.on("some.key"), not @agent.on alone: it needs a pattern.')
        refuse_unknown("@agent.on(…)", unknown, HandlerOptions.__optional_keys__)
        options = HandlerOptions(
            retry=retry, concurrency=concurrency, emits=emits, ordered=ordered, dead_blocks=dead_blocks, start=start,
            timeout=timeout, deliver=deliver, batch=batch, within=within, rate=rate, tool=tool, version=version,
            pin=pin, concurrency_total=concurrency_total, budget=budget, budget_per=budget_per,
        )  # fmt: skip
        patterns = check_patterns(patterns)
        fields = {"patterns": patterns, **handler_fields(options, patterns)}
        return self._registering(name, fields, sys._getframe(1).f_locals)

    def every(
        self,
        interval: str | float | timedelta,
        *,
        missed: Missed = "one",
        key: str | None = None,
        **options: Unpack[TimerOptions],
    ) -> Callable[[Function], Function]:
        """Register a function to run each so many seconds, once for all workers together.

        Slots are counted from 1970 in UTC, so restarts and the number of workers do not move them. Each slot writes a
        message, a `Tick`, which is seen, retried and replayed like any other.

        Args:
            interval: `"90s"`, `"5m"`, `"12h"`, a number of seconds or a timedelta; whole seconds.
            missed: which ticks are written for slots at which no worker ran: the last ("one"), "all", or "none".
            key: the key of the ticks; `timer.agent.function` by default. Other handlers may listen to it too.
            options: as for `on`: retry, concurrency, emits, timeout, name, version, pin, budget.

        Raises:
            DeclarationError: the declaration makes no sense; the message says what to do.
        """
        return self._timed(every(interval), missed, key, options, sys._getframe(1).f_locals)

    def cron(
        self,
        expression: str,
        *,
        timezone: str = "UTC",
        missed: Missed = "one",
        key: str | None = None,
        **options: Unpack[TimerOptions],
    ) -> Callable[[Function], Function]:
        """Register a function to run at the times of a cron expression, once for all workers together.

        Args:
            expression: minute, hour, day of the month, month and day of the week, as Debian's cron reads them:
                `"0 7 * * mon-fri"`.
            timezone: a name of the IANA database, such as Europe/Paris. A time of day that the clocks skip in spring
                runs right after the gap; one that comes twice in autumn runs once.
            missed: as for `every`.
            key: as for `every`.
            options: as for `on`: retry, concurrency, emits, timeout, name, version, pin, budget.

        Raises:
            DeclarationError: the declaration makes no sense; the message says what to do.
        """
        return self._timed(cron(expression, timezone), missed, key, options, sys._getframe(1).f_locals)

    def lifespan(self, function: Function) -> Function:
        """Register the set-up of each process before the agent's first handler, and its tear-down after the last.

        Above an async function that yields once, or a function that returns an async context manager. What it yields
        is `context.state`. Until it has yielded, this process takes none of the agent's messages; if it fails, it is
        entered again with growing delays, and a process in which no agent can work ends.

        Raises:
            DeclarationError: the function is none of these, or the agent has a lifespan already.
        """
        self.hooks.lifespan = check_lifespan(function, self.hooks.lifespan)
        if (provider := state_provider(function, names=sys._getframe(1).f_locals)) is not None:
            self._add_provider(provider)
        return function

    def provide(self, function: Function) -> Function:
        """Register a provider: handlers and providers below it get their arguments of one type from it.

        Above a function, async or plain, whose return annotation is that type, or an iterator of it: what follows its
        `yield` runs when the attempt has ended, and an error of the handler is raised there. Its own parameters are
        filled by annotation: with the Context, a Message, and what providers above it give. It is called once per
        attempt that needs it. A plain one runs where the handler runs: in its thread, for a plain handler.

        Raises:
            DeclarationError: the return type is missing or provided already, or a parameter cannot be filled.
        """
        names = sys._getframe(1).f_locals
        self._add_provider(read_provider(function, names=names, known=self.hooks.providers))
        return function

    def middleware(self, function: Function) -> Function:
        """Register a middleware around each attempt of the agent's handlers; the first one declared is outermost.

        Above `async def timing(context, call_next)`, which awaits `call_next()` and so sees what the handler returns
        or raises. What the middleware itself returns, unless that is None, or raises, replaces it.

        Raises:
            DeclarationError: the function is no middleware.
        """
        self.hooks.middlewares.append(check_middleware(function))
        return function

    @takes_known_options
    def step(
        self, *, undo: Callable[..., object], undo_retry: Retry | None = None, name: str | None = None
    ) -> Callable[[Function], Function]:
        """Declare how a function that handlers call by `context.step` is undone.

        When a delivery dies, is rejected or cancelled, the undos of its finished steps run, the last one first, and
        then it is a dead letter. The function itself is unchanged.

        Args:
            undo: undoes it, async or plain. A parameter with the name of one of the step's gets the same argument; one
                annotated `Step` or `Context` gets that; the one that is left gets the step's result.
            undo_retry: how often the undo is called, and how soon; five times with growing delays by default.
            name: the name of the declaration instead of the function's; what was begun is undone by it.

        Raises:
            DeclarationError: the declaration makes no sense; the message says what to do.
        """
        local_names = declaring_frame().f_locals

        def register(function: Function) -> Function:
            self.hooks.undos.declare(function, undo, undo_retry or Retry(), name, local_names)
            return function

        return register

    @takes_known_options
    def post(self, *patterns: str, to: str, secret: str, **options: Unpack[PostOptions]) -> None:
        """Have messages posted to a URL: a handler in any language, wherever it runs.

        Requests are signed as Standard Webhooks says. When a target keeps failing, its circuit breaker opens and
        messages wait.

        Args:
            patterns: keys, or patterns such as `task.*` and `task.>`.
            to: the URL. Only public addresses are reached, and those that RUNTIME_WEBHOOKS_ALLOW names.
            secret: the name of the environment variable with the secret, `whsec_…`; with two, both sign.
            options: as for `on`: emits (the key for the JSON of the response), retry (15 attempts within about half a
                day by default), concurrency (10 requests at once in one worker by default), concurrency_total, rate,
                ordered, dead_blocks, start, timeout (of one request; 30 seconds by default), name ("post" by
                default).

        Raises:
            DeclarationError: the declaration makes no sense; the message says what to do.
        """
        options = {"retry": POST_RETRY, "concurrency": POST_CONCURRENCY, "name": "post", **options}
        seconds = check_timeout(options.pop("timeout", None)) or POST_SECONDS
        target = Target(url=check_url(to), secret_name=check_secret_name(secret), seconds=seconds)
        # The handler has no timeout: the request's own says what was waited for.
        fields = {"patterns": check_patterns(patterns), **handler_fields(options), "target": target}

        async def post(message: Message[Any], context: Context) -> Any:
            raise DeclarationError(
                f"{self.name}.{options['name']} is posted by a worker, and cannot be called."
            )

        post.__doc__ = f"Posted to {target.shown}."
        self._add(post, options["name"], fields, {})

    def _timed(
        self,
        schedule: Schedule,
        missed: Missed,
        key: str | None,
        options: TimerOptions,
        local_names: Mapping[str, Any],
    ) -> Callable[[Function], Function]:
        refuse_unknown("A timer", options, TimerOptions.__optional_keys__ | {"missed", "key"})
        missed = check_missed(missed)

        def register(function: Function) -> Function:
            name = options.get("name") or getattr(function, "__name__", "")
            ticks = key or f"timer.{self.name}.{check_segment(name, 'A timer’s name (give one with name=…)')}"
            timer = Timer(check_declared_key(ticks), schedule, missed)
            fields = {"patterns": (ticks,), **handler_fields(options), "timer": timer}
            return self._registering(options.get("name"), fields, local_names)(function)

        return register

    def _registering(
        self, name: str | None, fields: Mapping[str, Any], local_names: Mapping[str, Any]
    ) -> Callable[[Function], Function]:
        """Return a decorator that adds a handler; `local_names` are the caller's.

        Neither a module's names nor typing itself know a class that the caller's function body defines.
        """

        def register(function: Function) -> Function:
            self._add(function, name, fields, local_names)
            return function

        return register

    def _add(
        self,
        function: Callable[..., object],
        name: str | None,
        fields: Mapping[str, Any],
        local_names: Mapping[str, Any],
    ) -> None:
        """Check the function itself and add its handler."""
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
        providers, is_batch = self.hooks.providers, fields["batch"] is not None
        signature = read_signature(function, names=local_names, is_batch=is_batch, provided=providers)
        runs_on_loop = is_async(function)
        self.handlers.append(
            Handler(
                name=full_name,
                agent=self.name,
                function=async_form(function) if runs_on_loop else function,
                is_async=runs_on_loop,
                signature=signature,
                middlewares=self.hooks.middlewares,
                undos=self.hooks.undos,
                dependencies=Dependencies(signature.needs, is_async=runs_on_loop)
                if signature.needs
                else None,
                **fields,
            )
        )

    def _add_provider(self, provider: Provider) -> None:
        for name, signature in (
            *((each.name, each.signature) for each in self.handlers),
            *((name_of(each.call), each.signature) for each in self.hooks.providers.values()),
        ):
            if signature.misses(provider):
                raise DeclarationError(
                    f"{name} has a parameter of {provider.provided!r}, whose provider stands below it. Declare the "
                    "provider above the handlers that need it."
                )
        self.hooks.providers[provider.provided] = provider
