"""The AsyncAPI document, held against the official JSON schema."""

import json
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import pytest
from jsonschema import Draft7Validator
from pydantic import BaseModel, Field, PlainValidator

from runtime.agent.agent import Agent
from runtime.agent.asyncapi import asyncapi_of
from runtime.agent.context import Context
from runtime.agent.schedule import Tick
from runtime.message import Message
from tests import node
from tests.cli.shell import Shell


class Article(BaseModel):
    """What is to be published."""

    title: str = Field(max_length=80)
    parts: list["Part"] = []


class Part(BaseModel):
    kind: Literal["text", "picture"]
    place: tuple[int, int] | None = None


class Published(BaseModel):
    url: str


def odd(value: object) -> object:
    return value


@pytest.fixture(scope="module")
def official() -> Draft7Validator:
    """The schema that AsyncAPI publishes."""
    file = node.installed() / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"
    return Draft7Validator(json.loads(file.read_text()))


def resolved(document: Any, reference: str) -> Any:
    found = document
    for step in reference.removeprefix("#/").split("/"):
        found = found[unquote(step)]
    return found


def references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [each for value in part.values() for each in references(value)]
    return [each for value in part for each in references(value)] if isinstance(part, list) else []


def agents() -> list[Agent]:
    publisher, archivist = Agent("publisher"), Agent("archivist")

    @publisher.on("task.output", "task:urgent.output", emits="site.published")
    async def publish(article: Article, context: Context) -> Published | None:
        """Put it on the site."""

    @archivist.on("site.*", "task.>", ">", emits="archive.kept")
    def keep(message: Message[dict[str, int]]) -> "Unknown":  # type: ignore[name-defined] # noqa: F821
        return None

    @archivist.on("odd", emits="odd.done")
    def take(value: Annotated[Any, PlainValidator(odd)]) -> object:
        return value

    return [publisher, archivist]


def test_the_document_keeps_to_the_official_schema_and_every_reference_leads_somewhere(
    official: Draft7Validator,
) -> None:
    document = asyncapi_of(agents(), title="A site", version="2.1")
    assert [fault.message for fault in official.iter_errors(document)] == []
    assert len(references(document)) > 10
    for reference in references(document):
        assert resolved(document, reference)


def test_the_schema_used_here_refuses_what_is_no_document(official: Draft7Validator) -> None:
    document = asyncapi_of(agents(), title="A site", version="2.1")
    document["operations"]["publisher.publish.1"]["action"] = "shout"
    assert not official.is_valid(document)


def test_it_tells_every_agent_key_and_schema() -> None:
    document = asyncapi_of(agents(), title="A site", version="2.1")
    assert [tag["name"] for tag in document["info"]["tags"]] == ["publisher", "archivist"]
    assert {name: channel["address"] for name, channel in document["channels"].items()} == {
        "task.output": "task.output", "task:urgent.output": "task:urgent.output", "site.published": "site.published",
        "site.*": "site.{segment2}", "task.>": "task.{rest}", ">": "{rest}", "archive.kept": "archive.kept",
        "odd": "odd", "odd.done": "odd.done", "(answers)": None,
    }  # fmt: skip
    assert set(document["components"]["schemas"]) == {"Article", "Part", "Published"}
    sends = document["operations"]["publisher.publish.emits"]
    assert (sends["action"], sends["description"]) == ("send", "Put it on the site.")
    (message,) = sends["messages"]
    assert resolved(document, message["$ref"])["payload"] == {"$ref": "#/components/schemas/Published"}
    (taken,) = document["operations"]["archivist.keep.1"]["messages"]
    assert resolved(document, taken["$ref"])["payload"]["additionalProperties"] == {"type": "integer"}


def test_it_tells_what_a_request_is_answered() -> None:
    document = asyncapi_of(agents(), title="A site", version="2.1")
    reply = document["operations"]["publisher.publish.2"]["reply"]
    assert reply["address"]["location"] == "$message.header#/reply_to"
    (message,) = reply["messages"]
    assert resolved(document, message["$ref"])["payload"] == {"$ref": "#/components/schemas/Published"}
    assert "reply" not in document["operations"]["archivist.keep.1"]
    clock = Agent("clock")

    @clock.every("1s")
    async def strike() -> str:
        return "ding"

    assert "reply" not in asyncapi_of([clock], title="A clock", version="1")["operations"]["clock.strike"]


def test_the_command_describes_the_agents_of_a_file(nowhere: Shell, official: Draft7Validator) -> None:
    (nowhere.folder / "shop.py").write_text(
        "from runtime import Agent\nagent = Agent('shop')\n"
        "@agent.on('order.placed', emits='order.packed')\ndef pack(value: str) -> int: return len(value)\n"
    )
    ended = nowhere.run("asyncapi", "shop.py", "--title", "Shop", "--version", "7")
    assert (ended.code, ended.stderr) == (0, "")
    document = json.loads(ended.stdout)
    assert document["info"] == {"title": "Shop", "version": "7", "tags": [{"name": "shop"}]}
    assert official.is_valid(document)


