"""Circuit breakers, as far as one process knows the states of its targets."""

import anyio
import pytest

from runtime.webhooks.circuit_breaker import CircuitBreakers

pytestmark = pytest.mark.anyio


async def test_a_rest_that_is_over_here_and_not_yet_in_the_database_lets_one_request_through_at_a_time() -> (
    None
):
    breakers = CircuitBreakers([{"name": "out.post"}], look_seconds=60)
    breakers._absorb({"out.post": {"rests_seconds": 0.0, "probing": False, "failing": True}})
    inside, most = 0, 0

    async def request() -> None:
        nonlocal inside, most
        async with breakers.admitted("out.post"):
            inside += 1
            most = max(most, inside)
            await anyio.lowlevel.checkpoint()
            inside -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(request)
    assert most == 1
