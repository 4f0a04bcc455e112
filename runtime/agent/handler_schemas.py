"""The types of what handlers take and return, as far as they have JSON schemas."""

import inspect
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation, PydanticUserError

from runtime.agent.handler import Handler


def taken_type(handler: Handler) -> TypeAdapter[Any] | None:
    """Return the type of the value that a handler takes; None where it takes any, or has no JSON schema."""
    signature = handler.signature
    adapters = [adapter for _, adapter in (*filter(None, [signature.value]), *signature.messages)]
    return with_schema(next((adapter for adapter in adapters if adapter is not None), None))


def returned_type(handler: Handler) -> TypeAdapter[Any] | None:
    """Return the type of a handler's results by its annotation, without None, which is not emitted."""
    try:
        annotation = get_type_hints(inspect.unwrap(handler.function), include_extras=True).get("return", Any)
        annotation = _without_none(annotation)
        if handler.batch is not None and get_origin(annotation) is list:
            # One result is emitted for each message.
            annotation = _without_none(next(iter(get_args(annotation)), Any))
        returned = None if annotation in (Any, object, type(None)) else TypeAdapter(annotation)
    except (NameError, AttributeError, TypeError, PydanticUndefinedAnnotation, PydanticUserError):
        # Imported for type checkers only, or no type of JSON data: then any payload is possible.
        return None
    return with_schema(returned)


def with_schema(adapter: TypeAdapter[Any] | None) -> TypeAdapter[Any] | None:
    """Return a type if it has a JSON schema; one with a custom validator may have none."""
    try:
        if adapter is not None:
            adapter.json_schema()
    except PydanticInvalidForJsonSchema:
        return None
    return adapter


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    rest = [each for each in get_args(annotation) if each is not type(None)]
    return Union[tuple(rest)]  # noqa: UP007 - of a list that is known here only
