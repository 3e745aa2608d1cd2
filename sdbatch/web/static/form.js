// The form of a new job beyond HTML: what was typed is kept, buttons that fill in, images that are dropped or pasted.
"use strict";
const DRAFT = `draft of ${document.querySelector("#job")?.dataset.change}`;
const jobForm = () => document.getElementById("job");
const token = () => jobForm().elements.csrf_token.value;

// What was typed stays in this browser, until "Start afresh" or the end of the login.
function values() {
  const filled = [...new FormData(jobForm())].filter(([name]) => !["csrf_token", "upload"].includes(name));
  return Object.fromEntries(filled);
}
document.addEventListener("input", (event) => {
  if (event.target.form?.id === "job") localStorage.setItem(DRAFT, JSON.stringify(values()));
});
document.addEventListener("click", (event) => { if (event.target.closest("[data-forget]")) localStorage.removeItem(DRAFT); });
document.addEventListener("submit", (event) => {
  if (event.target.action.endsWith("/logout")) {
    for (const name of Object.keys(localStorage)) if (name.startsWith("draft of ")) localStorage.removeItem(name);
  }
});
document.addEventListener("DOMContentLoaded", () => {
  const draft = jobForm() && "fresh" in jobForm().dataset && localStorage.getItem(DRAFT);
  if (draft) {
    const kept = JSON.parse(draft);
    fill(jobForm().dataset.change, { ...kept, to: kept.kind || "txt2img" });
  }
});

// The server makes the form anew from values, and perhaps an image.
let lastImage = null;
async function fill(address, given, image, isSent = true) {
  const body = new FormData();
  for (const [name, text] of Object.entries(given)) body.append(name, text);
  if (image && isSent) body.append("upload", image);
  lastImage = image || lastImage;
  const answer = await fetch(address, { method: "POST", body, headers: { "X-CSRFToken": token(), "HX-Request": "true" } });
  if (!answer.ok) return show(answer.status === 400 ? "outdated" : "lost", true);
  const place = document.getElementById("form");
  place.innerHTML = await answer.text();
  htmx.process(place);
  if (image && (!isSent || "init" in jobForm().dataset)) {
    const list = new DataTransfer();
    list.items.add(image);
    jobForm().elements.upload.files = list.files;
  }
  changed(jobForm().elements.prompt);
}
const changed = (field) => field.dispatchEvent(new Event("input", { bubbles: true }));

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-start]")) fill(jobForm().dataset.change, { ...values(), to: "img2img" }, lastImage, false);
  const button = event.target.closest("[data-into], [data-width]");
  if (!button || !jobForm()) return;
  const { into, value, add, before, width, height } = button.dataset;
  if (width) {
    Object.assign(jobForm().elements.W, { value: width });
    Object.assign(jobForm().elements.H, { value: height });
    return changed(jobForm().elements.W);
  }
  const field = document.getElementById(into);
  field.value = add === undefined ? value : field.value.trimEnd() + (field.value.trim() ? before : "") + add;
  changed(field);
});

// An image from elsewhere: its own parameters, else it is what the job starts from.
const imageOf = (data) => [...(data?.files || [])].find((file) => ["image/png", "image/jpeg", "image/webp"].includes(file.type));
const isFile = (event) => jobForm() && [...(event.dataTransfer?.types || [])].includes("Files");
document.addEventListener("dragover", (event) => {
  if (!isFile(event) || event.target.matches("input[type=file]")) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  if (!isFile(event) || event.target.matches("input[type=file]")) return;
  event.preventDefault();
  const image = imageOf(event.dataTransfer);
  if (image) fill(jobForm().dataset.read, values(), image);
});
document.addEventListener("paste", (event) => {
  const image = jobForm() && imageOf(event.clipboardData);
  if (!image) return;
  event.preventDefault();
  fill(jobForm().dataset.read, values(), image);
});
