"""People decide what agents ask: the inbox in a browser."""

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from runtime.dashboard.pages.approvals import answer_of
from runtime.dashboard.schemas import Declared
from runtime.dashboard.thread import request_parts
from runtime.errors import InvalidValue
from tests.dashboard.conftest import Stage

MARKUP = "<script>window.hit = 1</script>"


def asked(tab: Page, title: str) -> Locator:
    """The card of a request."""
    return tab.locator(".request", has=tab.get_by_role("heading", name=f"Refund {title}?", exact=True))


def number_of(stage: Stage, title: str) -> int:
    """The id of an open request, once it is there."""
    while True:
        for each in stage.ask(stage.stream.operations.approvals):
            if each["title"] == f"Refund {title}?":
                return int(each["request"])


def decide(stage: Stage, request: int, approved: bool, **more: str) -> None:
    """Decide it elsewhere."""
    told = stage.ask(lambda: stage.stream.operations.decide(request, approved, **more))
    assert told["decided"]


def test_a_request_appears_and_is_decided_with_an_answer_that_fits(stage: Stage, tab: Page) -> None:
    tab.goto(f"{stage.url}/approvals")
    message = stage.send("refund.wanted", {"name": f"Ada {MARKUP}", "sum": 120})
    card = asked(tab, f"Ada {MARKUP}")
    expect(card).to_contain_text("cashier.refund asks")
    expect(card.locator(".json")).to_contain_text(MARKUP)
    expect(tab.locator("#tally")).to_have_text("1 open")
    answer = card.get_by_label("Answer")
    expect(answer).to_have_value('{\n  "cents": 1\n}')
    answer.fill('{"cents": 0}')
    card.get_by_role("button", name="Approve").click()
    expect(card.locator(".said")).to_contain_text("value.cents: 0 is less than the minimum of 1")
    answer.fill('{"cents": 50}')
    # Another request comes meanwhile: what was written stays, and Enter decides nothing.
    card.get_by_label("Reason").fill("kind")
    card.get_by_label("Reason").press("Enter")
    card.get_by_role("button", name="Approve").focus()
    stage.send("refund.wanted", {"name": "Bob"})
    expect(asked(tab, "Bob")).to_be_visible()
    card.get_by_label("Your name").fill("grace")
    card.get_by_role("button", name="Approve").click()
    expect(tab.locator("#said")).to_contain_text("approved.")
    expect(card).to_have_count(0)
    # The plain one has no field for an answer.
    expect(asked(tab, "Bob").get_by_label("Answer")).to_have_count(0)
    asked(tab, "Bob").get_by_role("button", name="Reject").click()
    expect(asked(tab, "Bob")).to_have_count(0)
    expect(tab.locator("main")).to_contain_text("Nothing waits for a decision.")
    expect(tab.locator("#tally")).to_be_hidden()
    assert tab.evaluate("window.hit") is None
    tab.goto(f"{stage.url}/conversation/{message}")
    thread = tab.locator("ol.thread:not(.live-list)")
    expect(thread).to_contain_text("refund.decided")
    expect(thread).to_contain_text("grace approved")


def test_what_was_decided_elsewhere_is_said(stage: Stage, tab: Page) -> None:
    stage.send("refund.wanted", {"name": "Eve"})
    request = number_of(stage, "Eve")
    tab.goto(f"{stage.url}/approvals")
    card = asked(tab, "Eve")
    # While a field is open, its card stays.
    card.get_by_label("Reason").fill("late")
    decide(stage, request, False, by="bob", why="no receipt")
    expect(tab.locator("#tally")).to_be_hidden()
    # A click by a pointer would leave the field first.
    card.get_by_role("button", name="Approve").evaluate("button => button.click()")
    expect(tab.locator("#said")).to_contain_text(f"#{request} was rejected by bob")
    expect(tab.locator("#said")).to_contain_text("ago: no receipt. The first decision counts.")
    expect(card).to_have_count(0)
    for foreign in ({"origin": "http://evil.example"}, {"origin": stage.url}):
        answer = httpx.post(f"{stage.url}/approvals/{request}", headers=foreign, data={"approved": "yes"})
        assert answer.status_code == 403


def test_a_thread_tells_what_is_asked_and_not_the_schema_of_the_answer() -> None:
    asked = {"title": "Refund?", "schema": {}, "details": None, "until": "2026-12-24T14:30:00+01:00"}
    assert request_parts(asked) == [("", "Refund?"), ("open until", "2026-12-24 13:30:00 UTC")]
    assert request_parts("by hand") == [("", "by hand")]


def test_an_answer_is_json_or_a_text_where_the_schema_takes_one() -> None:
    text, number = Declared((), schema={"type": "string"}), Declared((), schema={"type": "integer"})
    assert [answer_of(each, text) for each in ("Ada", '"Ada"', "120")] == ["Ada", "Ada", "120"]
    assert answer_of("120", number) == 120
    for wrong in ("Ada", "", "1.5", "[1"):
        with pytest.raises(InvalidValue, match="nothing was sent"):
            answer_of(wrong, number)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:9/schema"},
        {"$ref": "#/nowhere"},
        {"type": 7},
        {"pattern": "["},
        {"minimum": "x"},
    ],
)
def test_a_schema_out_of_the_stream_that_cannot_be_read_refuses_nothing(schema: dict[str, object]) -> None:
    assert Declared((), schema=schema).complaints("text") == []
