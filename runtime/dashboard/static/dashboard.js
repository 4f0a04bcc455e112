// What htmx does not do, on every page: keys, the theme, ages that go on, dialogs, copying.
"use strict";

const $ = (id) => document.getElementById(id);

function switchTheme() {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
}

// As the server writes an age: whole units, rounded down, so that an older row never shows a lower age.
function age(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

function tick() {
  for (const time of document.querySelectorAll("time.age")) {
    const text = age((Date.now() - Date.parse(time.dateTime)) / 1000);
    if (time.textContent !== text) time.textContent = text;
  }
}

function move(step) {
  const rows = [...document.querySelectorAll("#rows > .row, .letters a, .tree li a")];
  if (!rows.length) return;
  const at = rows.findIndex((row) => row === document.activeElement || row.contains(document.activeElement));
  const row = rows[Math.min(rows.length - 1, Math.max(0, at + step))];
  row.focus({ preventScroll: true });
  row.scrollIntoView({ block: "nearest" });
}

let goes = false;

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  t: switchTheme,
  "?": () => $("keys").showModal(),
  "/": () => $("filter")?.focus(),
  Escape: () => document.activeElement?.blur(),
  o: () => {
    const value = document.activeElement?.closest(".row")?.querySelector("details.value");
    if (value) value.open = !value.open;
  },
  Enter: () => {
    const href = document.activeElement?.matches(".row") && document.activeElement.dataset.href;
    if (href) location.href = href;
    return Boolean(href);
  },
  g: () => {
    goes = true;
    setTimeout(() => { goes = false; }, 1000);
  },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, textarea, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (goes) {
    goes = false;
    const link = document.querySelector(`nav a[data-go="${CSS.escape(event.key)}"]`);
    if (link) {
      event.preventDefault();
      location.href = link.href;
      return;
    }
  }
  const action = Object.hasOwn(KEYS, event.key) && KEYS[event.key];
  if (action && action() !== false) event.preventDefault();
});

// On which sides the navigation goes on; the current page's link is in sight from the beginning.
const nav = document.querySelector("nav");
function showEdges() {
  const rest = nav.scrollWidth - nav.clientWidth - nav.scrollLeft;
  const [left, right] = [nav.scrollLeft > 1, rest > 1];
  nav.dataset.more = left && right ? "both" : left ? "left" : right ? "right" : "";
}
const current = nav.querySelector("[aria-current]");
if (current) nav.scrollLeft = current.offsetLeft - nav.offsetLeft - (nav.clientWidth - current.offsetWidth) / 2;
showEdges();
nav.addEventListener("scroll", showEdges, { passive: true });
new ResizeObserver(showEdges).observe(nav);

$("theme").addEventListener("click", switchTheme);
$("keys-button").addEventListener("click", () => $("keys").showModal());

function say(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

document.body.addEventListener("htmx:responseError", (event) => {
  const { requestConfig, xhr } = event.detail;
  // Of the database's own absence the strip of health tells.
  const isTold = requestConfig?.triggeringEvent?.type === "sse:changed" && xhr.status === 503;
  if (!isTold) say(xhr.responseText.replace(/<[^>]*>/g, " "));
});
document.body.addEventListener("htmx:sseMessage", () => {
  if ($("away") && !document.querySelector("#health [data-fault]")) location.reload();
});
document.body.addEventListener("htmx:sendError", () => say("The dashboard does not answer."));
document.body.addEventListener("htmx:sseError", () => say("The dashboard does not answer; trying again."));
document.body.addEventListener("htmx:sseOpen", () => say(""));
document.body.addEventListener("htmx:afterRequest", (event) => { if (event.detail.successful) say(""); });

// A question before a change, as a dialog of the page; the button says what it does.
document.body.addEventListener("htmx:confirm", (event) => {
  if (!event.detail.question) return;
  event.preventDefault();
  const dialog = $("confirm");
  const asker = event.detail.elt.matches("form") ? event.detail.elt.querySelector("button:not([type=button])") : event.detail.elt;
  $("confirm-question").textContent = event.detail.question;
  $("confirm-yes").textContent = asker?.textContent.trim() || "Yes";
  dialog.returnValue = "";
  dialog.onclose = () => { if (dialog.returnValue === "yes") event.detail.issueRequest(true); };
  dialog.showModal();
});

// <button data-copy="text">; where a browser lets no page copy, the text beside the button is selected.
document.body.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  } catch {
    getSelection().selectAllChildren(button.previousElementSibling);
  }
});

// An update that brings what is there already is not drawn anew, and neither is a field that is open, or has been set,
// under the hand, nor what a question is being asked about: its answer would be lost with the button.
const drawn = new WeakMap();
document.body.addEventListener("htmx:beforeSwap", (event) => {
  const { target, xhr, requestConfig } = event.detail;
  const busy = document.activeElement?.closest("select, input, textarea");
  const isUpdate = requestConfig?.triggeringEvent?.type === "sse:changed";
  if (isUpdate && (drawn.get(target) === xhr.responseText || (busy && target.contains(busy)) || document.querySelector("dialog[open]"))) {
    event.detail.shouldSwap = false;
  } else {
    drawn.set(target, xhr.responseText);
  }
});
setInterval(tick, 1000);
tick();
