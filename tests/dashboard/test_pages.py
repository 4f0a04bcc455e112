"""Each page and each action, in a browser, over a stack with agents that run."""

import re
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
from playwright.sync_api import Locator, Page, expect

from runtime.encoding.json import encode
from runtime.store import Subscription, WorkerCard
from tests.dashboard.conftest import Stage
from tests.dashboard.dead_letters import dead, letters

MARKUP = "</code></script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"


def row(tab: Page, number: int) -> Locator:
    """The row of a message on the page of the stream."""
    return tab.locator(f"#m-{number}")


def test_rows_and_what_became_of_them_appear_by_themselves(stage: Stage, tab: Page) -> None:
    tab.goto(stage.url)
    expect(tab.locator("#health")).to_contain_text("Wake-ups live")
    number = stage.send("note.added", {"title": "live", "words": 1})
    expect(row(tab, number)).to_contain_text("note.added")
    expect(tab.locator(f"#h-{number} .good")).to_contain_text("writer.write")
    # What its handlers wrote follows; that no handler takes a result is no fault.
    expect(tab.locator("#rows .row", has_text="site.published").first).to_contain_text("end of its chain")
    expect(tab.locator("#rows .row .key").first).to_have_text("site.published")
    # A message from outside is meant for somebody.
    lost = stage.send("note.aded", {"title": "misspelt"})
    expect(tab.locator(f"#h-{lost} .busy")).to_have_text("no handler listens to this key")


def test_a_row_that_is_read_stays_where_it_is(stage: Stage, tab: Page) -> None:
    number = stage.send("read.slowly", {"a": {"b": 1}})
    tab.goto(stage.url)
    row(tab, number).locator("summary").first.click()
    tab.mouse.move(0, 0)
    before = row(tab, number).bounding_box()
    later = stage.send("read.later", {"c": 2})
    fresh = tab.locator("#fresh")
    expect(fresh).to_have_text(re.compile(r"^\d+ new ↑$"))
    expect(row(tab, later)).to_have_count(0)
    assert row(tab, number).bounding_box() == before
    # What is held back is kept current: its handlers' outcome comes after it.
    handled = stage.send("note.added", {"title": "held back"})
    fresh.click()
    expect(row(tab, later)).to_be_visible()
    expect(tab.locator(f"#h-{handled} .good")).to_contain_text("writer.write")
    expect(fresh).to_be_hidden()
    tab.keyboard.press("p")
    expect(tab.locator("#pause")).to_have_attribute("aria-pressed", "true")
    paused = stage.send("read.later", {"d": 3})
    expect(fresh).to_be_visible()
    expect(row(tab, paused)).to_have_count(0)
    tab.keyboard.press("p")
    expect(row(tab, paused)).to_be_visible()


def test_a_browser_that_was_cut_off_goes_on_where_it_was(stage: Stage) -> None:
    first, second = stage.send("cut.off", 1), stage.send("cut.off", 2)
    seen, url = "", f"{stage.url}/events?after={first - 1}&pattern=cut.off"
    with httpx.stream("GET", url, headers={"last-event-id": str(first)}, timeout=60) as events:
        for text in events.iter_text():
            seen += text
            if "event: changed" in seen:
                break
    assert f'id="m-{second}"' in seen
    assert f'id="m-{first}"' not in seen
    assert int(re.findall(r"^id: (\d+)$", seen, re.MULTILINE)[0]) >= second


def test_compact_rows_are_chosen_once_and_fill_the_screen(stage: Stage, tab: Page) -> None:
    tab.goto(f"{stage.url}/?pattern=archive.>")
    tab.get_by_role("button", name="Compact").click()
    for _ in range(2):
        expect(tab.locator("html")).to_have_attribute("data-rows", "compact")
        boxes = [each.bounding_box() for each in tab.locator("#rows .row").all()[:25]]
        assert sum(box is not None and box["y"] + box["height"] <= 900 for box in boxes) >= 20
        tab.reload()
    # The filter stays in sight however far one scrolls.
    tab.mouse.wheel(0, 1000)
    expect(tab.locator("#filter")).to_be_in_viewport()


def test_a_value_is_shown_as_text_and_never_as_markup(stage: Stage, tab: Page) -> None:
    number = stage.send("odd.key", {MARKUP: MARKUP}, agent="<b>me</b>")
    letter = dead(stage, MARKUP)
    for path in ("/", f"/message/{number}", f"/dead/{letter}", "/dead", "/agents", "/map"):
        tab.goto(stage.url + path)
        assert tab.evaluate("window.hit") is None, path
        assert tab.locator("img, main script").count() == 0, path
    tab.goto(stage.url)
    live = stage.send("odd.key", MARKUP)
    expect(row(tab, live)).to_contain_text("<img src=x")
    row(tab, number).locator("summary").first.click()
    expect(row(tab, number).locator(".j-k").first).to_have_text(MARKUP)
    assert tab.evaluate("window.hit") is None


