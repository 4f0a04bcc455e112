"""The pages of one message and of a conversation, in a browser."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.conftest import Stage
from tests.dashboard.dead_letters import discard, letters


def test_one_message_tells_its_whole_story(stage: Stage, tab: Page) -> None:
    number = stage.send("note.added", {"title": "story"})
    tab.goto(f"{stage.url}/message/{number}")
    expect(tab.locator(".tree li")).to_have_count(3)
    assert [re.sub(r"\s+", " ", each).split()[1] for each in tab.locator(".tree li").all_inner_texts()] == [
        "note.added", "draft.written", "site.published",
    ]  # fmt: skip
    expect(tab.locator(".run")).to_have_count(1)
    expect(tab.locator(".step")).to_have_count(1)
    tab.locator(".step summary").click()
    expect(tab.locator(".step")).to_contain_text('"story"')
    expect(tab.locator(".attempts em")).to_have_text("drafting story")
    expect(tab.locator(".fall g")).to_have_count(5)
    assert tab.locator(".fall rect.good").count() == 2
    expect(tab.locator(".fall rect.kept")).to_have_count(1)
    tab.get_by_role("button", name="Replay from here").click()
    expect(tab.locator("#said")).to_contain_text("is delivered to writer.write again")
    expect(tab.locator(".run")).to_have_count(2)
    expect(tab.locator(".tree li")).to_have_count(5)
    tab.goto(f"{stage.url}/message/999999999")
    expect(tab.locator("h1")).to_have_text("Message #999999999")


def test_a_message_that_waits_is_cancelled(stage: Stage, tab: Page) -> None:
    number = stage.send("note.added", {"title": "later"}, delay=3600)
    tab.goto(f"{stage.url}/message/{number}")
    tab.get_by_role("button", name="Cancel").click()
    expect(tab.locator("#said")).to_contain_text(f"will not handle #{number}: it is a dead letter now")
    expect(tab.locator(".attempts .chip")).to_have_text("dead letter")
    expect(tab.get_by_role("button", name="Cancel")).to_have_count(0)
    stage.ask(lambda: discard(stage, number))


def test_a_message_that_is_undone_is_left_as_it_is(stage: Stage, tab: Page) -> None:
    number = stage.send("print.ordered", "The news")
    tab.goto(f"{stage.url}/message/{number}")
    expect(tab.locator(".attempts .chip")).to_have_text("undoing")
    tab.goto(f"{stage.url}/agents")
    expect(tab.locator("[data-name='printer.print_off'] .chip.busy")).to_have_text("1 undoing")
    tab.goto(f"{stage.url}/message/{number}")
    tab.get_by_role("button", name="Stop undoing").click()
    tab.locator("#confirm-yes").click()
    expect(tab.locator("#said")).to_contain_text(f"#{number} is a dead letter as soon as")
    expect(tab.locator(".attempts .chip")).to_have_text("dead letter")
    expect(tab.get_by_role("button", name="Stop undoing")).to_have_count(0)
    stage.ask(lambda: discard(stage, number))


def test_a_suspended_stretch_is_hatched_and_not_filled(stage: Stage, tab: Page) -> None:
    number = stage.send("refund.wanted", {"name": "the hatched"})
    for path in (f"/message/{number}", f"/conversation/{number}"):
        tab.goto(stage.url + path)
        bar = tab.locator(".fall rect.held")
        expect(bar).to_have_count(1)
        # As the browser computes it: a rule of the style sheet would win over the attribute.
        expect(bar).to_have_css("fill", re.compile(r"#hatch\"\)$"))
        assert tab.locator("#hatch").count() == 1
    for each in stage.ask(stage.stream.operations.approvals):
        stage.ask(lambda request=each["request"]: stage.stream.operations.decide(request, False))


def test_a_conversation_is_one_thread_across_a_decision_with_what_it_cost(stage: Stage, tab: Page) -> None:
    number = stage.send("note.added", {"title": "Talk\nof two lines"})
    tab.goto(f"{stage.url}/message/{number}")
    expect(tab.locator(".tree li")).to_have_count(3)
    tab.locator(".facts a").click()
    tab.wait_for_url(f"**/conversation/{number}")
    expect(tab.locator(".entry.message .key")).to_have_text(["note.added", "draft.written", "site.published"])
    expect(tab.locator(f"#e-{number} .text").first).to_have_text("Talk\nof two lines", use_inner_text=True)
    # A person decides, without naming a parent: it belongs to the same story, and so does what fails because of it.
    while not tab.locator(".live").count():
        # Nothing tells whether the page receives broadcasts yet.
        decided = stage.send(
            "draft.written", {"title": "broken again"}, agent="grace", correlation_id=str(number)
        )
        expect(tab.locator(f"#e-{decided}")).to_contain_text("grace wrote draft.written to publisher.publish")
        expect(tab.locator(".entry.attempt.bad summary").last).to_contain_text(
            "no template for 'broken again'"
        )
    expect(tab.locator(".live .text").first).to_contain_text("Setting broken again")
    figures = dict(each.split("\n") for each in tab.locator(".totals div").all_inner_texts())
    assert (figures["tokens in"], figures["tokens out"], figures["cost"]) == (
        "1\u202f200",
        "34",
        "0.25\u00a0USD",
    )
    assert figures["model"] == "model-4"
    opened = tab.locator(".entry.attempt.bad summary").first
    opened.click()
    stage.send("note.added", {"title": "of another conversation"})
    expect(tab.locator(".entry.attempt.bad pre").first).to_be_visible()
    told = tab.request.get(f"{stage.url}/export/markdown/{number}").text()
    assert "## grace: `draft.written`" in told
    assert "ValueError: no template for 'broken again'" in told
    exported = tab.request.get(f"{stage.url}/export/json/{number}").json()
    assert exported["messages"][0]["id"] == number
    tab.goto(f"{stage.url}/message/{number}")
    expect(tab.locator(".tree li", has_text="by its correlation").first).to_contain_text("grace")
    for each in {each["message_id"] for each in letters(stage)}:
        if each > number:
            stage.ask(lambda each=each: discard(stage, each))
    tab.goto(f"{stage.url}/conversation/of%2Fnobody")
    expect(tab.locator("h1")).to_have_text("Conversation of/nobody")


@pytest.mark.usefixtures("within_an_hour")
def test_costs_are_shown_by_day_handler_and_model(stage: Stage, tab: Page) -> None:
    number = stage.send("note.added", {"title": "what it costs"})
    tab.goto(f"{stage.url}/conversation/{number}")
    expect(tab.locator(".entry.attempt", has_text="0.25\u00a0USD").first).to_be_visible()
    tab.goto(f"{stage.url}/agents")
    expect(tab.locator(".handler[data-name='writer.write']")).to_contain_text("USD for")
    tab.get_by_role("link", name="Costs").click()
    expect(tab.get_by_role("row", name="writer.write model-4")).to_contain_text("USD")
    expect(tab.locator("rect.spent title")).to_contain_text("USD")
    tab.get_by_label("Days").select_option("90")
    expect(tab.locator(".totals")).to_contain_text("this month")
    expect(tab.locator(".totals")).to_contain_text("90 days")
