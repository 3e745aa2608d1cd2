// The gallery beyond HTML: choosing several images, and the viewer's zoom, swipe and full screen.
"use strict";

// How many are chosen, and a range with shift: from the one that was chosen last.
let lastPick = null;
const picks = () => [...document.querySelectorAll(".pick")];
function countChosen() {
  const count = document.getElementById("count");
  if (count) count.textContent = count.dataset.told.replace("#", picks().filter((pick) => pick.checked).length);
}
document.addEventListener("click", (event) => {
  const pick = event.target.closest(".pick");
  if (!pick) return;
  const all = picks();
  if (event.shiftKey && lastPick && all.includes(lastPick)) {
    const ends = [all.indexOf(lastPick), all.indexOf(pick)].sort((a, b) => a - b);
    for (const one of all.slice(ends[0], ends[1] + 1)) one.checked = pick.checked;
  }
  lastPick = pick;
  countChosen();
});
document.addEventListener("reset", () => setTimeout(countChosen));
// A form that was sent is told to close what stood open in it; what was downloaded stays chosen.
document.addEventListener("submit", (event) => {
  if (event.target.id === "chosen") for (const one of event.target.querySelectorAll("details")) one.open = false;
});

document.addEventListener("click", (event) => {
  const tell = event.target.closest(".tell");
  if (tell) tell.ariaExpanded = String(tell.closest(".shot").classList.toggle("tells"));
  const back = event.target.closest("a[data-back]");
  if (back && history.length > 1 && document.referrer.startsWith(location.origin)) {
    event.preventDefault();
    history.back();
  }
  if (event.target.closest("#zoom")) zoomTo(view.scale > 1 ? 1 : 2.5);
  if (event.target.closest("#full")) toggleFull();
});

// The viewer. How the image lies on its stage: 1 fits, and 0, 0 is the middle.
const view = { scale: 1, x: 0, y: 0 };
const onStage = () => document.querySelector("#stage .large");
function place() {
  const image = onStage();
  if (!image) return;
  const most = [image.clientWidth, image.clientHeight].map((side) => (side * (view.scale - 1)) / 2);
  view.x = Math.max(-most[0], Math.min(most[0], view.x));
  view.y = Math.max(-most[1], Math.min(most[1], view.y));
  image.style.transform = view.scale === 1 ? "" : `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  document.getElementById("stage").classList.toggle("zoomed", view.scale > 1);
}
// The point under the finger or the mouse stays where it is.
function zoomTo(scale, x = 0, y = 0) {
  const to = Math.max(1, Math.min(12, scale));
  view.x = x - ((x - view.x) * to) / view.scale;
  view.y = y - ((y - view.y) * to) / view.scale;
  view.scale = to;
  place();
}
function fromMiddle(event) {
  const stage = document.getElementById("stage").getBoundingClientRect();
  return [event.clientX - stage.left - stage.width / 2, event.clientY - stage.top - stage.height / 2];
}
document.addEventListener("wheel", (event) => {
  if (!event.target.closest("#stage")) return;
  event.preventDefault();
  zoomTo(view.scale * Math.exp(-event.deltaY / 300), ...fromMiddle(event));
}, { passive: false });
document.addEventListener("dblclick", (event) => {
  if (event.target.closest("#stage .large")) zoomTo(view.scale > 1 ? 1 : 2.5, ...fromMiddle(event));
});

// One finger moves a zoomed image, and swipes to the next where it fits; two fingers zoom.
const fingers = new Map();
let began = null;
const apart = () => {
  const [one, other] = [...fingers.values()];
  return Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
};
document.addEventListener("pointerdown", (event) => {
  if (!event.target.closest("#stage .large")) return;
  event.target.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, event);
  began = { x: event.clientX, y: event.clientY, left: view.x, top: view.y, isOne: fingers.size === 1,
    apart: fingers.size === 2 ? apart() : 0, scale: view.scale };
});
document.addEventListener("pointermove", (event) => {
  if (!fingers.has(event.pointerId)) return;
  fingers.set(event.pointerId, event);
  if (fingers.size === 2) return zoomTo((began.scale * apart()) / began.apart);
  if (view.scale === 1 || !began.isOne) return;
  view.x = began.left + event.clientX - began.x;
  view.y = began.top + event.clientY - began.y;
  place();
});
document.addEventListener("pointerup", (event) => {
  if (!fingers.delete(event.pointerId) || view.scale > 1 || !began.isOne) return;
  const [right, down] = [event.clientX - began.x, event.clientY - began.y];
  if (Math.abs(right) > 50 && Math.abs(right) > 2 * Math.abs(down)) {
    document.querySelector(right < 0 ? "a[rel=next]" : "a[rel=prev]")?.click();
  }
});
document.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));

// The stage over all of the page, and over the whole screen where the browser has that.
function toggleFull(to = !document.documentElement.classList.contains("full")) {
  document.documentElement.classList.toggle("full", to);
  if (to) document.documentElement.requestFullscreen?.().catch(() => {});
  else if (document.fullscreenElement) document.exitFullscreen();
}
document.addEventListener("fullscreenchange", () => { if (!document.fullscreenElement) toggleFull(false); });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select") || !onStage()) return;
  if (event.key === "f") toggleFull();
  else if (event.key === "z") zoomTo(view.scale > 1 ? 1 : 2.5);
  else if (event.key === "s") document.querySelector(".tools .star")?.click();
  else if (event.key === "Escape" && document.documentElement.classList.contains("full")) toggleFull(false);
  else if (event.key === "Escape") document.querySelector("a[data-back]")?.click();
});

// Another image: it fits again, and those beside it are asked for before they are wanted.
function begin() {
  Object.assign(view, { scale: 1, x: 0, y: 0 });
  fingers.clear();
  for (const step of document.querySelectorAll("a[data-picture]")) new Image().src = step.dataset.picture;
  countChosen();
}
document.addEventListener("htmx:afterSettle", begin);
document.addEventListener("DOMContentLoaded", begin);
