
"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const find = (id) => document.getElementById(id);
const STORED = `sonoshard-reader-study/${content.study}/`;
const sources = new Map(content.images.map((image) => [image.id, image.source]));
const KEY_CONFIDENCE = { g: content.num_generated - 1, r: content.num_generated + 2 };

// session: {reader, years, place, answers: {image: {confidence, seconds, comment}}}; what a browser keeps of a reader.
let session = null;
let order = [];
let screen = "start";
let pending = null; // the step that the arrow keys stand on
let since = null; // when the present look began, in ms; null while nobody looks
let settled = false; // whether the browser's store may be touched, see settle()

/* ---- a reader's own order ---- */

// A 32-bit hash of a text (FNV-1a), the seed of mulberry32 (T. Ettinger, public domain), for Fisher and Yates' shuffle.
function shuffled(items, text) {
  let state = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) state = Math.imul(state ^ byte, 0x01000193) >>> 0;
  const random = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
  const result = [...items];
  for (let last = result.length - 1; last > 0; last--) {
    const other = Math.floor(random() * (last + 1));
    [result[last], result[other]] = [result[other], result[last]];
  }
  return result;
}

/* ---- what the browser keeps ---- */

function keep() {
  try {
    localStorage.setItem(STORED + session.reader, JSON.stringify(session));
    localStorage.setItem(STORED, session.reader);
  } catch { find("not-kept").hidden = false; }
}

function kept(reader) {
  try { return JSON.parse(localStorage.getItem(STORED + reader)); } catch { return null; }
}

// A code has no space at its ends, so that this is nobody's.
function canKeep() {
  try { localStorage.setItem(STORED + " ", ""); localStorage.removeItem(STORED + " "); return true; } catch { return false; }
}

/* ---- time ---- */

function look() { if (since === null && screen === "reading" && !document.hidden) since = performance.now(); }

function lookAway() {
  if (since === null) return;
  answerOf(order[session.place]).seconds += (performance.now() - since) / 1000;
  since = null;
}

function answerOf(image) { return (session.answers[image] ??= { confidence: null, seconds: 0, comment: "" }); }
function numAnswered(of) { return Object.values(of.answers).filter((answer) => answer.confidence).length; }

/* ---- screens ---- */

function show(name) {
  screen = name;
  for (const id of ["start", "reading", "end"]) find(id).hidden = id !== name;
}

function showStart() {
  show("start");
  find("reader").focus();
  if (settled) showKept();
}

function showKept() {
  let reader = null;
  try { reader = localStorage.getItem(STORED); } catch { /* told below */ }
  const last = reader && kept(reader);
  find("resume").hidden = !last;
  if (last) {
    find("resume").textContent = `Go on as ${last.reader} (${numAnswered(last)} of ${content.images.length} answered)`;
    find("resume").onclick = () => begin(last.reader, last.years);
  }
  find("not-kept").hidden = canKeep();
}

// Chromium drops all that a page stores, and says nothing, where the page first touches localStorage before the browser
// has noticed that it was loaded: on a busy computer some time after its load event. So nothing is touched until the
// reader does something, or a second has passed.
function settle() {
  if (settled) return;
  settled = true;
  if (screen === "start") showKept();
}

function begin(reader, years) {
  session = kept(reader) ?? { reader, years, place: 0, answers: {} };
  if (years !== "") session.years = years;
  order = shuffled([...sources.keys()].sort(), content.study + "/" + reader);
  keep();
  if (session.place >= order.length) showEnd(); else showImage();
}

function showImage() {
  show("reading");
  const image = order[session.place];
  const answer = answerOf(image);
  pending = answer.confidence;
  const count = `Image ${session.place + 1} of ${order.length}`;
  find("count").textContent = count;
  find("bar").style.width = `${(100 * session.place) / order.length}%`;
  find("who-reads").textContent = session.reader;
  find("back").disabled = session.place === 0;
  find("image").src = sources.get(image);
  find("image").alt = `Ultrasound image ${session.place + 1} of ${order.length}`;
  find("comment").value = answer.comment;
  find("comment").blur();
  if (document.activeElement instanceof HTMLElement) document.activeElement.blur();
  const before = session.place > 0 ? answerOf(order[session.place - 1]).confidence : null;
  find("last").textContent = before ? `Image ${session.place}: ${content.scale[before - 1]} · Backspace to change` : "Keys: 1 to 6, or G and R";
  showPending();
  zoomTo(1);
  look();
}

function showPending() {
  for (const step of document.querySelectorAll(".step")) {
    step.setAttribute("aria-pressed", String(Number(step.dataset.confidence) === pending));
  }
}

function showEnd() {
  show("end");
  find("sum").textContent = `All ${order.length} images are answered.`;
  find("saved").textContent = "";
  find("download").focus();
}

/* ---- answers ---- */

function noteComment() { answerOf(order[session.place]).comment = find("comment").value.replace(/\s+/g, " ").trim(); }

function answer(confidence) {
  lookAway();
  noteComment();
  answerOf(order[session.place]).confidence = confidence;
  session.place += 1;
  keep();
  if (session.place < order.length) showImage(); else showEnd();
}

function back() {
  if (session.place === 0) return;
  if (screen === "reading") { lookAway(); noteComment(); }
  session.place -= 1;
  keep();
  showImage();
}

function pause() {
  lookAway();
  noteComment();
  keep();
  showStart();
}