def test_the_stream_is_filtered_and_the_address_says_how(stage: Stage, tab: Page) -> None:
    number = stage.send("note.added", {"title": "Needle in a haystack"})
    other = stage.send("other.key", {"title": "hay"}, agent="somebody")
    tab.goto(stage.url)
    expect(row(tab, other)).to_be_visible()
    tab.fill("[name=text]", "needle")
    tab.fill("[name=pattern]", "note.*")
    tab.click("text=Filter")
    expect(row(tab, number)).to_be_visible()
    expect(row(tab, other)).to_have_count(0)
    tab.goto(tab.url)
    expect(tab.locator("#rows .row")).to_have_count(1)
    # A live row that the filter does not mean stays away.
    unseen = stage.send("note.added", {"title": "hay again"})
    seen = stage.send("note.added", {"title": "NEEDLE two"})
    expect(row(tab, seen)).to_be_visible()
    expect(row(tab, unseen)).to_have_count(0)
    for query, is_there in {
        "agent=somebody": True, "state=unhandled": True, "state=dead": False, "until=2020-01-01": False,
        "since=2020-01-01": True, "pattern=other.>": True, "pattern=note.>": False,
    }.items():  # fmt: skip
        tab.goto(f"{stage.url}/?{query}")
        assert row(tab, other).count() == int(is_there), query
    tab.goto(f"{stage.url}/?pattern=no..key")
    expect(tab.locator("[role=alert].bad")).to_be_visible()


def test_agents_in_trouble_come_first_and_the_dead_ones_are_folded_and_removed(
    stage: Stage, tab: Page
) -> None:
    worker, store = WorkerCard(uuid4(), "old", ("realtime",), {"pid": 1}), stage.stream._store
    stage.ask(lambda: store.subscribe(worker, [Subscription("old.hand", "old", ("old.thing",))]))
    stage.ask(lambda: store.operate("stream_leave", worker=str(worker.id)))
    tab.goto(f"{stage.url}/agents")
    # Half a million messages wait for it, and nobody comes.
    expect(tab.locator(".agent-card h2").first).to_have_text("archivist")
    expect(tab.locator("[data-name='archivist.keep'] .scale")).to_contain_text("peak")
    expect(tab.locator("[data-name='old.hand']")).to_have_count(0)
    tab.locator("#gone-state").check()
    tab.locator("[data-name='old.hand']").get_by_role("button", name="Remove").click()
    expect(tab.locator("#confirm-question")).to_contain_text("Remove old.hand?")
    tab.locator("#confirm-yes").click()
    expect(tab.locator("[data-name='old.hand']")).to_have_count(0)
    tab.fill("#filter", "draft.writ")
    expect(tab.locator(".agent-card h2")).to_have_text(["publisher"])
    # What happens meanwhile does not lift the filter.
    number = stage.send("draft.written", {"title": "while one filters"})
    expect(tab.locator("[data-name='publisher.publish'] .spark rect.good").first).to_be_visible()
    assert number
    expect(tab.locator(".agent-card h2")).to_have_text(["publisher"])


def test_pause_resume_and_replay(stage: Stage, tab: Page) -> None:
    tab.goto(f"{stage.url}/agents")
    handler = tab.locator("[data-name='writer.write']")
    expect(handler).to_contain_text("live")
    handler.get_by_role("button", name="Pause").click()
    expect(handler).to_contain_text("paused")
    stage.send("note.added", {"title": "waits"})
    expect(handler.locator(".figures dd").first).to_have_text("1")
    handler.get_by_role("button", name="Resume").click()
    expect(handler.locator(".figures dd").first).to_have_text("0")
    expect(handler.locator(".spark rect.good").first).to_be_visible()
    handler.get_by_role("button", name="Replay…").click()
    expect(tab.locator("#replay")).to_contain_text("match writer.write")
    tab.get_by_role("button", name="Deliver them again").click()
    expect(tab.locator("#replay")).to_contain_text("are delivered to writer.write again")


def test_a_timer_tells_its_schedule_and_when_it_ticks_next(stage: Stage, tab: Page) -> None:
    tab.goto(f"{stage.url}/agents")
    timer = tab.locator("[data-name='writer.tidy'] .timer")
    expect(timer).to_contain_text("every 12h")
    slots = [
        datetime.fromisoformat(each.get_attribute("datetime") or "") for each in timer.locator("time").all()
    ]
    assert [slot.hour % 12 + slot.minute + slot.second for slot in slots] == [0, 0, 0]
    assert datetime.now(UTC) < slots[0]
    assert slots[1] - slots[0] == slots[2] - slots[1] == timedelta(hours=12)


