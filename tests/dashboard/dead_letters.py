"""Dead letters made and looked at by the dashboard's tests."""

from runtime.client.dead_letters import DeadLetterFilter
from tests.dashboard.conftest import Stage


def dead(stage: Stage, title: str) -> int:
    """A dead letter of publisher.publish; returns its number."""
    before = {each["id"] for each in letters(stage)}
    stage.send("draft.written", {"title": f"broken {title}", "words": 3})
    while True:
        fresh = [each["id"] for each in letters(stage) if each["id"] not in before]
        if fresh:
            return int(fresh[0])


def letters(stage: Stage) -> list[dict[str, int]]:
    """All dead letters."""
    found: list[dict[str, int]] = stage.ask(lambda: stage.stream.operations.dead_letters(DeadLetterFilter()))
    return found


async def discard(stage: Stage, number: int) -> None:
    """The letters of other tests are counted."""
    found = await stage.stream.operations.dead_letters(DeadLetterFilter())
    ids = [each["id"] for each in found if each["message_id"] == number]
    async for _ in stage.stream.operations.discard(DeadLetterFilter(ids=ids)):
        pass
