// The rows of the stream: new ones come in at the top, and are held back while somebody reads.
"use strict";

(() => {
  // As many rows as stay on the page, and as are held back before the page is read anew instead.
  const MOST = 400;
  const AIMING_MS = 2000;
  const list = $("rows");
  const fresh = $("fresh");
  let held = [];
  let arrived = 0;
  let isPaused = false;
  let aimedAt = -AIMING_MS;

  // The row that is focused, or has been unfolded.
  function reading() {
    return document.activeElement?.closest("#rows > .row") ?? list.querySelector("details.value[open]")?.closest(".row");
  }

  function isHeld() {
    const selection = getSelection();
    return isPaused || scrollY > 60 || Boolean(reading()) || performance.now() - aimedAt < AIMING_MS
      || (!selection.isCollapsed && list.contains(selection.anchorNode));
  }

  // Changes the list, and leaves the row that is read, or the first in sight, where it is.
  function still(change) {
    const row = reading() ?? (scrollY > 0 ? [...list.children].find((each) => each.getBoundingClientRect().bottom > 120) : null);
    const before = row?.getBoundingClientRect().top;
    change();
    if (row?.isConnected) scrollBy(0, row.getBoundingClientRect().top - before);
  }

  function tell() {
    fresh.hidden = !arrived;
    fresh.textContent = `${arrived} new ↑`;
  }

  function letIn() {
    if (held.length > MOST) {
      history.scrollRestoration = "manual";
      location.reload();
      return;
    }
    const rows = held.filter((row) => !$(row.id));
    held = [];
    arrived = 0;
    // Where many come at once, none stands out.
    if (rows.length > 5) rows.forEach((row) => row.classList.remove("is-new"));
    list.prepend(...rows);
    if (rows.length) $("first")?.remove();
    tell();
    tick();
    // Only what lies out of sight below goes.
    const all = list.querySelectorAll(":scope > .row");
    if (all.length > MOST && scrollY < innerHeight) {
      for (const row of [...all].slice(MOST)) row.remove();
      list.querySelector(":scope > .more")?.remove();
    }
  }

  // What became of a message, which may be on the page or held back.
  function update(late) {
    const old = $(late.id) ?? held.map((row) => row.querySelector(`#${late.id}`)).find(Boolean);
    late.removeAttribute("data-late");
    old?.replaceWith(late);
  }

  document.body.addEventListener("htmx:sseBeforeMessage", (event) => {
    if (event.target !== list) return;
    event.preventDefault();
    const part = document.createElement("template");
    part.innerHTML = event.detail.data;
    still(() => part.content.querySelectorAll("[data-late]").forEach(update));
    const rows = [...part.content.querySelectorAll(".row")].filter((row) => !$(row.id));
    arrived += rows.length;
    held = [...rows, ...held].slice(0, MOST + 1);
    if (isHeld()) tell();
    else letIn();
  });

  fresh.addEventListener("click", () => {
    for (const value of list.querySelectorAll("details.value[open]")) value.open = false;
    fresh.blur();
    scrollTo(0, 0);
    letIn();
  });
  list.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse") aimedAt = performance.now();
  });
  list.addEventListener("pointerleave", () => { aimedAt = -AIMING_MS; });
  setInterval(() => { if (held.length && !isHeld()) letIn(); }, 300);

  function pause() {
    isPaused = !isPaused;
    $("pause").setAttribute("aria-pressed", String(isPaused));
    $("pause").textContent = isPaused ? "Paused" : "Pause";
  }

  function showSize() {
    $("compact").setAttribute("aria-pressed", String(document.documentElement.dataset.rows === "compact"));
  }

  function resize() {
    const root = document.documentElement;
    root.dataset.rows = root.dataset.rows === "compact" ? "full" : "compact";
    localStorage.setItem("rows", root.dataset.rows);
    showSize();
  }

  $("pause").addEventListener("click", pause);
  $("compact").addEventListener("click", resize);
  $("filter-button").addEventListener("click", (event) => {
    const isOpen = $("filter-form").classList.toggle("open");
    event.currentTarget.setAttribute("aria-expanded", String(isOpen));
    event.currentTarget.textContent = isOpen ? "Close" : "Filter";
  });
  Object.assign(KEYS, { p: pause, c: resize });
  showSize();
})();