def test_what_every_process_gets_says_so(official: Draft7Validator) -> None:
    ear = Agent("ear")

    @ear.on("news.flash", deliver="each", emits="heard")
    async def hear(value: str) -> str:
        return value

    document = asyncapi_of([ear], title="t", version="1")
    official.validate(document)
    assert document["operations"]["ear.hear"]["x-deliver"] == "each"
    assert "x-deliver" not in document["operations"]["ear.hear.emits"]


def test_a_source_of_webhooks_is_an_operation_that_sends(nowhere: Shell, official: Draft7Validator) -> None:
    (nowhere.folder / "hooks.py").write_text(
        "from runtime import Agent, Source\nagent = Agent('desk')\n"
        "github = Source('github', 'github.{event}.{action}', scheme='github')\n"
        "@agent.on('github.issues.*')\ndef note(value): ...\n"
    )
    document = json.loads(nowhere.run("asyncapi", "hooks.py").stdout)
    official.validate(document)
    sends = document["operations"]["github.webhook"]
    assert (sends["action"], sends["tags"]) == ("send", [{"name": "github"}])
    assert resolved(document, sends["channel"]["$ref"])["address"] == "github.{segment2}.{segment3}"
    (message,) = sends["messages"]
    assert resolved(document, message["$ref"])["name"] == "github.{event}.{action}"
    assert {"name": "github"} in document["info"]["tags"]


def test_what_takes_many_and_what_is_posted_say_so(official: Draft7Validator) -> None:
    clerk = Agent("clerk")

    @clerk.on("order.placed", batch=50)
    async def file(messages: list[Message[Published]]) -> None: ...

    clerk.post("order.packed", to="https://user:sesame@shop.example/hook?key=sesame", secret="SHOP_SECRET")
    document = asyncapi_of([clerk], title="t", version="1")
    official.validate(document)
    assert document["operations"]["clerk.file"]["x-batch"] == 50
    assert document["operations"]["clerk.post"]["x-posts-to"] == "https://shop.example/hook"
    assert "sesame" not in json.dumps(document)


def test_a_timer_is_who_sends_its_ticks(official: Draft7Validator) -> None:
    clock = Agent("clock")

    @clock.cron("0 7 * * mon-fri", timezone="Europe/Paris")
    def strike(tick: Tick) -> None: ...

    document = asyncapi_of([clock], title="t", version="1")
    official.validate(document)
    timer = document["operations"]["clock.strike.timer"]
    assert (timer["action"], timer["x-schedule"]) == ("send", "cron 0 7 * * mon-fri Europe/Paris")
    (message,) = timer["messages"]
    tick = resolved(document, message["$ref"])["payload"]
    # As the kernel writes it, and as the handler takes it.
    Draft7Validator(tick).validate(
        {"slot": "2026-11-23T06:00:00+00:00", "schedule": "clock.strike", "missed": 0}
    )
    taken = document["components"]["schemas"]["Tick"]
    assert set(tick["properties"]) == set(taken["properties"])


def test_a_webhook_is_an_operation_that_tells_its_target_without_what_may_be_secret(
    official: Draft7Validator,
) -> None:
    agent = Agent("crm")
    agent.post(
        "person.*", to="https://me:word@example.com/hook?key=hush", secret="CRM_SECRET", emits="crm.noted"
    )
    document = asyncapi_of([agent], title="crm", version="1")
    assert list(official.iter_errors(document)) == []
    assert document["operations"]["crm.post"]["description"] == "Posted to https://example.com/hook."
    assert set(document["operations"]) == {"crm.post", "crm.post.emits"}
    assert "hush" not in json.dumps(document)
    assert "word" not in json.dumps(document)


def test_it_tells_what_is_pinned_and_which_steps_are_undone(official: Draft7Validator) -> None:
    shop = Agent("shop")

    async def refund(order: int) -> None: ...

    @shop.step(undo=refund)
    async def charge(order: int) -> str:
        return "a receipt"

    @shop.on("order.placed", version="2", pin=True)
    async def sell(order: int, context: Context) -> None:
        await context.step("charge", charge, order)

    document = asyncapi_of([shop], title="A shop", version="1")
    assert list(official.iter_errors(document)) == []
    assert document["operations"]["shop.sell"]["x-pin"] is True
    assert document["info"]["tags"] == [{"name": "shop", "x-undos": {"charge": "refund"}}]


def test_it_tells_how_messages_come_where_it_is_not_one_by_one() -> None:
    meter = Agent("meter")

    @meter.on("reading.*", batch=100, rate="10/s", concurrency_total=200, version="2", emits="reading.kept")
    async def keep(readings: list[Message[int]]) -> list[str | None]:
        return [None for _ in readings]

    document = asyncapi_of([meter], title="A meter", version="1")
    receives, sends = document["operations"]["meter.keep"], document["operations"]["meter.keep.emits"]
    assert (receives["x-batch"], receives["x-rate"], receives["x-concurrency-total"]) == (100, "10/s", 200)
    assert receives["x-version"] == "2"
    assert "x-batch" not in sends
    # The schemas are those of one message and of what it causes.
    for operation, kind in ((receives, "integer"), (sends, "string")):
        (message,) = operation["messages"]
        assert resolved(document, message["$ref"])["payload"] == {"type": kind}
