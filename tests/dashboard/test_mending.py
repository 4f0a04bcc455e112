"""A dead letter goes on from the step that a person chooses on its page."""

import httpx

from runtime.dashboard.security import CSRF_HEADER
from tests.dashboard.conftest import Stage
from tests.kernel.driver import Worker, connected, insert
from tests.kernel.test_k17_steps import keep, names


def test_a_letter_is_redriven_from_a_step(stage: Stage) -> None:
    async def play() -> None:
        async with connected(stage.stack.admin_url) as connection, httpx.AsyncClient(timeout=60) as client:
            worker = Worker(connection)
            await worker.subscribe("press.write=topic.found")
            await insert(connection, "topic.found", "tea")
            [taken] = await worker.take()
            for name, key in (("draft", ""), ("<b>", "ada"), ("shorten", "")):
                await keep(connection, taken, name, 1, key=key)
            await worker.fail(taken, outcome="dead")
            [letter] = await connection.fetchval("select stream_dead(subscription => 'press.write')")
            url = f"{stage.url}/dead/{letter['id']}"
            page = (await client.get(url)).text
            assert '<option value="&lt;b&gt; [ada]">from &lt;b&gt; [ada]</option>' in page
            token = page.partition('"X-CSRF-Token": "')[2].partition('"')[0]
            own = {"origin": stage.url, CSRF_HEADER: token, "hx-request": "true"}
            refused = await client.post(f"{url}/redrive", data={"from_step": "darft"}, headers=own)
            assert refused.status_code < 500
            assert "has not kept darft" in refused.text
            done = await client.post(f"{url}/redrive", data={"from_step": "<b> [ada]"}, headers=own)
            assert done.status_code == 200
            [again] = await worker.take()
            assert [name for name, *_ in names(again)] == ["draft"]
            await worker.finish(again)

    stage.ask(play)
