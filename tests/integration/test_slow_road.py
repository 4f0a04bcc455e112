"""A road on which not everything arrives in time: a few at a time, and what cannot be had at all is a dead letter."""

from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.faulty_proxy import faulty_proxy
from tests.integration.conftest import outcomes, running, until
from tests.integration.fronts import SLOW, dead, direct_settings, echoing, fronted, is_ready, none_left, send

pytestmark = [pytest.mark.anyio, pytest.mark.own_stack]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("store", ["rest", "direct"])
async def test_l11_a_slow_road_carries_a_few_at_a_time_and_what_cannot_be_had_is_a_dead_letter(
    stack: Any, store: str
) -> None:
    runs: Counter[int] = Counter()
    values: list[dict[str, Any]] = [{"n": n, "padding": "y" * 60_000} for n in range(40)]
    # So large that it takes ten times as long as a request may.
    values.insert(3, {"n": 40, "padding": "y" * 10_000_000})
    if store == "rest":
        async with fronted(stack, echoing(runs), request_seconds=2) as front:
            front.throttle(500_000)
            await send(stack, values)
            await until(lambda: none_left(stack), seconds=SLOW)
    else:
        port = urlsplit(stack.db_url).port
        assert port is not None
        async with faulty_proxy(port) as proxy:
            url = stack.db_url.replace(f":{port}/", f":{proxy.port}/")
            settings = direct_settings(url, notify=False, request_seconds=2, poll_slow_seconds=0.5)
            async with running([echoing(runs)], settings, live=False):
                await until(lambda: is_ready(stack))
                proxy.bytes_per_second = 500_000
                await send(stack, values)
                await until(lambda: none_left(stack), seconds=SLOW)
    assert runs == Counter(range(40))
    errors = await dead(stack)
    assert list(errors) == [40]
    assert "does not arrive" in errors[40]
    assert (await outcomes(stack.admin_url))["front.echo", "crashed"] == 0
