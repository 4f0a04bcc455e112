// What htmx does not do: keys, the theme, ages that go on, and a list that does not grow for ever.
"use strict";

const ROWS = 400;
const $ = (id) => document.getElementById(id);

function switchTheme() {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
}

function duration(seconds) {
  if (seconds < 1) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

function tick() {
  for (const time of document.querySelectorAll("#rows time[datetime]")) {
    const text = duration((Date.now() - Date.parse(time.dateTime)) / 1000);
    if (time.textContent !== text) time.textContent = text;
  }
}

function trim() {
  const rows = document.querySelectorAll("#rows > .row");
  // Only what lies out of sight below goes, and only while nobody reads down there.
  if (rows.length > ROWS && scrollY < innerHeight) {
    const more = document.querySelector("#rows > .more");
    for (const row of [...rows].slice(ROWS)) row.remove();
    if (more) more.remove();
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

$("theme").addEventListener("click", switchTheme);
$("keys-button").addEventListener("click", () => $("keys").showModal());

function say(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

document.body.addEventListener("htmx:responseError", (event) => say(event.detail.xhr.responseText.replace(/<[^>]*>/g, " ")));
document.body.addEventListener("htmx:sendError", () => say("The dashboard does not answer."));
document.body.addEventListener("htmx:sseError", () => say("The dashboard does not answer; trying again."));
document.body.addEventListener("htmx:sseOpen", () => say(""));
document.body.addEventListener("htmx:afterRequest", (event) => { if (event.detail.successful) say(""); });
document.body.addEventListener("htmx:sseMessage", trim);
// A select that is open, or has been set, is not drawn anew under the hand.
document.body.addEventListener("htmx:beforeSwap", (event) => {
  const busy = document.activeElement?.closest("select, input, textarea");
  const isUpdate = event.detail.requestConfig?.triggeringEvent?.type === "sse:changed";
  if (isUpdate && busy && event.detail.target.contains(busy)) event.detail.shouldSwap = false;
});
setInterval(tick, 1000);
tick();
