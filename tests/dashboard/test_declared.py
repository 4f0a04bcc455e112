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