function csv() {
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  const rows = order.map((image, place) => {
    const { confidence, seconds, comment } = session.answers[image];
    const values = {
      study: content.study, reader: session.reader, years: session.years, order: place + 1, image, confidence, comment,
      answer: confidence <= content.num_generated ? "generated" : "real", seconds: seconds.toFixed(1),
    };
    return content.columns.map((column) => cell(values[column])).join(",");
  });
  return [content.columns.join(","), ...rows, ""].join("\r\n");
}

function download() {
  const name = session.reader.replace(/[^\p{L}\p{N}]+/gu, "-");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = `answers-${content.study}-${name}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  find("saved").textContent = `Saved as ${link.download} in this browser's downloads. You may close this page.`;
}

/* ---- zoom ---- */

const view = { scale: 1, x: 0, y: 0 };
const MAX_ZOOM = 8;

// Zoom so that the point at x, y (from the viewer's middle, in pixels) stays where it is.
function zoomTo(scale, x = 0, y = 0) {
  scale = Math.min(MAX_ZOOM, Math.max(1, scale));
  view.x = x - ((x - view.x) * scale) / view.scale;
  view.y = y - ((y - view.y) * scale) / view.scale;
  view.scale = scale;
  place();
}

function place() {
  const image = find("image");
  const side = Math.min(image.offsetWidth, image.offsetHeight) * view.scale;
  const within = (value, room) => Math.max(-room, Math.min(room, value));
  view.x = within(view.x, Math.max(0, (side - find("viewer").clientWidth) / 2));
  view.y = within(view.y, Math.max(0, (side - find("viewer").clientHeight) / 2));
  image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  find("viewer").classList.toggle("zoomed", view.scale > 1);
  find("zoom").textContent = view.scale > 1 ? `${view.scale.toFixed(1)} ×` : "";
}

function fromMiddle(event) {
  const box = find("viewer").getBoundingClientRect();
  return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
}

let drag = null;
find("viewer").addEventListener("pointerdown", (event) => {
  drag = { x: event.clientX, y: event.clientY, moved: false };
  find("viewer").setPointerCapture(event.pointerId);
});
find("viewer").addEventListener("pointermove", (event) => {
  if (!drag) return;
  const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
  if (!drag.moved && Math.hypot(x, y) < 4) return;
  Object.assign(drag, { x: event.clientX, y: event.clientY, moved: true });
  view.x += x;
  view.y += y;
  find("viewer").classList.add("dragged");
  place();
});
find("viewer").addEventListener("pointerup", (event) => {
  if (drag && !drag.moved) zoomTo(view.scale > 1 ? 1 : 2.5, ...fromMiddle(event));
  drag = null;
  find("viewer").classList.remove("dragged");
});
find("viewer").addEventListener("pointercancel", () => { drag = null; find("viewer").classList.remove("dragged"); });
find("viewer").addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomTo(view.scale * Math.exp(-event.deltaY / 500), ...fromMiddle(event));
}, { passive: false });

/* ---- keys and buttons ---- */

const onReading = {
  Backspace: back,
  "+": () => zoomTo(view.scale * 1.25),
  "=": () => zoomTo(view.scale * 1.25),
  "-": () => zoomTo(view.scale / 1.25),
  0: () => zoomTo(1),
  c: () => find("comment").focus(),
  ArrowLeft: () => move(-1),
  ArrowRight: () => move(1),
  Enter: () => { if (pending) answer(pending); },
};

// The first press takes the step beside the middle on that side.
function move(by) {
  const first = by < 0 ? content.num_generated : content.num_generated + 1;
  pending = pending === null ? first : Math.min(content.scale.length, Math.max(1, pending + by));
  find("last").textContent = "Enter to confirm";
  showPending();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (screen === "end" && key === "Backspace") { event.preventDefault(); back(); return; }
  if (screen !== "reading") return;
  if (event.target === find("comment")) {
    if (key === "Enter" || key === "Escape") { event.preventDefault(); find("comment").blur(); }
    return;
  }
  // A held key must not answer image after image; and Enter on a button means that button.
  const confidence = KEY_CONFIDENCE[key] ?? (key >= "1" && key <= String(content.scale.length) ? Number(key) : null);
  if (confidence !== null) { event.preventDefault(); if (!event.repeat) answer(confidence); return; }
  if (key === "Enter" && event.target instanceof HTMLButtonElement) return;
  if (!(key in onReading)) return;
  event.preventDefault();
  if (!event.repeat || !["Enter", "Backspace"].includes(key)) onReading[key]();
});

find("who").addEventListener("submit", (event) => {
  event.preventDefault();
  const reader = find("reader").value.replace(/\s+/g, " ").trim();
  if (reader) begin(reader, find("years").value); else find("reader").focus();
});
for (const step of document.querySelectorAll(".step")) {
  step.addEventListener("click", () => answer(Number(step.dataset.confidence)));
}
find("back").addEventListener("click", back);
find("pause").addEventListener("click", pause);
find("download").addEventListener("click", download);
find("review").addEventListener("click", back);
find("other").addEventListener("click", () => { find("who").reset(); showStart(); });
document.addEventListener("visibilitychange", () => { if (document.hidden) { lookAway(); if (session) keep(); } else look(); });
window.addEventListener("pagehide", () => { lookAway(); if (session) keep(); });
window.addEventListener("resize", () => { if (screen === "reading") place(); });

for (const name of ["pointermove", "pointerdown", "keydown"]) window.addEventListener(name, settle, { capture: true, once: true });
setTimeout(settle, 1000);

for (const element of document.querySelectorAll(".study")) element.textContent = content.study;
showStart();
