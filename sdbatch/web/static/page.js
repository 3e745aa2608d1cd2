// What HTML and htmx can't do: the theme's button, questions before a button acts, copying, keys.
"use strict";
function copy(button) {
  const text = document.getElementById("yaml");
  // The clipboard's own interface is there over HTTPS and on this machine only.
  const range = document.createRange();
  range.selectNodeContents(text);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
  document.execCommand("copy");
  button.textContent = button.dataset.copied;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.asked && !confirm(button.dataset.asked)) event.preventDefault();
  if (button.id === "copy") copy(button);
  if (button.id === "theme") {
    const isDark = document.documentElement.dataset.bsTheme === "dark";
    localStorage.setItem("theme", isDark ? "light" : "dark");
    applyTheme();
  }
});

// "/" searches, "n" is a new job, the arrows go to the picture before and after: where no field is being filled in.
const KEYS = { "/": "[data-key=search]", n: "[data-key=new]", ArrowLeft: "a[rel=prev]", ArrowRight: "a[rel=next]" };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  const found = KEYS[event.key] && document.querySelector(KEYS[event.key]);
  if (!found) return;
  event.preventDefault();
  if (found.matches("input")) found.focus();
  else found.click();
});

// What a person opened in the queue stays open when that is told anew.
const opened = new Set();
document.addEventListener("toggle", (event) => {
  if (event.target.id) opened[event.target.open ? "add" : "delete"](event.target.id);
}, true);
document.addEventListener("htmx:afterSwap", () => {
  for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
});

// A field that is closed away can't be pointed at by the browser, and the form would just not be sent.
document.addEventListener("invalid", (event) => event.target.closest("details")?.setAttribute("open", ""), true);

// What htmx asked for did not come. A server that was started again knows no token of before: 400.
const show = (id, isShown) => { document.getElementById(id).hidden = !isShown; };
document.addEventListener("htmx:sendError", () => show("lost", true));
document.addEventListener("htmx:responseError", (event) => show(event.detail.xhr.status === 400 ? "outdated" : "lost", true));
document.addEventListener("htmx:afterRequest", (event) => { if (event.detail.successful) show("lost", false); });

// The waiting line is put in order by dragging; the arrows do the same by the keyboard.
let dragged = null;
const rowOf = (event) => event.target.closest?.("#line > li");
document.addEventListener("dragstart", (event) => { if ((dragged = rowOf(event))) dragged.classList.add("dragged"); });
document.addEventListener("dragover", (event) => {
  const row = dragged && rowOf(event);
  if (!row) return;
  event.preventDefault();
  const isLower = event.offsetY > row.offsetHeight / 2 && event.target === row;
  if (row !== dragged) row[isLower ? "after" : "before"](dragged);
});
document.addEventListener("dragend", () => {
  if (!dragged) return;
  const line = document.getElementById("line");
  const values = { job: dragged.dataset.job, before: dragged.nextElementSibling?.dataset.job || "" };
  dragged.classList.remove("dragged");
  dragged = null;
  htmx.ajax("POST", line.dataset.reorder, { source: line, target: "#queue", swap: "none", values });
});
// What is told anew would pull the row from under the hand.
document.addEventListener("htmx:beforeSwap", (event) => { if (dragged) event.detail.shouldSwap = false; });
