"""Faults on order, for tests: `async with FaultyGateway(url) as faults: faults.drop("rows")`."""

from runtime.local.faults.orders import Kind
from runtime.local.faults.proxy import FaultyGateway

__all__ = ["FaultyGateway", "Kind"]
