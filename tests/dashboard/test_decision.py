"""The page of a signed link, in a browser without scripts."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from pydantic import SecretStr

from runtime.agent.decision_link import DecisionLinks
from runtime.asgi import WebhookApp
from runtime.http_server import bound, served
from runtime.settings import Settings
from tests.dashboard.conftest import Stage
from tests.dashboard.test_approvals import number_of
from tests.dashboard.test_readable import AXE, CONTRAST, UNREACHABLE


@contextmanager
def linked(stage: Stage) -> Iterator[DecisionLinks]:
    """An application of the runtime over the same stream, and the links that lead to it."""
    listening = bound("The page of links", "127.0.0.1", 0)
    settings = Settings.load(
        supabase_url=stage.stack.api_url, supabase_key=SecretStr(stage.stack.service_role_key), database_url=None,
        approval_secret="a-secret-that-signs-links-of-approvals",
        public_url=f"http://127.0.0.1:{listening.getsockname()[1]}",
    )  # fmt: skip
    app = WebhookApp(settings=settings, variables={})
    with stage.portal.wrap_async_context_manager(served(listening, app)):
        links = DecisionLinks.of(settings)
        assert links is not None
        yield links
        stage.ask(app.close)


def link_for(stage: Stage, links: DecisionLinks, title: str, by: str | None = None) -> str:
    """A link for an open request."""
    request = number_of(stage, title)
    message = stage.ask(lambda: stage.stream.get(request))
    return links.url(message, by=by)


def check_readable(tab: Page, axe: str) -> None:
    """Fail if the page is wider than its window, or hard to read or to reach."""
    tab.evaluate(axe)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert [tab.evaluate(question) for question in (UNREACHABLE, CONTRAST, AXE)] == [[], [], []]


def test_a_person_opens_a_link_and_decides(stage: Stage, browser: Browser) -> None:
    # Found, not imported: the package is used for the script it brings.
    spec = find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.skip("axe-core is not installed: pip install axe-playwright-python")
    axe = Path(spec.origin).with_name("axe.min.js").read_text()
    with linked(stage) as links:
        stage.send("refund.wanted", {"name": "a reader of mail", "sum": 3, "note": "x" * 200})
        url = link_for(stage, links, "a reader of mail")
        for theme, width in product(("light", "dark"), (390, 1440)):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
            tab = context.new_page()
            tab.goto(url)
            expect(tab.get_by_role("heading", level=1)).to_have_text("Refund a reader of mail?")
            check_readable(tab, axe)
            context.close()
        plain = browser.new_context(java_script_enabled=False)
        tab = plain.new_page()
        tab.goto(url)
        # Enter in a field decides nothing.
        tab.get_by_label("Reason").fill("kind")
        tab.get_by_label("Reason").press("Enter")
        tab.get_by_label("Your name").fill("Grace")
        tab.get_by_label("Answer").fill('{"cents": "many"}')
        tab.get_by_role("button", name="Approve").click()
        expect(tab.get_by_role("alert")).to_contain_text("nothing was sent")
        tab.get_by_label("Answer").fill('{"cents": 7}')
        tab.get_by_role("button", name="Approve").click()
        expect(tab.get_by_role("status")).to_have_text("You have approved this.")
        assert tab.url == url.partition("?")[0]
        tab.goto(url)
        expect(tab.get_by_role("status")).to_contain_text("It was approved by Grace")
        expect(tab.get_by_role("button")).to_have_count(0)
        plain.close()
