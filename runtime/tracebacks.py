"""Texts of exceptions and the places they were raised at, safe against exceptions of any class.

The class of an exception is the user's: `__str__`, `__cause__`, `__class__` or `__name__` may raise, never end, or
return anything. So the interpreter's own slots are read here instead of a class's attributes, user code is called only
under guard, and every text is bounded.
"""

import linecache
import os
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final

import anyio

from runtime.errors import RuntimeFault

# The most causes of a chain, members of a group, levels of groups, frames of a traceback and places that are shown.
_LINKS: Final = 20
_MEMBERS: Final = 15
_DEPTH: Final = 5
_FRAMES: Final = 60
_PLACES: Final = 6
_TEXT_CHARACTERS: Final = 20_000

_NAME = type.__dict__["__name__"].__get__
_QUALNAME = type.__dict__["__qualname__"].__get__
_FIELDS = BaseException.__dict__["__dict__"].__get__
_CAUSE = BaseException.__dict__["__cause__"].__get__
_CONTEXT = BaseException.__dict__["__context__"].__get__
_IS_CONTEXT_HIDDEN = BaseException.__dict__["__suppress_context__"].__get__
_TRACEBACK = BaseException.__dict__["__traceback__"].__get__
_GROUPED = BaseExceptionGroup.__dict__["exceptions"].__get__

_OURS: Final = str(Path(__file__).parent) + os.sep
_LIBRARIES: Final = tuple(
    {
        os.path.join(path, "")
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        if (path := sysconfig.get_path(name))
    }
    | {str(Path(str(anyio.__file__)).parent.parent) + os.sep}
)
# Installed packages that declare agents.
_own: Final[set[str]] = set()
# The made-up package of files that are imported by their path.
_FOUND: Final = re.compile(r"\bruntime_found_[0-9a-f]{12}\.")

_CAUSED = "\nThe above exception was the direct cause of the following exception:\n\n"
_WHILE_HANDLED = "\nDuring handling of the above exception, another exception occurred:\n\n"


def text_of(error: BaseException) -> str:
    """Return the exception's class and text: `ValueError: no such order`."""
    name, text = name_of(type(error)), _own_text(error)
    return f"{name}: {text}" if text else name


def name_of(kind: type) -> str:
    """Return the name of a class, past its metaclass."""
    return str.__str__(_NAME(kind))


def full_name_of(kind: type) -> str:
    """Return the name of a class with its module, as its author knows it."""
    try:
        module = kind.__module__
        module = str.__str__(module) if isinstance(module, str) else ""
    except BaseException:  # noqa: BLE001 - the class is the user's
        module = ""
    name = str.__str__(_QUALNAME(kind))
    return name if module in ("", "builtins", "__main__") else without_made_up_names(f"{module}.{name}")


def without_made_up_names(text: str) -> str:
    """Return a text without the package names that the runtime makes up."""
    return _FOUND.sub("", text)


def members_of(error: BaseException) -> list[BaseException]:
    """Return the errors in a group, at any depth, each once; for another error, itself."""
    found: list[BaseException] = []
    seen: set[int] = set()
    left = [error]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if issubclass(type(each), BaseExceptionGroup):
            left.extend(reversed(_GROUPED(each)))
        else:
            found.append(each)
    return found


def trace_of(error: BaseException) -> str:
    """Return the traceback with its causes, as Python prints it; the runtime's frames around the user's are folded."""
    return without_made_up_names("".join(_chain(error, 0)))


