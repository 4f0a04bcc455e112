"""Test your agents over a real PostgreSQL: `async def test_it(harness): async with harness.running(agent): …`."""

from runtime.local.faults import FaultyGateway
from runtime.testing.harness import Harness, NotDrained

__all__ = ["FaultyGateway", "Harness", "NotDrained"]