def test_a_webhook_tells_its_target_and_how_that_is(stage: Stage, tab: Page) -> None:
    operations, store = stage.stream.operations, stage.stream._store
    url = "https://me:word@example.com/hook?key=hush"
    note = {"name": "crm.post", "kind": "asked", "message": 1, "status": 429, "seconds": 600}
    stage.ask(lambda: operations.add_webhook("crm.post", url, "nothing.at.all"))
    try:
        stage.ask(
            lambda: store.operate(
                "stream_note_webhooks", targets=encode([{"name": "crm.post"}]), notes=encode([note])
            )
        )
        tab.goto(f"{stage.url}/agents")
        handler = tab.locator("[data-name='crm.post']")
        expect(handler.locator(".webhook")).to_contain_text("https://example.com/hook rests for")
        expect(handler.locator(".chip")).to_have_text("resting")
        assert "hush" not in tab.content()
        handler.get_by_role("button", name="Resume").click()
        expect(handler.locator(".chip")).to_have_text("no worker")
    finally:
        stage.ask(lambda: operations.remove_webhook("crm.post"))


def test_dead_letters_are_grouped_compared_edited_redriven_and_discarded(stage: Stage, tab: Page) -> None:
    stage.send("draft.written", {"title": "good", "words": 3})
    mended, kept, last = (dead(stage, title) for title in ("one", "two", "three"))
    tab.goto(f"{stage.url}/dead")
    group = tab.locator(".group", has_text="no template for")
    expect(group).to_have_count(1)
    tab.goto(f"{stage.url}/dead/{mended}")
    expect(tab.locator("pre").first).to_contain_text("Traceback")
    expect(tab.locator(".diff .minus")).to_contain_text("good")
    expect(tab.locator(".diff .plus")).to_contain_text("broken one")
    tab.fill("#edit", "{")
    tab.get_by_role("button", name="Deliver edited").click()
    expect(tab.locator("#amended .bad")).to_be_visible()
    tab.fill("#edit", '{"title": "mended", "words": 3}')
    tab.get_by_role("button", name="Deliver edited").click()
    tab.wait_for_url("**/message/*")
    expect(tab.locator("#story .attempts .chip.good").first).to_be_visible()
    assert mended not in {each["id"] for each in letters(stage)}
    # As it is, it dies again, under another number.
    tab.goto(f"{stage.url}/dead/{kept}")
    tab.get_by_role("button", name="Redrive as it is").click()
    tab.wait_for_url("**/message/*")
    expect(tab.locator("#story .chip.bad").first).to_be_visible()
    assert kept not in {each["id"] for each in letters(stage)}
    tab.goto(f"{stage.url}/dead/{last}")
    tab.get_by_role("button", name="Discard").click()
    tab.locator("#confirm-yes").click()
    tab.wait_for_url("**/dead")
    expect(group.locator(f".letters a[href='/dead/{last}']")).to_have_count(0)
    # What to do first is to look, and the filter narrows what is looked at.
    expect(group.locator(".button, button").first).to_have_text("See why")
    tab.locator("[name=handler]").select_option("writer.write")
    tab.locator("[name=minutes]").select_option("10")
    tab.get_by_role("button", name="Filter").click()
    expect(tab.locator(".empty")).to_contain_text("No dead letter of writer.write from the last 10 minutes")
    tab.goto(f"{stage.url}/dead?handler=publisher.publish&minutes=60")
    group.get_by_role("button", name="Redrive").click()
    tab.locator("#confirm-yes").click()
    expect(tab.locator("#said")).to_contain_text("delivered again")
    expect(group.first).to_be_visible()
    group.get_by_role("button", name="Discard").click()
    tab.locator("#confirm-yes").click()
    expect(tab.locator("#said")).to_contain_text("discarded")


def test_a_message_written_by_hand_is_checked_first(stage: Stage, tab: Page) -> None:
    tab.goto(f"{stage.url}/write")
    tab.fill("#key", "note.added")
    tab.fill("#value", '{"words": "many"}')
    expect(tab.locator("#check")).to_contain_text("'title' is a required property")
    tab.get_by_role("button", name="Send").click()
    expect(tab.locator("#sent .bad")).to_contain_text("refuses")
    tab.fill("#value", '{"title": "by hand", "words": 2}')
    expect(tab.locator("#check")).to_contain_text("takes it")
    tab.get_by_role("button", name="Send").click()
    expect(tab.locator("#sent .good")).to_contain_text("note.added")
    tab.locator("#sent a").click()
    expect(tab.locator(".tree li")).to_have_count(3)