def exc_info_of(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """Return an `exc_info` for a log, which would read a bare exception's own attributes."""
    return type(error), error, _TRACEBACK(error)


def places_of(error: BaseException, *, are_own: bool = False) -> list[str]:
    """Return where in the user's own code an exception was raised, innermost first: `/app/shop.py:12 in pack`.

    For a group, the places of its first members. Frames of the runtime are left out, and those of libraries except the
    innermost. Empty if only the runtime's code took part.

    Args:
        error: the exception.
        are_own: whether to leave out the innermost frame of a library too.
    """
    places: dict[str, None] = {}
    for each in members_of(error)[:_PLACES]:
        group = _places(error, are_own) if each is not error else []
        places |= dict.fromkeys([*_places(each, are_own), *group])
    return list(places)[:_PLACES]


def place_in_stack(frame: FrameType | None) -> tuple[str, str] | None:
    """Return the innermost line of the user's own code in a running stack, and its text; None if there is none."""
    while frame is not None and not _is_own(frame):
        frame = frame.f_back
    if frame is None:
        return None
    code, number, names = frame.f_code, frame.f_lineno, frame.f_globals
    text = _guarded(lambda: linecache.getline(code.co_filename, number, names).strip(), "")
    return f"{code.co_filename}:{number} in {code.co_name}", text


def own_part(error: BaseException) -> TracebackType | None:
    """Return the part of a traceback from the first frame of the user's own code on, for a debugger.

    It ends before the runtime's frames that follow, if any do.
    """
    frames: list[TracebackType] = []
    each: TracebackType | None = _TRACEBACK(error)
    while each is not None:
        if frames or _is_own(each.tb_frame):
            frames.append(each)
        each = each.tb_next
    while frames and _is_ours(frames[-1].tb_frame):
        frames.pop()
    part: TracebackType | None = None
    for each in reversed(frames):
        part = TracebackType(part, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return part or _TRACEBACK(error)


def treat_as_own(file: str) -> None:
    """Count the package of a file as the user's own, even if it is installed among libraries."""
    library = max((each for each in _LIBRARIES if file.startswith(each)), key=len, default="")
    top, inner, _ = file.removeprefix(library).partition(os.sep)
    if library and top not in ("site-packages", "dist-packages"):
        _own.add(library + top + inner)


def line_of(error: BaseException) -> str:
    """Return the source line that raised an exception; empty where it cannot be read."""
    frames = list(_frames(error))
    if not frames:
        return ""
    frame, number = frames[-1]
    return _guarded(lambda: linecache.getline(frame.f_code.co_filename, number, frame.f_globals).strip(), "")


def _places(error: BaseException, are_own: bool) -> list[str]:
    frames = [each for each in _frames(error) if not _is_ours(each[0])]
    frames.reverse()
    is_own = [_is_own(frame) for frame, _ in frames]
    if not any(is_own):
        return []
    return [
        _place(frame, number)
        for place, (frame, number) in enumerate(frames)
        if is_own[place] or (place == 0 and not are_own)
    ][:_PLACES]


def _place(frame: FrameType, number: int) -> str:
    return f"{frame.f_code.co_filename}:{number} in {frame.f_code.co_name}"


def _is_own(frame: FrameType) -> bool:
    """Whether a frame runs the user's own code."""
    return not (_is_ours(frame) or _is_library(frame.f_code.co_filename))


def _is_ours(frame: FrameType) -> bool:
    """Whether a frame runs the runtime's code, which dataclasses write in part."""
    file = frame.f_code.co_filename
    if file == "<string>":
        return str(frame.f_globals.get("__name__", "")).startswith("runtime.")
    return file.startswith(_OURS)


def _is_library(file: str) -> bool:
    is_found = file.startswith((*_LIBRARIES, "<frozen ")) or file.endswith(".pyx")
    return is_found and not file.startswith(tuple(_own))


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Yield the last frames of a traceback, outermost first."""
    trace: TracebackType | None = _TRACEBACK(error)
    count, each = 0, trace
    while each is not None:
        count, each = count + 1, each.tb_next
    for place, (frame, number) in enumerate(traceback.walk_tb(trace)):
        if place >= count - _FRAMES:
            yield frame, number


def _chain(error: BaseException, depth: int) -> Iterator[str]:
    """Yield the text of an exception and its causes, the first cause first."""
    links: list[tuple[BaseException, str]] = []
    seen: set[int] = set()
    each: BaseException | None = error
    word = ""
    while each is not None and id(each) not in seen and len(links) < _LINKS:
        seen.add(id(each))
        links.append((each, word))
        cause, context = _CAUSE(each), _CONTEXT(each)
        is_hidden = cause is not None or _IS_CONTEXT_HIDDEN(each)
        word = _CAUSED if cause is not None else _WHILE_HANDLED
        each = cause if is_hidden else context
    for link, joint in reversed(links):
        yield from _one(link, depth, is_alone=len(links) == 1)
        yield joint


def _one(error: BaseException, depth: int, *, is_alone: bool) -> Iterator[str]:
    """Yield the text of one exception: its frames, its own text, its notes, and the members of a group."""
    if _TRACEBACK(error) is not None:
        yield "Traceback (most recent call last):\n"
        yield _guarded(lambda: _folded(error), "  (its frames cannot be shown)\n")
    yield _last_lines(error, is_alone=is_alone)
    notes = _FIELDS(error).get("__notes__")
    if type(notes) is list:
        yield from (_plain(note)[:_TEXT_CHARACTERS] + "\n" for note in notes[:_MEMBERS])
    if not issubclass(type(error), BaseExceptionGroup):
        return
    members = _GROUPED(error)
    for number, member in enumerate(members[:_MEMBERS] if depth < _DEPTH else (), start=1):
        yield f"  +---------------- {number} ----------------\n"
        for part in _chain(member, depth + 1):
            yield "".join(f"  | {line}\n" for line in part.splitlines())
    if len(members) > _MEMBERS or depth >= _DEPTH:
        yield f"  and {len(members)} members in all\n"


def _folded(error: BaseException) -> str:
    """Return the frames of a traceback, with the runtime's replaced by their number.

    The runtime's innermost frames are kept unless the runtime raised the error on purpose: they may show a fault of
    its own. So are all frames of another error that no code of the user's took part in.
    """
    frames = list(_frames(error))
    own = [place for place, (frame, _) in enumerate(frames) if _is_own(frame)]
    is_meant = issubclass(type(error), RuntimeFault)
    text, hidden = "", 0
    for place, (frame, number) in enumerate(frames):
        is_outer = bool(own) and place < own[0]
        is_inner = bool(own) and place > own[-1]
        if is_outer or (_is_ours(frame) and (is_meant or (own and not is_inner))):
            hidden += 1
            continue
        text += _count_of(hidden) + "".join(traceback.StackSummary.extract([(frame, number)]).format())
        hidden = 0
    return text + _count_of(hidden)


def _count_of(hidden: int) -> str:
    return f"  ({hidden} frame{'s' * (hidden > 1)} of the runtime)\n" if hidden else ""


def _last_lines(error: BaseException, *, is_alone: bool) -> str:
    """Return the line with an exception's name and text; Python's own ones with hints such as "Did you mean"."""
    if is_alone and type(error) in (AttributeError, ImportError, ModuleNotFoundError, NameError, SyntaxError):
        bare = type(error).__module__ == "builtins" and not _FIELDS(error)
        if bare:
            return _guarded(lambda: "".join(traceback.format_exception_only(error)), text_of(error) + "\n")
    text = _own_text(error)
    name = full_name_of(type(error))
    return f"{name}: {text}\n" if text else f"{name}\n"


def _own_text(error: BaseException) -> str:
    """Return an exception's `str`; if that fails, a text that says so."""
    try:
        text = str(error)
    except BaseException as failure:  # noqa: BLE001 - a user's `__str__` may raise anything
        return f"(no text: __str__ raised {name_of(type(failure))})"
    # A user's subclass of str may override any method.
    plain = str.__str__(text)
    if len(plain) > _TEXT_CHARACTERS:
        plain = f"{plain[: _TEXT_CHARACTERS // 2]} … {plain[-_TEXT_CHARACTERS // 2 :]}"
    # A lone surrogate could not be written to a file or the database.
    return without_made_up_names(plain.encode("utf-8", "backslashreplace").decode())


def _plain(note: object) -> str:
    return (
        str.__str__(note) if isinstance(note, str) else _guarded(lambda: str.__str__(repr(note)), "(a note)")
    )


def _guarded(function: Callable[[], str], instead: str) -> str:
    """Return the result of a function that may call user code, or the other text if it raises."""
    try:
        return function()
    except BaseException:  # noqa: BLE001 - user code may raise anything
        return instead
