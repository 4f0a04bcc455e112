"""Budgets and refusals in a worker: who has spent a budget is held, and so is whom a provider refuses."""

from typing import Any

import anyio
import httpx
import pytest

from runtime import Agent, Context, Retry, connect
from runtime.cli.output import out
from runtime.cli.status import advice
from runtime.cli.subscriptions import state
from runtime.cli.top import picture
from runtime.cli.top_view import TopView
from runtime.errors import DeclarationError
from tests.integration.conftest import connected, running, settled, until
from tests.worker.test_worker import admin, direct

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("within_an_hour")]


@pytest.mark.parametrize(
    "budget", ["5", "5 EUR/day", "0 USD/day", "-5 USD/day", "5 USD/year", "nan USD/day", 5, True]
)
def test_a_budget_that_is_none_is_refused_where_it_is_declared(budget: Any) -> None:
    with pytest.raises(DeclarationError, match=r'budget=…\) must be a text such as "5 USD/day"'):
        Agent("a").on("b", budget=budget)
    with pytest.raises(DeclarationError, match="needs a budget"):
        Agent("a").on("b", budget_per=2)
    with pytest.raises(DeclarationError, match="number of segments"):
        Agent("a").on("b", budget="5 USD/day", budget_per=0)
    with pytest.raises(DeclarationError, match="would break the order"):
        Agent("a").on("b", budget="5 USD/day", budget_per=2, ordered=True)
    with pytest.raises(DeclarationError, match="Nothing is counted of what each process does"):
        Agent("a").on("b", budget="5 USD/day", deliver="each")


async def test_a_spent_budget_holds_a_handler_and_a_refusal_another_and_both_say_so(database: str) -> None:
    agent, tries = Agent("summarizer"), list[int]()

    @agent.on("text.found", budget="0.50 USD/day", concurrency_total=1)
    def summarize(text: int, context: Context) -> None:
        # A plain function, and one that fails: it is paid all the same.
        context.usage(tokens_in=7, tokens_out=2, cost=0.3, model="big")
        context.usage(tokens_in=1, cost=0.0)
        if text == 0:
            raise ValueError("no ending")

    @agent.on("text.asked", retry=Retry(attempts=1), concurrency_total=1)
    async def ask(text: int, context: Context) -> None:
        tries.append(text)
        if len(tries) == 1:
            answer = httpx.Response(
                429, headers={"retry-after": "2"}, request=httpx.Request("POST", "https://m.test/")
            )
            answer.raise_for_status()

    async with (
        running([agent], direct(database)),
        connect(direct(database)) as stream,
        connected(admin(database)) as connection,
    ):

        async def found(name: str) -> dict[str, Any]:
            return next(each for each in (await stream.stats())["subscriptions"] if each["name"] == name)

        await until(lambda: settled(connection, "summarizer.summarize"))
        await until(lambda: settled(connection, "summarizer.ask"))
        for number in range(4):
            await stream.send("text.found", number)

        async def is_held() -> bool:
            return (await found("summarizer.summarize"))["held"] is not None

        await until(is_held)
        summarizer = await found("summarizer.summarize")
        assert summarizer["held"]["by"] == "budget"
        assert (summarizer["budget"]["cost"], summarizer["budget"]["spent"]) == (0.5, pytest.approx(0.6))
        assert summarizer["usage_today"] == {
            "calls": 4,
            "tokens_in": 16,
            "tokens_out": 4,
            "cost": pytest.approx(0.6),
        }
        assert state(summarizer).startswith("held by its budget until ")
        stats = await stream.stats()
        assert any(
            "summarizer.summarize has spent its budget of 0.5 USD/day" in line for line in advice(stats)
        )
        with out.capture() as capture:
            out.print(picture(stream.place, stats, TopView(is_whole=True)))
        assert "today: 0.60 USD, 16 tokens in, 4 out" in capture.get()
        # Its usage by model; the call that named none is apart.
        told = await stream.views.usage()
        assert [(each["model"], each["tokens_in"]) for each in told] == [("", 2), ("big", 14)]
        # What waits goes on when the period is over: no worker is told of that.
        left = await connection.fetchval(
            "update runtime.holds set began_at = began_at - interval '1 day', spent_until = clock_timestamp() "
            "+ interval '1 second' where spent_until is not null returning "
            "(select count(*) from runtime.deliveries)"
        )
        assert left >= 2

        # A refusal counts as no attempt, so one that has only one goes on; the others are held meanwhile.
        sent = [await stream.send("text.asked", number) for number in range(2)]

        async def are_asked() -> bool:
            return len(tries) >= 3

        await until(are_asked)
        assert sorted(tries) == [0, 0, 1]
        story = await stream.views.trace(sent[0].id)
        (handled,) = story["messages"][0]["handled"]
        assert handled["runs"][0]["outcome"] == "later"
        assert "HTTPStatusError" in handled["runs"][0]["error"]
        assert "lets requests through again in 2 s" in handled["runs"][0]["error"]
        ended = await connection.fetchrow(
            "select min(ended_at) filter (where outcome = 'later') as refused, "
            "min(ended_at) filter (where outcome = 'done') as done from runtime.runs r "
            "join runtime.subscriptions s on s.id = r.subscription where s.name = 'summarizer.ask'"
        )
        assert (ended["done"] - ended["refused"]).total_seconds() > 1.5


async def test_what_an_attempt_has_spent_counts_though_the_worker_stops_it(database: str) -> None:
    agent, begun = Agent("summarizer"), anyio.Event()

    @agent.on("text.found")
    async def summarize(text: int, context: Context) -> None:
        context.usage(tokens_in=7, cost=0.25)
        begun.set()
        await anyio.sleep_forever()

    settings = direct(database, drain_seconds=0.2)
    async with connect(settings) as stream, connected(admin(database)) as connection:
        async with running([agent], settings):
            await until(lambda: settled(connection, "summarizer.summarize"))
            await stream.send("text.found", 1)
            await begun.wait()
        (told,) = await stream.views.usage(1)
        assert (told["tokens_in"], told["cost"]) == (7, 0.25)
