// Before the first paint: light or dark, as chosen, else as the system has it.
"use strict";
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function applyTheme() {
  const chosen = localStorage.getItem("theme") || (dark.matches ? "dark" : "light");
  document.documentElement.dataset.bsTheme = chosen;
}
applyTheme();
dark.addEventListener("change", applyTheme);
