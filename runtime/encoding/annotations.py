"""The types within annotations, behind aliases, `| None`, Annotated and NewType."""

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NewType, TypeVar, Union, get_args, get_origin

_UNIONS = (Union, types.UnionType)


def without_alias(annotation: Any) -> Any:
    """Return the type that an alias, `type Name = …`, stands for."""
    # By the class's name: typing has it since Python 3.12, and typing_extensions has another one.
    while type(alias := get_origin(annotation) or annotation).__name__ == "TypeAliasType":
        given = get_args(annotation)
        annotation = alias.__value__[given] if given else alias.__value__
    return annotation


def layers(annotation: Any) -> Iterator[tuple[Any, bool]]:
    """Yield the annotation and the types within it, the outermost first, each with whether it is the same type.

    An alias and `| None` leave a type the same. Annotated, NewType and a TypeVar make another type of it.
    """
    is_same = True
    while True:
        annotation = without_alias(annotation)
        yield annotation, is_same
        if get_origin(annotation) in _UNIONS:
            members = [each for each in get_args(annotation) if each is not types.NoneType]
            if len(members) != 1:
                return
            [annotation] = members
            continue
        is_same = False
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif isinstance(annotation, TypeVar) and annotation.__bound__ is not None:
            annotation = annotation.__bound__
        else:
            return


def core(annotation: Any) -> Any:
    """Return the innermost layer of an annotation."""
    *_, (innermost, _) = layers(annotation)
    return innermost


def members(annotation: Any) -> Iterator[Any]:
    """Yield the annotation, or the members of a union."""
    found = core(annotation)
    if get_origin(found) not in _UNIONS:
        yield found
        return
    for each in get_args(found):
        yield from members(each)


def mentions(annotation: Any, is_meant: Callable[[Any], bool]) -> bool:
    """Whether `is_meant` holds for a type anywhere in an annotation."""
    seen: list[Any] = []
    waiting = [annotation]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            # The parameters of a Callable.
            waiting += each
            continue
        if any(each is known for known in seen):
            continue
        seen.append(each)
        found = core(each)
        if is_meant(get_origin(found) or found):
            return True
        waiting += get_args(found)
        if isinstance(found, TypeVar):
            waiting += found.__constraints__
    return False


def lookup(known: Mapping[Any, Any], annotation: Any) -> Any:
    """Return the entry of an annotation; None also for an unhashable one, as some of Annotated are."""
    try:
        return known.get(annotation)
    except TypeError:
        return None