def test_write_suggests_keys_and_a_sample_and_says_when_nobody_listens(stage: Stage, tab: Page) -> None:
    number = stage.send("note.added", {"title": "cause"})
    tab.goto(f"{stage.url}/write?parent={number}")
    tab.fill("#key", "note.aded")
    expect(tab.locator("#check")).to_contain_text("No handler listens to this key")
    tab.get_by_role("button", name="Send").click()
    expect(tab.locator("#sent .busy")).to_contain_text("no agent gets it")
    tab.locator("#check [data-key='note.added']").click()
    expect(tab.locator("#value")).to_have_value(re.compile('"title": "text"'))
    tab.get_by_role("button", name="Send").click()
    tab.locator("#sent .good a").click()
    # It belongs to the same conversation as its parent.
    expect(tab.locator(".facts a", has_text=f"#{number}")).to_be_visible()
    expect(tab.locator(f".facts a[href='/conversation/{number}']")).to_be_visible()


def test_the_overview_says_what_agents_do_and_what_to_mend_first(stage: Stage, tab: Page) -> None:
    dead(stage, "for the overview")
    # More than of any key of the crowd among the last messages, as on the map.
    for _ in range(8):
        stage.send("note.aded", {"title": "misspelt"})
    tab.goto(f"{stage.url}/overview")
    mend = tab.locator(".mend")
    expect(mend).to_contain_text("publisher.publish")
    expect(mend).to_contain_text("No handler listens to note.aded")
    expect(tab.locator(".tile rect.good").first).to_be_attached()
    agent = tab.locator(".agents tr", has_text="writer")
    expect(agent.locator(".chip")).to_have_text("live")
    number = stage.send("note.added", {"title": "latest"})
    expect(tab.locator(f".latest a[href='/message/{number}']")).to_be_visible()
    mend.get_by_role("link", name="note.aded").click()
    tab.wait_for_url("**/?pattern=note.aded")


def test_the_map_shows_what_flows_how_it_is_and_the_rest_when_asked(stage: Stage, tab: Page) -> None:
    # More than of any key of the crowd among the last messages: the map has room for the busiest.
    for number in range(8):
        stage.send("note.added", {"title": f"flows {number}"})
    tab.goto(f"{stage.url}/map")
    edges = tab.locator(".edge:not(.idle) title")
    for title in ("writer → draft.written", "note.added → writer", "from outside → note.added"):
        expect(edges.filter(has_text=title)).to_have_count(1)
    names = tab.locator(".node .name")
    assert {"writer", "publisher", "note.added", "draft.written"} <= set(names.all_text_contents())
    expect(tab.locator("svg a[aria-label^='key note.added, ']")).to_have_count(1)
    # Of the crowd half a million messages wait for an agent that is not there.
    expect(tab.locator(".node.bad", has_text="archivist")).to_contain_text("no worker")
    row = tab.locator(".as-text tr", has_text="writer")
    expect(row.first.locator("td").nth(1)).to_contain_text("note.added")
    # Causes stand to the left of their effects.
    lefts = [
        tab.locator(".node", has_text=each).first.bounding_box()
        for each in ("note.added", "writer", "draft.written")
    ]
    assert [box["x"] for box in lefts if box] == sorted(box["x"] for box in lefts if box)
    fitting = tab.locator(".map svg").bounding_box()
    tab.locator("#zoom-150").check()
    zoomed = tab.locator(".map svg").bounding_box()
    assert fitting
    assert zoomed
    assert fitting["width"] <= 1440
    assert zoomed["width"] > fitting["width"]
    shown = names.count()
    tab.get_by_role("link", name="more that nothing has passed").click()
    expect(tab.get_by_role("link", name="Show only what flows")).to_be_visible()
    assert tab.locator(".node .name").count() > shown


def test_it_is_worked_by_keys(stage: Stage, tab: Page) -> None:
    number = stage.send("by.keys", {"a": {"b": 1}})
    tab.goto(f"{stage.url}/?pattern=by.keys")
    tab.keyboard.press("j")
    expect(row(tab, number)).to_be_focused()
    tab.keyboard.press("o")
    expect(row(tab, number).locator("details.value")).to_have_attribute("open", "")
    tab.keyboard.press("Enter")
    tab.wait_for_url(f"**/message/{number}")
    for letter, path in {
        "o": "/overview",
        "a": "/agents",
        "m": "/map",
        "p": "/approvals",
        "d": "/dead",
        "w": "/write",
        "s": "/",
    }.items():
        tab.keyboard.press("g")
        tab.keyboard.press(letter)
        tab.wait_for_url(stage.url + path)
    tab.keyboard.press("/")
    expect(tab.locator("#filter")).to_be_focused()
