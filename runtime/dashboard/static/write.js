// Suggestions on the page that writes a message: a click fills in a key, or a sample of the value.
"use strict";

(() => {
  const key = $("key");
  const value = $("value");
  let filled = value.value === ($("sample")?.dataset.value ?? "{}") ? value.value : null;

  function fill(field, text) {
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  document.body.addEventListener("click", (event) => {
    const button = event.target.closest("[data-key], #sample");
    if (!button) return;
    if (button.dataset.key) {
      fill(key, button.dataset.key);
      key.focus();
    } else {
      filled = button.dataset.value;
      fill(value, filled);
      value.focus();
    }
  });

  // A value that nobody has touched becomes a sample of what the key's handler takes.
  document.body.addEventListener("htmx:afterSwap", (event) => {
    const sample = event.target.id === "check" && $("sample")?.dataset.value;
    if (sample && value.value === filled && value.value !== sample) {
      filled = sample;
      fill(value, sample);
    }
  });
})();
