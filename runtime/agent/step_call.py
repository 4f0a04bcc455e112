"""One call of a step: its function and arguments, checked, and the type of its result."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, get_type_hints
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter, ValidationError

from runtime.agent.callables import globals_of, innermost, place_of
from runtime.agent.retry import LONGEST_SECONDS, Retry, is_number, short_repr
from runtime.agent.step_names import check_step_name
from runtime.encoding.annotations import core
from runtime.encoding.readback import read
from runtime.errors import DeclarationError, InvalidValue


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
        transaction: whether the function gets a connection first, in the transaction that keeps its result.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    key: str = ""
    returns: Any = inspect.Parameter.empty
    retry: Retry | None = None
    timeout: float | None = None
    transaction: bool = False

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

    def bound(self, step: Step, *first: Any) -> Callable[[], Any]:
        """Return the call of the function, with the step for the parameter that is annotated so."""
        wanted = _annotations_of(self.function).step
        return partial(self.function, *first, *self.arguments, **({} if wanted is None else {wanted: step}))

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
