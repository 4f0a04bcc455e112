"""The arguments of a handler's parameters, chosen by annotation.

`Message[Article]` gets the message, `Context` the context, the type of a provider what that gives, and anything else
the value. This is worked out once, when the handler is declared, so that a wrong signature fails at import.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from runtime.agent.batch import BatchContext
from runtime.agent.callables import globals_of, place_of
from runtime.agent.context import Context
from runtime.encoding.annotations import core, layers, lookup, members, mentions
from runtime.encoding.readback import read
from runtime.encoding.unreadable import LIVING, find_unreadable
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
        value: the parameter that gets the value, with its validator; or None.
        messages: the parameters that get the message, each with the validator of its value.
        contexts: the parameters that get the context.
        needs: the parameters that a provider fills.
        taken: the annotation of the parameter for the value.
        defaulted: the annotations of the parameters that keep their defaults.
    """

    value: tuple[str, TypeAdapter[Any] | None] | None
    messages: tuple[tuple[str, TypeAdapter[Any] | None], ...]
    contexts: tuple[str, ...]
    needs: "tuple[tuple[str, Provider], ...]" = ()
    taken: Any = None
    defaulted: tuple[Any, ...] = ()

    def misses(self, provider: "Provider") -> bool:
        """Whether a parameter gets the value, or keeps its default, that this provider would have filled."""
        return any(
            provider.provided == layer
            for annotation in (self.taken, *self.defaulted)
            for layer, is_same in layers(annotation)
            if is_same
        )

    def bind(self, handler: str, message: Message[Any], context: Context) -> dict[str, Any]:
        """Return the arguments by name, without those that providers give.

        Args:
            handler: the subscription's name, for the error.
            message: the message with its value as plain JSON data.
            context: the context of this attempt.

        Raises:
            InvalidPayload: the value does not fit an annotation, or the message holds what Python cannot read.
        """
        if LIVING:
            _refuse_unreadable(handler, message)
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
    """A function that gives handlers their arguments of one type.

    Attributes:
        provided: the annotation of the parameters it fills.
        call: returns the argument, or a context manager for it.
        is_async: whether the result is awaited, or entered asynchronously.
        has_end: whether the result is a context manager.
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
        names: local names that annotations written as text can use.
        is_batch: whether it gets many messages at once; then the signature is that of each message.
        provided: the providers by type.
        takes_value: whether a parameter may get the value; a provider's may not.

    Raises:
        DeclarationError: a parameter cannot be filled; the message names it and says what to do.
    """
    place = place_of(function)
    annotations = _annotations(function, names)
    messages: list[tuple[str, TypeAdapter[Any] | None]] = []
    contexts: list[str] = []
    needs: dict[str, Provider] = {}
    values: list[inspect.Parameter] = []
    for name, parameter in _parameters(function).items():
        _refuse_kinds(parameter, place)
        annotation = annotations.get(name, Any)
        if (provider := _provider(annotation, provided or {}, parameter, place)) is not None:
            _refuse_needing_message(provider, name, is_batch, place)
            needs[name] = provider
        elif (found := core(annotation)) is Context or found is BatchContext:
            if found is BatchContext and not is_batch:
                raise DeclarationError(
                    f"{place}: annotate {name!r} as Context, or declare a batch: batch=100."
                )
            contexts.append(name)
        else:
            annotations[name] = content = _of_each(annotation, name, is_batch, place)
            if (message := core(content)) is Message or get_origin(message) is Message:
                taken = next(iter(get_args(message)), Any)
                messages.append((name, _adapter(taken, name, place)))
            else:
                _refuse_hidden(content, name, place)
                values.append(parameter)
    if not takes_value:
        _refuse_unfilled(values, annotations, place)
    chosen = _value_parameter(values, place) if takes_value else None
    taken = None if chosen is None else annotations.get(chosen, Any)
    value = None if chosen is None else (chosen, _adapter(taken, chosen, place))
    defaulted = tuple(annotations[each.name] for each in values if each.name != chosen)
    return Signature(value, tuple(messages), tuple(contexts), tuple(needs.items()), taken, defaulted)


