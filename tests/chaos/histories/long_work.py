"""What a worker of a history does in the middle of a delivery: it keeps steps, undoes them, and waits for messages."""

import json
from collections.abc import Mapping
from random import Random
from typing import Any

from tests.chaos.histories.history import History, Run
from tests.chaos.histories.roads import Road, until_answered

_WAIT_SECONDS = 600.0


class LongWork:
    """Keeps steps and waits of the deliveries that a worker holds, by their leases.

    Args:
        history: where it is written down.
        random: its dice.
        road: the way to the kernel.
        numbers: the subscriptions' numbers by their names.
        pinned: the name of the one whose versions go on alone with what they have begun.
    """

    def __init__(
        self, history: History, random: Random, road: Road, numbers: Mapping[str, int], pinned: str
    ) -> None:
        self._history, self._random, self._road = history, random, road
        self._numbers, self._pinned = numbers, pinned

    async def go_on(self, run: Run) -> None:
        """Do a part of the work of one delivery, or nothing."""
        draw = self._random.random()
        if run.is_undoing:
            await self._undo(run)
        elif draw < 0.15:
            await self._keep(run, undo=self._random.random() < 0.4)
        elif draw < 0.25 and not run.waits:
            await self._wait(run)

    async def _keep(self, run: Run, *, undo: bool) -> None:
        value = self._history.tick()
        name = f"s{value}"
        given = {"name": name, "key": "", "occurrence": 1, "value": str(value), "version": run.version}
        if undo:
            given["undo"] = json.dumps({"step": name, "arguments": {}})
        answer = await self._call("stream_step", run, given)
        if not answer["held"]:
            self._history.counts["steps refused"] += 1
            return
        # A worker that asks again after a lost answer is told what its first call has kept.
        assert answer.get("earlier", [value]) in ([], [value]), answer
        run.steps[name] = value
        self._history.begin(run, self._pinned)
        self._history.keep(run.place, name, value, is_undone=undo)

    async def _undo(self, run: Run) -> None:
        """Keep the undo of the last step that has one."""
        left = [name for name in run.undos if f"undo.{name}" not in run.steps]
        if left:
            given = {"name": f"undo.{left[-1]}", "key": "", "occurrence": 1, "value": "true"}
            if (await self._call("stream_step", run, given))["held"]:
                run.steps[f"undo.{left[-1]}"] = True

    async def _wait(self, run: Run) -> None:
        """Wait for the next message under the same key that nobody has seen yet; there may be one already."""
        place = [run.key, "", 1]
        since = max(self._history.messages, default=run.place[0])
        wire = {
            "name": run.key,
            "key": "",
            "occurrence": 1,
            "pattern": run.key,
            "seconds": _WAIT_SECONDS,
            "since": since,
        }
        answer = await self._call("stream_wait", run, {"waits": json.dumps([wire])})
        if answer["held"] and answer["outcomes"] == [None]:
            run.waits = [place]
            self._history.begin(run, self._pinned)
            self._history.counts["waits"] += 1

    async def _call(self, function: str, run: Run, given: dict[str, Any]) -> Any:
        message, name = run.place
        return await until_answered(
            self._road, function,
            {"message": message, "subscription": self._numbers[name], "lease": run.lease, **given},
        )  # fmt: skip


def steps_of(row: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the steps that come with a delivery, and the names of those that have undos, as they finished."""
    steps = row.steps or ()
    return {each[0]: each[3] for each in steps}, [each[0] for each in steps if each[5] is not None]
