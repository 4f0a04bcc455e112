"""Does the map show what no subscription tells of: handlers that every process runs and nothing is kept for?"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.dashboard.pages.map import _map
from runtime.dashboard.schemas import Schemas

pytestmark = pytest.mark.anyio

SOURCE = """
from runtime import Agent

cache = Agent("cache")

@cache.on("draft.written", deliver="each")
async def forget(draft: dict) -> None: ...
"""


class Told:
    """What the live state would have asked the database for."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer

    async def get(self) -> dict[str, Any]:
        return self.answer


async def test_the_map_shows_who_hears_in_every_process_by_declaration_alone(tmp_path: Path) -> None:
    (tmp_path / "cache_agents.py").write_text(SOURCE)
    schemas = Schemas([str(tmp_path / "cache_agents.py")])
    await schemas.read()
    assert schemas.declared["cache.forget"].deliver == "each"
    live_state = SimpleNamespace(
        stats=Told({"subscriptions": []}), flow=Told({"written": [], "handled": [], "seconds": 0})
    )
    found = await _map(SimpleNamespace(live_state=live_state, schemas=schemas))  # type: ignore[arg-type]
    names = {node.name for node in found["graph"].nodes.values()}
    assert names == {"draft.written", "cache"}


async def test_agents_that_cannot_be_read_are_told_with_file_and_line_and_the_last_declarations_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "cache_agents.py"
    file.write_text(SOURCE)
    schemas = Schemas([str(file)])
    await schemas.read()
    assert schemas.fault is None
    # What an import prints is not taken for the answer.
    file.write_text("print('hello')\n\nraise KeyError('cache')\n")
    for _ in range(2):
        await schemas.read()
    assert schemas.fault is not None
    assert f"{file}:3: KeyError: 'cache'" in schemas.fault
    assert set(schemas.declared) == {"cache.forget"}
    assert [each.getMessage().count("cache_agents.py:3") for each in caplog.records] == [1]
    file.write_text("import os\nos._exit(3)\n")
    await schemas.read()
    assert "ended Python with 3" in str(schemas.fault)
    file.write_text(SOURCE)
    await schemas.read()
    assert schemas.fault is None
