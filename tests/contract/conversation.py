"""The conversation of a worker with the schema, played against a database.

`conversation.json` has the steps; with each release they are recorded together with the answers, as
`release_<version>.json`. A step calls one function with named arguments. In them `"$take.taken.0.15"` stands for a part
of the answer to the step called take, `"$n"` for the next number of the pump and `"$n again"` for the one before. A
step with `until` is repeated until its answer holds that. A `loose` step is answered differently by each schema, or
in any order, and in the same form. Of an `optional` member some servers know nothing: it is recorded as null, and any
answer will do.
"""

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import asyncpg

from runtime.store.functions import FUNCTIONS

FOLDER = Path(__file__).parent
_SETTLE_SECONDS = 120
_DRAWN = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+[+Z]|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
# A subscription's number; messages of a fresh database have small ones.
_SMALLEST_DRAWN = 10_000


@dataclass
class Release:
    """A release: the types of the arguments its workers send, and the steps of its conversation.

    Once recorded, each step has the answer it was given.
    """

    name: str
    functions: dict[str, dict[str, str]]
    steps: list[dict[str, Any]]

    @classmethod
    def load(cls, name: str) -> "Release":
        """Read the recording of a release."""
        return cls(**json.loads(cls._file(name).read_text()))

    @classmethod
    def of_today(cls) -> "Release":
        """The release that the project is on the way to, without answers."""
        functions = {function: dict(types) for function, types in FUNCTIONS.items()}
        return cls(this_release(), functions, json.loads((FOLDER / "conversation.json").read_text()))

    def save(self) -> None:
        """Write the recording."""
        text = json.dumps(vars(self), indent=1, ensure_ascii=False)
        self._file(self.name).write_text(text + "\n")

    @staticmethod
    def _file(name: str) -> Path:
        return FOLDER / f"release_{name}.json"


def this_release() -> str:
    """The release that the project is on the way to."""
    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"]
    return str(project["version"].rpartition(".")[0])


def releases() -> list[str]:
    """The releases there are recordings of."""
    return sorted(file.stem.removeprefix("release_") for file in FOLDER.glob("release_*.json"))


@dataclass
class Player:
    """Plays a release's steps as its workers would: by name, with the types that it knew."""

    connection: Any
    release: Release
    answers: dict[str, Any] = field(default_factory=dict)
    n: int = 0

    async def record(self) -> None:
        """Play every step, and keep its answer with it."""
        for step in self.release.steps:
            answer = await self.play(step)
            step["answer"] = {**answer, **dict.fromkeys(step["optional"])} if "optional" in step else answer

    async def missed(self) -> list[str]:
        """Play every step, and return what a worker of the release would miss in the answers."""
        return [
            f"{step['name']}: {each}"
            for step in self.release.steps
            for each in differences(step["answer"], await self.play(step), loosely=step.get("loose", False))
        ]

    async def play(self, step: dict[str, Any]) -> Any:
        """Make the call of one step, and return the answer, or the SQLSTATE of an error as `{"error": …}`."""
        with anyio.fail_after(_SETTLE_SECONDS):
            while True:
                answer = await self._call(step["call"], step["with"])
                if "until" not in step or not differences(step["until"], answer):
                    break
        self.answers[step["name"]] = answer
        return answer

    async def _call(self, function: str, arguments: dict[str, Any]) -> Any:
        types = self.release.functions[function]
        given = {name: self._filled(value) for name, value in arguments.items()}
        named = ", ".join(
            f"{name} => ${place}::text::{types[name]}" for place, name in enumerate(given, start=1)
        )
        texts = [value if isinstance(value, str) else json.dumps(value) for value in given.values()]
        try:
            async with self.connection.transaction():
                return await self.connection.fetchval(f"select public.{function}({named})", *texts)
        except asyncpg.PostgresError as error:
            return {"error": error.sqlstate}

    def _filled(self, value: Any) -> Any:
        """The value with everything that stands for something looked up."""
        if isinstance(value, dict):
            return {self._filled(name): self._filled(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self._filled(each) for each in value]
        if not isinstance(value, str) or not value.startswith("$"):
            return value
        if value in ("$n", "$n again"):
            self.n += value == "$n"
            return self.n
        step, *path = value[1:].split(".")
        found = self.answers[step]
        # A subscription's name holds a dot.
        while path:
            name = path.pop(0)
            if isinstance(found, dict) and name not in found:
                name = f"{name}.{path.pop(0)}"
            found = found[int(name)] if isinstance(found, list) else found[name]
        return str(found) if isinstance(found, int) else found


def differences(old: Any, new: Any, place: str = "answer", *, loosely: bool = False) -> list[str]:
    """What a worker that knows the old answer would miss in the new one; more than it knows does no harm.

    Args:
        old: the answer as it was recorded.
        new: the answer of today.
        place: where in the answer this is.
        loosely: whether values need only be of one type; what the database draws never need more.
    """
    if old is None:
        return []
    old, new = _by_place(old), _by_place(new)
    if isinstance(old, dict) and isinstance(new, dict):
        missing = [f"{place}.{name} is missing" for name in old if name not in new]
        both = [name for name in old if name in new]
        return missing + [
            each
            for name in both
            for each in differences(old[name], new[name], f"{place}.{name}", loosely=loosely)
        ]
    if isinstance(old, list) and isinstance(new, list):
        # A row may gain columns at its end; rows that come or go are another answer.
        is_row = bool(old) and not isinstance(old[0], dict | list)
        # Loosely there may be more or fewer of them: the minutes of an activity, for example.
        if len(new) < len(old) if is_row else len(new) != len(old) and not loosely:
            return [f"{place} has {len(new)} parts and had {len(old)}"]
        pairs = enumerate(zip(old, new, strict=False))
        return [each for i, (o, n) in pairs for each in differences(o, n, f"{place}.{i}", loosely=loosely)]
    if _kind(old) is not _kind(new):
        return [f"{place} is {type(new).__name__} and was {type(old).__name__}"]
    if old != new and not (loosely or _is_drawn(old)):
        return [f"{place} is {new!r} and was {old!r}"]
    return []


def _by_place(value: Any) -> Any:
    """What goes by numbers that the database drew, by their order instead."""
    is_drawn = isinstance(value, dict) and value and all(name.isdigit() for name in value)
    return list(value.values()) if is_drawn else value


def _is_drawn(value: Any) -> bool:
    """Whether it is another one in each database: a time, a duration, an identity."""
    if isinstance(value, str):
        return bool(_DRAWN.match(value))
    return isinstance(value, float) or (not isinstance(value, bool) and value >= _SMALLEST_DRAWN)


def _kind(value: Any) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)
