"""Which argument does each parameter of a handler get?

The annotation decides: `Message[Article]` gets the message, `Context` the context, what is provided its provider's, and
anything else the value.
Worked out once, when the handler is declared, so that a wrong signature fails at import and not in the night.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from runtime.batch import BatchContext
from runtime.context import Context
from runtime.errors import DeclarationError, InvalidPayload
from runtime.message import Message

_CURE = (
    "A handler takes at most one value, a Message[…] and a Context, in any order: "
    "def handle(article: Article, message: Message[Article], context: Context)."
)
_SHOWN_FAULTS = 10


@dataclass(frozen=True, slots=True)
class Signature:
    """How a handler's parameters are filled.

    Attributes:
        value: the parameter that gets the value, or None.
        messages: the parameters that get the message, each with what validates its value.
        contexts: the parameters that get the context.
        needs: the parameters that a provider fills.
        taken: what the parameter for the value is annotated with.
    """

    value: tuple[str, TypeAdapter[Any] | None] | None
    messages: tuple[tuple[str, TypeAdapter[Any] | None], ...]
    contexts: tuple[str, ...]
    needs: "tuple[tuple[str, Provider], ...]" = ()
    taken: Any = None

    def bind(self, handler: str, message: Message[Any], context: Context) -> dict[str, Any]:
        """Return the arguments by name, but for those that a provider gives.

        Args:
            handler: the subscription's name, for the complaint.
            message: the message with its value as plain JSON data.
            context: the context of this attempt.

        Raises:
            InvalidPayload: the value is not what an annotation says.
        """
        arguments: dict[str, Any] = dict.fromkeys(self.contexts, context)
        for name, adapter in self.messages:
            value = _validated(adapter, handler, message)
            arguments[name] = message if adapter is None else replace(message, value=value)
        if self.value is not None:
            name, adapter = self.value
            arguments[name] = _validated(adapter, handler, message)
        return arguments


@dataclass(frozen=True, slots=True, eq=False)
class Provider:
    """What gives handlers their arguments of one type.

    Attributes:
        provided: the annotation of the parameters it fills.
        call: makes the argument, or a context manager that has it.
        is_async: whether what it makes is awaited, or entered, asynchronously.
        has_end: whether it makes a context manager.
        signature: how its own parameters are filled.
    """

    provided: Any
    call: Callable[..., Any]
    is_async: bool
    has_end: bool
    signature: Signature


def read_signature(
    function: Callable[..., object],
    *,
    names: Mapping[str, Any],
    is_batch: bool = False,
    provided: Mapping[Any, Provider] | None = None,
    takes_value: bool = True,
) -> Signature:
    """Work out how to fill a function's parameters.

    Args:
        function: the handler.
        names: local names that its annotations, if they are text, may mean.
        is_batch: whether it gets many messages at once; then the signature is that of each.
        provided: what can be provided.
        takes_value: whether a parameter may get the value; a provider's may not.

    Raises:
        DeclarationError: a parameter that cannot be filled; the message names it and says what to do.
    """
    place = place_of(function)
    annotations = _annotations(function, names)
    needs = _needs(annotations, provided or {}, is_batch, place)
    others = {name: annotation for name, annotation in annotations.items() if name not in needs}
    annotations = _of_each(others, is_batch, place)
    messages: list[tuple[str, TypeAdapter[Any] | None]] = []
    contexts: list[str] = []
    values: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        _refuse_kinds(parameter, place)
        if parameter.name in needs:
            continue
        annotation = annotations.get(parameter.name, Any)
        if annotation is Context or annotation is BatchContext:
            contexts.append(parameter.name)
        elif annotation is Message or get_origin(annotation) is Message:
            content = next(iter(get_args(annotation)), Any)
            messages.append((parameter.name, _adapter(content, parameter.name, place)))
        else:
            values.append(parameter)
    if not takes_value:
        _refuse_unfilled(values, annotations, place)
        values = []
    chosen = _value_parameter(values, place)
    taken = None if chosen is None else annotations.get(chosen, Any)
    value = None if chosen is None else (chosen, _adapter(taken, chosen, place))
    return Signature(value, tuple(messages), tuple(contexts), tuple(needs.items()), taken)


def _needs(
    annotations: Mapping[str, Any], provided: Mapping[Any, Provider], is_batch: bool, place: str
) -> dict[str, Provider]:
    """The providers of those parameters that have one."""
    needs: dict[str, Provider] = {}
    for name, annotation in annotations.items():
        try:
            provider = provided.get(annotation)
        except TypeError:
            # What cannot be hashed, as an Annotated may be, is nobody's.
            continue
        if provider is None:
            continue
        if is_batch and _asks_for_message(provider):
            raise DeclarationError(
                f"{place}: what provides {name!r} asks for the message, and a batch has many. Have it ask for the "
                "Context, or leave batch out."
            )
        needs[name] = provider
    return needs


def _asks_for_message(provider: Provider) -> bool:
    signature = provider.signature
    return bool(signature.messages) or any(_asks_for_message(need) for _, need in signature.needs)


def _refuse_unfilled(values: list[inspect.Parameter], annotations: Mapping[str, Any], place: str) -> None:
    """Refuse a provider's parameter that nothing fills, unless it has a default."""
    for parameter in values:
        if parameter.default is inspect.Parameter.empty:
            annotation = annotations.get(parameter.name)
            wanted = (
                "it has no annotation" if annotation is None else f"nothing above provides {annotation!r}"
            )
            raise DeclarationError(
                f"{place}: {parameter.name!r} cannot be filled, since {wanted}. A provider gets a Context, a "
                "Message[…], and what providers give that are declared above it, by annotation. Two that need each "
                "other cannot be filled."
            )