def _parameters(function: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (ValueError, TypeError) as error:
        raise DeclarationError(
            f"{place_of(function)}: its parameters cannot be read ({error}). Declare a function of your own that "
            "calls it."
        ) from None


def _provider(
    annotation: Any, provided: Mapping[Any, Provider], parameter: inspect.Parameter, place: str
) -> Provider | None:
    """Return the provider of a parameter.

    Raises:
        DeclarationError: there is a provider for a part of the annotation only.
    """
    if not provided:
        return None
    for layer, is_same in layers(annotation):
        provider: Provider | None = lookup(provided, layer)
        if provider is None:
            continue
        if is_same:
            return provider
        raise DeclarationError(
            f"{place}: {parameter.name!r} is annotated with {annotation!r}, but the provider gives {layer!r}. "
            "Annotate it with that, or declare a provider of the other above."
        )
    if any(lookup(provided, each) is not None for each in members(annotation)):
        raise DeclarationError(
            f"{place}: of {parameter.name!r}, annotated with {annotation!r}, one part is provided and another is not. "
            "Annotate it with one type, or with that and None."
        )
    return None


def _refuse_needing_message(provider: Provider, name: str, is_batch: bool, place: str) -> None:
    if is_batch and _asks_for_message(provider):
        raise DeclarationError(
            f"{place}: the provider of {name!r} takes the message, and a batch has many. Have it take the Context, or "
            "leave batch out."
        )


def _asks_for_message(provider: Provider) -> bool:
    signature = provider.signature
    return bool(signature.messages) or any(_asks_for_message(need) for _, need in signature.needs)


def _refuse_unfilled(values: list[inspect.Parameter], annotations: Mapping[str, Any], place: str) -> None:
    """Refuse a provider's parameter that nothing fills, unless it has a default."""
    for parameter in values:
        if parameter.default is inspect.Parameter.empty:
            is_bare = parameter.annotation is inspect.Parameter.empty
            missing = f"no provider above gives {annotations[parameter.name]!r}"
            raise DeclarationError(
                f"{place}: {parameter.name!r} cannot be filled: {'it has no annotation' if is_bare else missing}. A "
                "provider gets, by annotation, a Context, a Message[…] and what providers above it give. Two providers "
                "that need each other cannot be filled."
            )


def _annotations(function: Callable[..., object], names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters' annotations by name, with text resolved."""
    written = {
        name: parameter.annotation
        for name, parameter in _parameters(function).items()
        if parameter.annotation is not inspect.Parameter.empty
    }
    # Without the return annotation: it may name what is imported for type checkers only.
    return resolve(function, written, names)


def resolve(
    function: Callable[..., object], written: Mapping[str, Any], names: Mapping[str, Any]
) -> dict[str, Any]:
    """Return annotations of a function with text resolved.

    Raises:
        DeclarationError: they use an unknown name.
    """

    def carrier() -> None: ...

    carrier.__annotations__ = dict(written)
    try:
        known = dict(globals_of(function))
        return get_type_hints(carrier, globalns=known, localns=dict(names), include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise DeclarationError(
            f"{place_of(function)}: an annotation cannot be resolved ({error}). "
            "Import what it names at the top of the module, outside `if TYPE_CHECKING`."
        ) from error


def _of_each(annotation: Any, name: str, is_batch: bool, place: str) -> Any:
    """Return the annotation for one message: a handler of batches has a list of it."""
    outer = [layer for layer, is_same in layers(annotation) if is_same][-1]
    is_list = outer is list or get_origin(outer) in (list, Sequence)
    content = next(iter(get_args(outer)), Any) if is_list else annotation
    message = core(content)
    if is_list and not is_batch and (message is Message or get_origin(message) is Message):
        raise DeclarationError(
            f"{place}: {name!r} is a list of messages, but each call gets one. Declare a batch: batch=100."
        )
    if is_batch and not is_list and annotation is not Any:
        raise DeclarationError(
            f"{place}: with batch=… {name!r} must be a list: list[Message[Article]], or list[Article] for "
            "the values alone."
        )
    return content if is_batch else annotation


def _refuse_hidden(annotation: Any, name: str, place: str) -> None:
    """Refuse an annotation that holds the context or a message in a form that cannot be filled."""
    if mentions(annotation, lambda found: isinstance(found, type) and issubclass(found, (Context, Message))):
        raise DeclarationError(
            f"{place}: {name!r} cannot be filled: its annotation, {annotation!r}, has a Context or a Message beside or "
            "within another type, or a subclass of one. Annotate it with Context or Message[…] itself; `| None` and "
            f"Annotated are allowed. {_CURE}"
        )


def _refuse_kinds(parameter: inspect.Parameter, place: str) -> None:
    """Refuse the kinds of parameters that cannot be filled by name."""
    kinds = {
        inspect.Parameter.VAR_POSITIONAL: f"*{parameter.name}",
        inspect.Parameter.VAR_KEYWORD: f"**{parameter.name}",
    }
    if parameter.kind in kinds:
        raise DeclarationError(
            f"{place}: {kinds[parameter.kind]} cannot be filled. {_CURE} A decorator tells which function it wraps "
            "with @functools.wraps."
        )
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise DeclarationError(f"{place}: {parameter.name!r} is positional-only. Drop the '/'.")


def _value_parameter(values: list[inspect.Parameter], place: str) -> str | None:
    """Return the one parameter that gets the value; others need defaults, which they keep."""
    needed = [parameter for parameter in values if parameter.default is inspect.Parameter.empty]
    choice = needed or values
    if len(choice) > 1:
        listed = " and ".join(repr(parameter.name) for parameter in choice)
        raise DeclarationError(
            f"{place}: {listed} would all get the value. {_CURE} A provider, @agent.provide, is declared above the "
            "handlers that need it."
        )
    return choice[0].name if choice else None


def _adapter(annotation: Any, parameter: str, place: str) -> TypeAdapter[Any] | None:
    """Return the validator of an annotation; None if it takes any value."""
    if annotation is Any or annotation is object:
        return None
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        adapter.rebuild(raise_errors=True)
    except Exception as error:
        raise DeclarationError(
            f"{place}: pydantic cannot validate a value to the annotation of {parameter!r} "
            f"({str(error).splitlines()[0]}). Use a pydantic model, a dataclass or a type of JSON data; or declare its "
            "provider above: @agent.provide."
        ) from error
    return adapter


def _refuse_unreadable(handler: str, message: Message[Any]) -> None:
    """Refuse a message with a marker in it, even if the handler takes no value: part of the message is missing."""
    for name, part in (("value", message.value), ("headers", message.headers)):
        if (found := find_unreadable(name, part)) is not None:
            place, marker = found
            raise InvalidPayload(
                f"{handler} cannot take message {message.id}: {place} is {marker.what}, which Python cannot read. Have "
                "its writer send it as a string, or in another shape."
            )


def _validated(adapter: TypeAdapter[Any] | None, handler: str, message: Message[Any]) -> Any:
    """Return the message's value as the annotated type."""
    if adapter is None:
        return message.value
    try:
        return read(adapter, message.value)
    except ValidationError as refusal:
        # `from None`: pydantic's own text repeats the input, which may hold a secret.
        raise InvalidPayload(_complaint(refusal, handler, message)) from None


def _complaint(error: ValidationError, handler: str, message: Message[Any]) -> str:
    """Say where the value is wrong and how, in pydantic's words, without the value."""
    faults = error.errors(include_input=False, include_url=False, include_context=False)
    shown = "; ".join(
        f"{'.'.join(str(step) for step in fault['loc']) or 'value'}: {fault['msg']}"
        for fault in faults[:_SHOWN_FAULTS]
    )
    more = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
    return f"{handler} cannot take message {message.id}: {shown}{more}"
