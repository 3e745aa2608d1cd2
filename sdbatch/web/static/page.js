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

// A field that is closed away can't be pointed at by the browser, and the form would just not be sent.
document.addEventListener("invalid", (event) => event.target.closest("details")?.setAttribute("open", ""), true);

// What htmx asked for did not come. A server that was started again knows no token of before: 400.
const show = (id, isShown) => { document.getElementById(id).hidden = !isShown; };
document.addEventListener("htmx:sendError", () => show("lost", true));
document.addEventListener("htmx:responseError", (event) => show(event.detail.xhr.status === 400 ? "outdated" : "lost", true));
document.addEventListener("htmx:afterRequest", (event) => { if (event.detail.successful) show("lost", false); });