def _annotations(function: Callable[..., object], names: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters' annotations by name, text resolved to what it means."""
    written = {
        name: parameter.annotation
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.annotation is not inspect.Parameter.empty
    }
    # The return annotation stays out of it: it may name what is imported for type checkers only.
    return resolve(function, written, names)


def resolve(
    function: Callable[..., object], written: Mapping[str, Any], names: Mapping[str, Any]
) -> dict[str, Any]:
    """Annotations of a function with their text resolved to what it means.

    Raises:
        DeclarationError: a name in them means nothing.
    """

    def carrier() -> None: ...

    carrier.__annotations__ = dict(written)
    try:
        known = inspect.unwrap(function).__globals__
        return get_type_hints(carrier, globalns=known, localns=dict(names), include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise DeclarationError(
            f"{place_of(function)}: an annotation cannot be resolved ({error}). "
            "Import what it names at the top of the module, outside `if TYPE_CHECKING`."
        ) from error


def _of_each(annotations: dict[str, Any], is_batch: bool, place: str) -> dict[str, Any]:
    """The annotations as for one message: a handler of batches has lists of what another has."""
    found: dict[str, Any] = {}
    for parameter, annotation in annotations.items():
        is_list = annotation is list or get_origin(annotation) in (list, Sequence)
        content = next(iter(get_args(annotation)), Any) if is_list else annotation
        is_message = content is Message or get_origin(content) is Message
        if is_list and is_message and not is_batch:
            raise DeclarationError(
                f"{place}: {parameter!r} is a list of messages, but each call gets one. Say how many: batch=100."
            )
        if annotation is BatchContext and not is_batch:
            raise DeclarationError(
                f"{place}: annotate {parameter!r} as Context, or declare a batch: batch=100."
            )
        if is_batch and not is_list and annotation not in (Context, BatchContext, Any):
            raise DeclarationError(
                f"{place}: with batch=… {parameter!r} must be a list: list[Message[Article]], or list[Article] for "
                "the values alone."
            )
        found[parameter] = content if is_batch else annotation
    return found


def _refuse_kinds(parameter: inspect.Parameter, place: str) -> None:
    """Refuse the kinds of parameters that no single argument fills by name."""
    kinds = {
        inspect.Parameter.VAR_POSITIONAL: f"*{parameter.name}",
        inspect.Parameter.VAR_KEYWORD: f"**{parameter.name}",
    }
    if parameter.kind in kinds:
        raise DeclarationError(f"{place}: {kinds[parameter.kind]} cannot be filled. {_CURE}")
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise DeclarationError(f"{place}: {parameter.name!r} is positional-only. Drop the '/'.")


def _value_parameter(values: list[inspect.Parameter], place: str) -> str | None:
    """The one parameter that gets the value. Others may stay if they have defaults, which they keep."""
    needed = [parameter for parameter in values if parameter.default is inspect.Parameter.empty]
    choice = needed or values
    if len(choice) > 1:
        listed = " and ".join(repr(parameter.name) for parameter in choice)
        raise DeclarationError(
            f"{place}: {listed} would all get the value. {_CURE} What @agent.provide gives is "
            "declared above the handlers that need it."
        )
    return choice[0].name if choice else None


def _adapter(annotation: Any, parameter: str, place: str) -> TypeAdapter[Any] | None:
    """What validates a value to the annotation; None where anything goes."""
    content = annotation
    while get_origin(content) is Annotated:
        content = get_args(content)[0]
    if content is Context or content is Message or get_origin(content) is Message:
        raise DeclarationError(f"{place}: annotate {parameter!r} without Annotated.")
    if annotation is Any or annotation is object:
        return None
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        adapter.rebuild(raise_errors=True)
    except Exception as error:
        raise DeclarationError(
            f"{place}: pydantic cannot validate a value to the annotation of {parameter!r} "
            f"({str(error).splitlines()[0]}). Use a pydantic model, a dataclass or a type of JSON data; or declare "
            "above what provides it: @agent.provide."
        ) from error
    return adapter


def _validated(adapter: TypeAdapter[Any] | None, handler: str, message: Message[Any]) -> Any:
    """The message's value as the annotation wants it."""
    if adapter is None:
        return message.value
    try:
        return adapter.validate_python(message.value)
    except ValidationError as refusal:
        # A strict model takes a date from JSON text but not from a Python string: ask again in JSON's terms.
        try:
            return adapter.validate_json(to_json(message.value))
        except ValueError:
            # `from None`: the foreign error's own text repeats the input, which may hold a secret.
            raise InvalidPayload(_complaint(refusal, handler, message)) from None


def _complaint(error: ValidationError, handler: str, message: Message[Any]) -> str:
    """Where the value is wrong and how, in pydantic's words, without the value."""
    faults = error.errors(include_input=False, include_url=False, include_context=False)
    shown = "; ".join(
        f"{'.'.join(str(step) for step in fault['loc']) or 'value'}: {fault['msg']}"
        for fault in faults[:_SHOWN_FAULTS]
    )
    more = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
    return f"{handler} cannot take message {message.id}: {shown}{more}"


def place_of(function: Callable[..., object]) -> str:
    """Where the function stands, so that an editor finds it."""
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{code.co_firstlineno}, {function.__name__}"
