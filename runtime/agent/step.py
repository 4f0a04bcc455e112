"""Steps: parts of a handler whose results are kept, so that no later attempt works them out again."""

import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from random import Random
from typing import Any, Final, Protocol, TypeAlias, get_type_hints
from weakref import WeakKeyDictionary

import anyio
from pydantic import TypeAdapter, ValidationError

from runtime.agent.callables import globals_of, innermost, is_async, place_of
from runtime.agent.retry import LONGEST_SECONDS, Retry, is_number, later_seconds, short_repr
from runtime.agent.step_names import NO_RETURN, UNDO_PREFIX, UNDONE, check_step_name
from runtime.encoding.annotations import core
from runtime.encoding.json import decode, encode
from runtime.encoding.readback import read
from runtime.errors import DeclarationError, InvalidValue, NotAwaited

MAX_STEP_BYTES: Final = 2**20
# The steps of a delivery travel with it, so together they have to fit in an answer.
MAX_STEPS: Final = 1_000
MAX_STEPS_BYTES: Final = 4 * 2**20

StepPlace: TypeAlias = tuple[str, str, int]
"""The name, the key and the occurrence of a step, which are its identity within a delivery."""


class StepKeeper(Protocol):
    """Keeps the results of the steps of one delivery."""

    async def keep(self, place: StepPlace, text: str, undo: str | None = None) -> list[Any]:
        """Keep a result, given as JSON text; returns the data of one that is kept already, in a list, or none.

        `undo` says what undoes the step, as JSON text.
        """

    def keep_blocking(self, place: StepPlace, text: str, undo: str | None = None) -> list[Any]:
        """As `keep`, from a thread of user code."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a step's function, for a parameter of the function that is annotated so.

    Attributes:
        name: the name of the step.
        key: tells steps of one name apart; empty where none was given.
        occurrence: how often the handler has come to a step of this name and key, counted from 1.
        attempt: which try of the step's own `retry` this is, counted from 1.
        idempotency_key: a key for the outside world: the same in every attempt of this step of this delivery, and no
            other step's.
    """

    name: str
    key: str
    occurrence: int
    attempt: int
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class StepCall:
    """A call of `context.step`, checked.

    Attributes:
        name: the name of the step.
        key: tells steps of one name apart.
        function: works the result out.
        arguments: its positional arguments.
        returns: the type of the result; that of the function's annotation by default.
        retry: how often the function is called again within this attempt of the handler; once where None.
        timeout: seconds that one call of the function may take.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    key: str = ""
    returns: Any = inspect.Parameter.empty
    retry: Retry | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        check_step_name(self.name, self.key)
        if not callable(self.function):
            raise InvalidValue(
                f"Step {self.name!r} needs a function, not {type(self.function).__name__}: "
                f'`context.step("{self.name}", function, argument, …)`, without calling it.'
            )
        if self.retry is not None and not isinstance(self.retry, Retry):
            raise InvalidValue(
                f"Step {self.name!r}: retry= is a Retry(attempts=3, …), not {self.retry!r:.100}."
            )
        if self.timeout is not None and not (is_number(self.timeout) and 0 < self.timeout <= LONGEST_SECONDS):
            raise InvalidValue(
                f"Step {self.name!r}: timeout= is a number of seconds above 0, not {short_repr(self.timeout)}."
            )

    def bound(self, step: Step) -> Callable[[], Any]:
        """Return the call of the function, with the step for the parameter that is annotated so."""
        wanted = _annotations_of(self.function).step
        return partial(self.function, *self.arguments, **({} if wanted is None else {wanted: step}))

    def value_of(self, data: Any) -> Any:
        """Return a result from its JSON data, as the type that it has.

        Raises:
            InvalidValue: it does not fit the type.
        """
        kind = (
            _annotations_of(self.function).returns
            if self.returns is inspect.Parameter.empty
            else self.returns
        )
        if (adapter := _adapter_of(kind)) is None:
            return data
        try:
            return read(adapter, data)
        except ValidationError as refusal:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}"
                for fault in refusal.errors(include_input=False, include_url=False)[:5]
            )
            # `from None`: pydantic's own text repeats the value, which may hold a secret.
            raise InvalidValue(
                f"The result of step {self.name!r} does not fit its type, {place_of(self.function)} says: {faults}. "
                "Annotate what the function really returns, or say so with returns=…."
            ) from None


def _nothing(_: StepCall) -> str | None:
    return None


@dataclass(slots=True)
class Steps:
    """The steps of one attempt: those that earlier attempts have kept, and the new ones.

    Attributes:
        handler: the subscription's name, for errors.
        idempotency_key: that of the delivery.
        kept: the results that earlier attempts have kept, as JSON data.
        keeper: keeps new ones; None outside of a worker, where they are kept nowhere.
        asked: the steps that the handler has come to.
        span: makes the span of a step that runs, by its name.
        undo_of: returns what undoes the step of a call, as JSON text; None for nothing.
        has_undos: whether a finished step is undone if the delivery dies.
    """

    handler: str
    idempotency_key: str
    kept: dict[StepPlace, Any] = field(default_factory=dict)
    keeper: StepKeeper | None = None
    asked: set[StepPlace] = field(default_factory=set)
    span: Callable[[str], AbstractContextManager[object]] = nullcontext
    undo_of: Callable[[StepCall], str | None] = _nothing
    has_undos: bool = False
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _running: set[tuple[str, str]] = field(default_factory=set)
    _bytes: int = -1
    _random: Random = field(default_factory=Random)

    async def run(self, call: StepCall) -> Any:
        """Return the kept result of a step, or work it out and keep it; see `Context.step`."""
        with self._begun(call) as place:
            if place not in self.kept:
                undo = self._undo_of(call)
                with self.span(call.name):
                    text = self._text_of(call, await self.work_out(call, place), undo)
                earlier = await self.keeper.keep(place, text, undo) if self.keeper else []
                self._note(place, earlier[0] if earlier else decode(text), undo)
            return call.value_of(self.kept[place])

    def run_blocking(self, call: StepCall) -> Any:
        """As `run`, in the thread of a plain handler."""
        with self._begun(call) as place:
            if place not in self.kept:
                undo = self._undo_of(call)
                with self.span(call.name):
                    text = self._text_of(call, self._result_blocking(call, place), undo)
                earlier = self.keeper.keep_blocking(place, text, undo) if self.keeper else []
                self._note(place, earlier[0] if earlier else decode(text), undo)
            return call.value_of(self.kept[place])

    async def end_undos(self) -> None:
        """Keep the mark after which nothing is undone; see `Context.no_return`."""
        if NO_RETURN not in self.kept and self.keeper is not None:
            await self.keeper.keep(NO_RETURN, "true")
        self._note(NO_RETURN, True, None)

    def end_undos_blocking(self) -> None:
        """As `end_undos`, in the thread of a plain handler."""
        if NO_RETURN not in self.kept and self.keeper is not None:
            self.keeper.keep_blocking(NO_RETURN, "true")
        self._note(NO_RETURN, True, None)

    def _undo_of(self, call: StepCall) -> str | None:
        """Return what undoes the step; known before its function runs, so that it can always be kept."""
        undo = self.undo_of(call)
        if undo is not None and len(undo) > MAX_STEP_BYTES:
            raise InvalidValue(
                f"The arguments that the undo of step {call.name!r} takes are {len(undo) / 2**20:.1f} MB as JSON; at "
                f"most {MAX_STEP_BYTES // 2**20} MB are kept. Have the undo work from the step's result."
            )
        return undo

    def _note(self, place: StepPlace, data: Any, undo: str | None) -> None:
        self.kept[place] = data
        self.has_undos = (self.has_undos or undo is not None) and NO_RETURN not in self.kept

    def unasked(self) -> list[str]:
        """The names of the steps that are kept, and were not asked for in this attempt."""
        own = (UNDONE, NO_RETURN[0])
        return sorted({place[0] for place in self.kept if place not in self.asked and place[0] not in own})

    @contextmanager
    def _begun(self, call: StepCall) -> Iterator[StepPlace]:
        lane = (call.name, call.key)
        if lane in self._running:
            raise InvalidValue(
                f"{self.handler} runs two steps named {call.name!r} at the same time, and no attempt could tell which "
                "is which: give each a key of its own, `context.step(…, key=str(order.id))`."
            )
        self._counts[lane] = occurrence = self._counts.get(lane, 0) + 1
        place = (call.name, call.key, occurrence)
        self.asked.add(place)
        self._running.add(lane)
        try:
            yield place
        finally:
            self._running.discard(lane)

    def _text_of(self, call: StepCall, result: Any, undo: str | None) -> str:
        """Return a result as the JSON text that is kept; one that later attempts could not use is refused now."""
        text = encode(result)
        if len(text) > MAX_STEP_BYTES:
            raise InvalidValue(
                f"The result of step {call.name!r} takes {len(text) / 2**20:.1f} MB as JSON; at most "
                f"{MAX_STEP_BYTES // 2**20} MB are kept. Put large data into a file or a bucket and return its address."
            )
        if self._bytes < 0:
            self._bytes = sum(len(encode(data)) for data in self.kept.values())
        self._bytes += len(text) + len(undo or "")
        if len(self.kept) >= MAX_STEPS or self._bytes > MAX_STEPS_BYTES:
            raise InvalidValue(
                f"{self.handler} keeps too much for one message: at most {MAX_STEPS:,} steps of together "
                f"{MAX_STEPS_BYTES // 2**20} MB. Emit a message for each part of the work instead."
            )
        call.value_of(decode(text))
        return text

    async def work_out(self, call: StepCall, place: StepPlace) -> Any:
        """Return the result of a step's function, called again as its retry says; nothing is kept."""
        attempt = 0
        while True:
            attempt += 1
            bound = call.bound(self._step(place, attempt))
            try:
                with anyio.fail_after(call.timeout):
                    return await _called(bound, is_async(call.function))
            except Exception as error:
                delay = self._delay(call, error, attempt)
                if delay is None:
                    raise
            await anyio.sleep(delay)

    def _result_blocking(self, call: StepCall, place: StepPlace) -> Any:
        if call.timeout is not None:
            raise InvalidValue(
                f"Step {call.name!r}: a plain function cannot be stopped in its thread, so step_blocking takes no "
                "timeout. Give the function's own client one."
            )
        attempt = 0
        while True:
            attempt += 1
            try:
                return _plain_result(call, call.bound(self._step(place, attempt))())
            except Exception as error:
                delay = self._delay(call, error, attempt)
                if delay is None:
                    raise
            time.sleep(delay)

    def _step(self, place: StepPlace, attempt: int) -> Step:
        name, key, occurrence = place
        own = "_".join((self.idempotency_key, name, *((key,) if key else ()), str(occurrence)))
        done = [name.removeprefix(UNDO_PREFIX), key, occurrence]
        # One that was undone is another one when it is done again: a bank would take it for the one it has refunded.
        undone = sum(done in data for (other, *_), data in self.kept.items() if other == UNDONE)
        return Step(name, key, occurrence, attempt, f"{own}_again{undone}" if undone else own)

    def _delay(self, call: StepCall, error: Exception, attempt: int) -> float | None:
        """The seconds until the function is called again; None where the error ends the attempt of the handler."""
        if call.retry is None or later_seconds(error) is not None:
            return None
        return call.retry.decide(error, attempt, self._random)


