"""Each page by contrast, keyboard, screen reader and width, in both themes."""

from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.dashboard.conftest import Stage
from tests.dashboard.dead_letters import dead

# The least contrast of any text, by the formula of WCAG, against the nearest background that is not transparent.
CONTRAST = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => { for (; node; node = node.parentElement) {
    const color = parts(getComputedStyle(node).backgroundColor); if (color.length < 4 || color[3] > 0) return color; }
    return [255, 255, 255]; };
  const poor = [];
  for (const node of document.querySelectorAll("body *:not(svg):not(svg *):not(option):not(dialog *)")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility()) continue;
    const [a, b] = [light(parts(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${node.className}: ${ratio.toFixed(2)} ${node.textContent.slice(0, 30)}`);
  }
  for (const text of document.querySelectorAll("svg text")) {
    const box = text.parentElement.matches(".node") && text.parentElement.querySelector("rect");
    const ground = box ? parts(getComputedStyle(box).fill) : behind(text.closest("svg").parentElement);
    const [a, b] = [light(parts(getComputedStyle(text).fill)), light(ground)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`svg ${text.textContent}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""
# What a keyboard cannot reach or a screen reader cannot name.
UNREACHABLE = """() => [...document.querySelectorAll("main :is(a, button, input, select, textarea, summary)")]
  .filter((node) => node.checkVisibility())
  .filter((node) => node.tabIndex !== 0 || !(node.textContent.trim() || node.ariaLabel || node.labels?.length))
  .map((node) => node.outerHTML.slice(0, 120))"""

# Buttons that stand against each other: nothing says where one ends, and a thumb meets both.
TOUCHING = """() => {
  const boxes = [...document.querySelectorAll("main :is(button, .button)")].filter((node) => node.checkVisibility())
    .map((node) => [node.textContent.trim(), node.getBoundingClientRect()]);
  return boxes.flatMap(([name, a], place) => boxes.slice(place + 1)
    .filter(([, b]) => a.left < b.right + 4 && b.left < a.right + 4 && a.top < b.bottom + 4 && b.top < a.bottom + 4)
    .map(([other]) => `${name} | ${other}`));
}"""
# What axe-core objects to, a line for each rule with the first of its places.
AXE = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations
  .map((rule) => `${rule.id}: ${rule.nodes[0].html.slice(0, 160)}`)"""


@pytest.mark.parametrize(("theme", "width"), list(product(("light", "dark"), (1440, 390))))
def test_every_page_is_readable(stage: Stage, browser: Browser, theme: str, width: int) -> None:
    # Found, not imported: the package is used for the script it brings.
    spec = find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.skip("axe-core is not installed: pip install axe-playwright-python")
    axe = Path(spec.origin).with_name("axe.min.js").read_text()
    number = stage.send("note.added", {"title": "readable", "nested": {"list": [1, None, True]}})
    letter = dead(stage, "to read")
    # Two that read alike, as two customers' requests may.
    for _ in range(2):
        stage.send("refund.wanted", {"name": "a reader", "sum": 3})
    while len(requests := stage.ask(stage.stream.operations.approvals)) < 2:
        pass
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    tab = context.new_page()
    for path in (
        "/",
        f"/?pattern=note.*&before={number + 1}",
        "/overview",
        "/agents",
        "/costs",
        "/map",
        "/approvals",
        "/dead",
        "/write",
        f"/message/{number}",
        f"/conversation/{number}",
        f"/dead/{letter}",
        "/nowhere",
    ):
        tab.goto(stage.url + path)
        assert tab.evaluate(UNREACHABLE) == [], path
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert tab.evaluate("document.querySelector('nav').dataset.more") == "", path
        assert tab.evaluate(TOUCHING) == [], path
        assert tab.evaluate(CONTRAST) == [], path
        # Of the stream, the few rows of the filter stand for all.
        if path != "/":
            tab.evaluate(axe)
            assert tab.evaluate(AXE) == [], path
    context.close()
    for each in requests:
        stage.ask(lambda request=each["request"]: stage.stream.operations.decide(request, False))
