"""Undos: functions that take finished steps back when their delivery dies."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Never
from weakref import WeakKeyDictionary

from runtime.agent.callables import chain, declared_at, is_async, place_of, refuse_methods
from runtime.agent.context import Context
from runtime.agent.retry import Retry
from runtime.agent.signature import resolve
from runtime.agent.step import Steps
from runtime.agent.step_call import Step, StepCall
from runtime.agent.step_names import MAX_NAME_BYTES, UNDO_PREFIX
from runtime.encoding.annotations import core
from runtime.encoding.json import encode
from runtime.errors import DeclarationError, InvalidValue, RuntimeFault

# Its own step is named undo.<name>.
_MAX_NAME_BYTES: Final = MAX_NAME_BYTES - len(UNDO_PREFIX)
# The agents that have declared the undo of a function: a step of another agent would have none, without a word.
_declared: "WeakKeyDictionary[Callable[..., Any], set[str]]" = WeakKeyDictionary()


class UndoContext(Context):
    """What an undo may know and do: it reads, asks and broadcasts as a handler does, and neither emits nor waits."""

    __slots__ = ()

    def emit(self, key: str, value: object, **options: Any) -> Never:
        """Refuse: an undo ends in no transaction that could write messages."""
        raise RuntimeFault(
            f"An undo of {self.handler} emits {key!r:.100}, and only a handler that succeeds writes messages. Have the "
            f"handler's dead letter tell of it, or send it by `runtime.connect()` within the undo."
        )

    @property
    def kept_waits(self) -> None:
        """None: it cannot be suspended."""

    def _opened_steps(self) -> Steps:
        raise RuntimeFault(
            f"An undo of {self.handler} is a step itself, so it takes no steps, and cannot wait: raise RetryLater to "
            "have it tried again later."
        )


@dataclass(frozen=True, slots=True)
class Undo:
    """The undo of one function, as an agent has declared it.

    Attributes:
        name: the name of the declaration: that of the step's function by default.
        step: the function that is undone.
        function: undoes it.
        retry: how often it is called, and how soon, within one attempt of the delivery.
        result: the parameter that gets the step's result, with its type; None where there is none.
        arguments: the parameters that get an argument of the step, with their types.
        contexts: the parameters that get the context.
        steps: the parameters that get the undo's own step, with its idempotency key.
    """

    name: str
    step: Callable[..., Any]
    function: Callable[..., Any]
    retry: Retry
    result: tuple[str, Any] | None
    arguments: Mapping[str, Any]
    contexts: tuple[str, ...]
    steps: tuple[str, ...]

    def call(
        self, name: str, data: Any, arguments: Mapping[str, Any], context: UndoContext, timeout: float | None
    ) -> StepCall:
        """Return the call that undoes one step.

        Args:
            name: of the step.
            data: its result, as JSON data.
            arguments: what it was called with, as JSON data by name.
            context: for a parameter that takes it.
            timeout: seconds that one call may take.

        Raises:
            InvalidValue: the result or an argument does not fit the undo's annotation.
        """
        given: dict[str, Any] = dict.fromkeys(self.contexts, context)
        if self.result is not None:
            given[self.result[0]] = self._value(name, self.result[1], data)
        for parameter, kind in self.arguments.items():
            # One that the step was not given keeps its default, or is missed by Python.
            if parameter in arguments:
                given[parameter] = self._value(name, kind, arguments[parameter])

        async def on_loop(step: Step) -> Any:
            return await self.function(**given, **dict.fromkeys(self.steps, step))

        def in_thread(step: Step) -> Any:
            return self.function(**given, **dict.fromkeys(self.steps, step))

        function = on_loop if is_async(self.function) else in_thread
        return StepCall(name, function, (), returns=Any, retry=self.retry, timeout=timeout)

    def _value(self, step: str, kind: Any, data: Any) -> Any:
        return StepCall(step, self.function, (), returns=kind).value_of(data)

    def recorded(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> str:
        """Return what a step keeps of its arguments, as JSON text.

        Raises:
            InvalidValue: an argument that the undo takes has no JSON form.
        """
        kept: dict[str, Any] = {}
        if self.arguments:
            bound = inspect.signature(self.step).bind_partial(*given, **named)
            bound.apply_defaults()
            kept = {each: bound.arguments[each] for each in self.arguments if each in bound.arguments}
        return encode({"step": self.name, "arguments": kept})


class Undos:
    """The undos that one agent has declared.

    Args:
        agent: its name.
    """

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self._by_name: dict[str, Undo] = {}
        self._by_step: dict[int, Undo] = {}

    def names(self) -> dict[str, str]:
        """Return the name of the function that undoes it, by the name of each declaration."""
        return {
            name: getattr(undo.function, "__name__", type(undo.function).__name__)
            for name, undo in sorted(self._by_name.items())
        }

    def get(self, name: str) -> Undo | None:
        """Return the undo that was declared under this name; None if this version of the agent has none."""
        return self._by_name.get(name)

    def declare(
        self,
        step: Callable[..., Any],
        undo: Callable[..., Any],
        retry: Retry,
        name: str | None,
        local_names: Mapping[str, Any],
    ) -> None:
        """Declare the undo of a function; see `Agent.step`.

        Raises:
            DeclarationError: the declaration makes no sense.
        """
        # A method is another object each time it is looked up, so no call of it would be recognized.
        if not inspect.isfunction(step) or not callable(undo):
            raise DeclarationError(
                f"{declared_at()}: @agent.step(undo=refund) goes above a function, and undo= is one; not "
                f"{undo if inspect.isfunction(step) else step!r}."
            )
        refuse_methods(step, "@agent.step(…)")
        if not isinstance(retry, Retry):
            raise DeclarationError(
                f"{declared_at()}: undo_retry= is a Retry(attempts=3, …), not {retry!r:.100}."
            )
        name = name or getattr(step, "__name__", "")
        if not name or len(name.encode(errors="replace")) > _MAX_NAME_BYTES or "\0" in name:
            raise DeclarationError(
                f"{place_of(step)}: the name of a step with an undo is a text of at most {_MAX_NAME_BYTES} bytes: give "
                "one with name=…."
            )
        if name in self._by_name:
            raise DeclarationError(
                f"{place_of(step)}: {self._agent} has a step {name!r} with an undo already. Give one another name=…."
            )
        self._by_name[name] = self._by_step[id(step)] = _read(step, undo, retry, name, local_names)
        _declared.setdefault(step, set()).add(self._agent)

    def record(self, call: StepCall) -> str | None:
        """Return what undoes the step of a call, as JSON text; None for nothing.

        Raises:
            InvalidValue: an argument that the undo takes has no JSON form, the name is too long, or the undo is another
                agent's.
        """
        given, named = call.arguments, dict[str, Any]()
        for each in chain(call.function):
            if isinstance(each, functools.partial):
                given, named = (*each.args, *given), {**each.keywords, **named}
            elif (undo := self._by_step.get(id(each))) is not None:
                if len(call.name.encode(errors="replace")) > _MAX_NAME_BYTES:
                    raise InvalidValue(
                        f"The name of a step with an undo is a text of at most {_MAX_NAME_BYTES} bytes, not "
                        f"{call.name!r:.100}."
                    )
                return undo.recorded(given, named)
            elif inspect.isfunction(each) and (agents := _declared.get(each)):
                raise InvalidValue(
                    f"Step {call.name!r} calls {place_of(each)}, whose undo {', '.join(sorted(agents))} has "
                    f"declared; the handler is one of {self._agent}: declare it there too, by an @agent.step(undo=…)."
                )
        return None


def _read(
    step: Callable[..., Any], function: Callable[..., Any], retry: Retry, name: str, names: Mapping[str, Any]
) -> Undo:
    """Return an undo, with its parameters told apart."""
    taken = inspect.signature(step).parameters
    of_step = resolve(step, _written(step), names)
    hints = resolve(function, _written(function), names)
    place = place_of(function)
    result: tuple[str, Any] | None = None
    arguments: dict[str, Any] = {}
    contexts, steps = list[str](), list[str]()
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name, Any)
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise DeclarationError(f"{place}: an undo is called by name, so it takes no {parameter}.")
        if core(hint) is Step:
            steps.append(parameter.name)
        elif core(hint) is Context:
            contexts.append(parameter.name)
        elif parameter.name in taken:
            arguments[parameter.name] = hints.get(parameter.name, of_step.get(parameter.name, Any))
        elif result is None:
            result = (parameter.name, hints.get(parameter.name, of_step.get("return", Any)))
        elif parameter.default is parameter.empty:
            raise DeclarationError(
                f"{place}: of an undo's parameters one gets the step's result, here {result[0]!r}; the others are "
                f"named as those of {place_of(step)} whose arguments they get, and none is named {parameter.name!r}."
            )
    return Undo(name, step, function, retry, result, arguments, tuple(contexts), tuple(steps))


def _written(function: Callable[..., Any]) -> Mapping[str, Any]:
    plain = [each for each in chain(function) if inspect.isfunction(each)]
    return plain[-1].__annotations__ if plain else {}