@dataclass(frozen=True, slots=True)
class _Annotations:
    """What the annotations of a step's function say: the type of its result, and which parameter gets the step."""

    returns: Any
    step: str | None


_known_annotations: "WeakKeyDictionary[Callable[..., Any], _Annotations]" = WeakKeyDictionary()


def _annotations_of(function: Callable[..., Any]) -> _Annotations:
    try:
        found = _known_annotations.get(function)
    except TypeError:
        # A callable object may be without a hash, or without weak references.
        return _read_annotations(function)
    if found is None:
        found = _known_annotations[function] = _read_annotations(function)
    return found


def _read_annotations(function: Callable[..., Any]) -> _Annotations:
    plain = innermost(function)
    if plain is None or not plain.__annotations__:
        return _Annotations(Any, None)
    try:
        hints = get_type_hints(plain, globalns=dict(globals_of(function)), include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise DeclarationError(
            f"{place_of(function)}: an annotation cannot be resolved ({error}). "
            "Import what it names at the top of the module, outside `if TYPE_CHECKING`."
        ) from error
    returns = hints.pop("return", Any)
    return _Annotations(returns, next((name for name, hint in hints.items() if core(hint) is Step), None))


def _adapter_of(kind: Any) -> TypeAdapter[Any] | None:
    if kind is Any or kind is object:
        return None
    try:
        return _adapter(kind)
    except TypeError:
        # Some annotations cannot be hashed.
        return TypeAdapter(kind)


@lru_cache(maxsize=1_000)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


async def _called(bound: Callable[[], Any], on_loop: bool) -> Any:
    """Call a function on this loop, or a plain one in a thread, and await what it passes on to be awaited."""
    result = bound() if on_loop else await _in_thread(bound)
    return await result if isinstance(result, Awaitable) else result


async def _in_thread(bound: Callable[[], Any]) -> Any:
    try:
        return await anyio.to_thread.run_sync(bound, abandon_on_cancel=True)
    except RuntimeError as error:
        if str(error) != "no running event loop":
            raise
        # It makes a task or a future, which belongs to the loop's own thread.
        return bound()


def _plain_result(call: StepCall, result: Any) -> Any:
    if isinstance(result, Awaitable):
        if inspect.iscoroutine(result):
            result.close()
        raise NotAwaited(
            f"Step {call.name!r} of a plain handler got an async function: {place_of(call.function)}. Declare the "
            f'handler with `async def` and write `await context.step("{call.name}", …)`, or give it a plain function.'
        )
    return result
