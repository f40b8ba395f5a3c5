// The page: which image is shown, what the buttons and keys do, what the person is told.

import { Desk, Problem } from "./desk.js";
import { Drawing } from "./drawing.js";
import { Overview, WORDS, isDone } from "./overview.js";

const $ = (id) => document.getElementById(id);
const grouped = (number) => number.toLocaleString("en");
const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

const desk = new Desk();
const drawing = new Drawing($("stage"), { changed: () => changed(), boxed: (box) => suggest(box), marked: () => refresh() });
drawing.zoomed = (zoom) => { $("zoom").textContent = `${Math.round(zoom * 100)} %`; };

let overview = null;
let current = -1;
let entry = null; // of the current image, as it stands on the page: state, polygons, uncertain; null until it is there
let arriving = Promise.resolve(); // until the current image is there, or cannot be shown
let waiting = 0; // suggestions under way
const pasts = new Map(); // image -> entries to undo to
const futures = new Map();

const say = (text) => { $("say").textContent = text; };

// From image to image

async function go(index) {
  if (index < 0 || index >= desk.images.length) return say(index < 0 ? "This is the first image." : "This is the last image.");
  drawing.close(); // an outline of three points or more that is not closed yet is not to be lost
  drawing.flush();
  drawing.cancel();
  current = index;
  entry = null;
  say("");
  arriving = arrive(index);
  return arriving;
}

async function arrive(index) {
  history.replaceState(null, "", `#${index + 1}`); // so that a reload comes back to it
  overview.show(index);
  refresh();
  try {
    const [found, bitmap] = await Promise.all([desk.entry(index), picture(index)]);
    if (current !== index) return;
    entry = { state: found.state, polygons: found.polygons, uncertain: found.uncertain };
    drawing.show(bitmap, found, found.polygons);
    $("stage").focus({ preventScroll: true });
    picture(next(index)).catch(() => {}); // so that it is there at once
  } catch (problem) {
    if (current === index) drawing.blank(`${desk.images[index].name}: ${problem.message}`);
  }
  refresh();
}

const typed = []; // what keys are to do once the image is there: who types faster than images arrive loses none

async function whenThere(action) {
  if (entry && !typed.length) return action();
  typed.push(action);
  if (typed.length > 1) return; // the first one sees to the others
  while (typed.length) {
    await arriving;
    typed.shift()?.();
  }
}

const pictures = new Map(); // the last few, decoded

async function picture(index) {
  if (!pictures.has(index)) {
    const loading = (async () => {
      const answer = await fetch(`images/${index}`);
      if (!answer.ok) throw new Problem(answer.status, await answer.json().catch(() => ({})));
      return createImageBitmap(await answer.blob());
    })();
    loading.catch(() => pictures.delete(index));
    pictures.set(index, loading);
    if (pictures.size > 6) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(index);
}

/** The next image that is left, going round; -1 where none is. */
function next(from) {
  const images = desk.images;
  for (let step = 1; step <= images.length; step++) {
    const index = (from + step) % images.length;
    if (images[index].state === "open") return index;
  }
  return -1;
}

function forward() {
  const index = next(current);
  if (index >= 0 && index !== current) go(index);
  else say(desk.images[current].state === "open" ? "This is the last one left." : `All done. Ctrl-C in the terminal ends; a study takes it with data.masks=${$("place").title}`);
}

// Changes

/** Save what is drawn, or what `change` says instead, as one step that can be undone. */
function commit(change) {
  const polygons = change?.polygons ?? drawing.polygons();
  const uncertain = change?.uncertain ?? entry.uncertain;
  const state = change?.state ?? (polygons.length ? "outlined" : entry.state === "outlined" ? "open" : entry.state);
  const made = { state, polygons, uncertain };
  if (JSON.stringify(made) === JSON.stringify(entry)) return;
  pasts.set(current, [...(pasts.get(current) ?? []), entry]);
  futures.set(current, []);
  adopt(made);
}

/** Something was drawn or dragged. */
function changed() {
  if (!entry) return;
  const before = entry.polygons.length;
  commit();
  if (entry.polygons.length > before) say("Outline drawn: drag its points to correct it. Enter goes on.");
}

function adopt(made) {
  entry = made;
  desk.save(current, made);
  refresh();
}

function travel(from, to, word) {
  const target = from.get(current)?.at(-1);
  if (!entry || !target) return say(`Nothing to ${word}.`);
  from.set(current, from.get(current).slice(0, -1));
  to.set(current, [...(to.get(current) ?? []), entry]);
  drawing.set(target.polygons);
  adopt(target);
  say(word === "undo" ? "Undone." : "Done again.");
}

function undo() {
  if (drawing.drafting()) drawing.back();
  else if (drawing.proposing.size) dismiss();
  else travel(pasts, futures, "undo");
}

function mark(state, words) {
  if (!entry) { // an image that cannot be shown: it can be left behind all the same
    return forward();
  }
  drawing.cancel();
  drawing.dismiss();
  const had = entry.polygons.length;
  if (state === "skipped" && had) {
    say(`It has ${plural(had, "outline")}: left as it is.`);
    return forward();
  }
  drawing.set([]);
  commit({ state, polygons: [] });
  forward();
  say(had ? `${words}; its ${plural(had, "outline")} removed (← and Ctrl Z bring back).` : `${words}.`);
}

function remove() {
  if (!entry) return;
  if (drawing.drafting()) return drawing.cancel();
  if (drawing.remove()) {
    commit();
    say("Outline deleted; Ctrl Z brings it back.");
  } else say("No outline is marked: click one first.");
}

// Suggestions

async function suggest(box = null) {
  if (!entry) return;
  const index = current;
  waiting += 1;
  refresh();
  say("Looking for the outline …");
  try {
    const { polygons } = await desk.suggest(index, box);
    if (current !== index) return;
    if (!polygons.length) return say("Nothing stands out there. Drag a box around the object (B), or draw.");
    drawing.cancel();
    drawing.propose(polygons);
    say(`${plural(polygons.length, "outline")} suggested. Enter accepts; dragging a point corrects and accepts; Esc discards.`);
  } catch (problem) {
    say(`No suggestion: ${problem.message}.`);
  } finally {
    waiting -= 1;
    refresh();
  }
}

function accept() {
  drawing.accept();
  commit();
  say("Accepted. Enter goes on.");
}

function dismiss() {
  drawing.dismiss();
  say("Suggestion discarded.");
}

function enter() {
  if (drawing.drafting()) {
    if (!drawing.close()) say("An outline needs three points or more.");
  } else if (drawing.proposing.size) accept();
  else forward();
}

function escape() {
  if (drawing.drafting()) drawing.cancel();
  else if (drawing.proposing.size) dismiss();
  else if (drawing.tool === "box") use("draw");
  else drawing.annotator?.cancelSelected();
}

function use(tool) {
  drawing.cancel();
  drawing.use(tool);
  refresh();
  say({ draw: "Click points; the first one again, or Enter, closes.", select: "Click an outline, drag its points.",
    box: "Drag a box around the whole object." }[tool]);
}

// What the page shows

function refresh() {
  if (!desk.images || current < 0) return;
  const images = desk.images, image = images[current];
  overview.refresh();
  const done = images.filter(isDone).length, left = images.filter((each) => each.state === "open").length;
  const skipped = images.length - done - left;
  $("progress").textContent = `${grouped(done)} done, ${grouped(left)} left${skipped ? `, ${grouped(skipped)} skipped` : ""}`;
  $("bar").max = images.length;
  $("bar").value = done;
  $("label").textContent = image.label;
  $("name").textContent = $("name").title = image.name;
  $("position").textContent = `${grouped(current + 1)} of ${grouped(images.length)}`;
  const members = overview.groups.get(image.label);
  $("position").title = `${members.indexOf(current) + 1} of ${members.length} in its class`;
  $("state").textContent = WORDS[image.state];
  $("state").dataset.state = image.state;
  document.title = `${image.label} ${current + 1}/${images.length} – tlkd annotate`;
  const there = Boolean(entry), proposing = drawing.proposing.size > 0;
  for (const id of ["draw", "select", "suggest", "box", "none", "hide", "uncertain", "in", "out", "fit"]) $(id).disabled = !there;
  for (const id of ["draw", "select", "box"]) $(id).setAttribute("aria-pressed", String(drawing.tool === id));
  $("suggest").disabled = !there || waiting > 0;
  $("stage").classList.toggle("arriving", !there);
  $("stage").classList.toggle("proposing", proposing);
  $("proposal").hidden = !proposing;
  $("stage").classList.toggle("proposes", proposing && drawing.selected().some((each) => drawing.proposing.has(each.id)));
  $("delete").disabled = !there || !(drawing.selected().length || entry.polygons.length === 1);
  $("undo").disabled = !pasts.get(current)?.length && !proposing;
  $("redo").disabled = !futures.get(current)?.length;
  $("uncertain").checked = Boolean(entry?.uncertain);
  $("hide").setAttribute("aria-pressed", String(drawing.hidden));
}

function saved(state, text) {
  $("saved").dataset.state = state;
  $("saved").textContent = text;
}

function alarm(text, action = "", work = null) {
  $("alert").hidden = !text;
  $("alert-text").textContent = text;
  $("alert-action").hidden = !action;
  $("alert-action").textContent = action;
  $("alert-action").onclick = work;
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([desk.unsaved()], { type: "application/json" }));
  link.download = "unsaved.coco.json";
  link.click();
}

function showTrouble() {
  const unsaved = desk.wanted.size;
  if (desk.gone) {
    const text = "The server is gone: `tlkd annotate` has ended. Start it again with the same words and open the new address.";
    if (unsaved) alarm(`${text} ${plural(unsaved, "image")} could not be saved.`, "Download what is not saved", download);
    else alarm(`${text} All is saved.`);
  } else if (desk.outside?.what === "gone") {
    alarm(`${$("place").title} is gone: something else removed or renamed it. ${keptIn()}`, "Write it again", reload);
  } else if (desk.outside) {
    alarm(`${$("place").title} was changed by something else and is not overwritten. ${keptIn()}`, "Reload it", reload);
  } else alarm("");
}

const keptIn = () => (desk.outside.kept ? `What you draw here is kept in ${desk.outside.kept}.`
  : "What you draw from now on is kept in a file beside it.");

async function reload() {
  try {
    drawing.flush();
    const kept = desk.outside?.kept, gone = desk.outside?.what === "gone";
    await desk.reload();
    overview.images = desk.images;
    pasts.clear();
    futures.clear();
    await go(current);
    saved("saved", "Saved");
    say(gone ? "The file was written again." : `The file as it is now.${kept ? ` What was drawn before lies in ${kept}.` : ""}`);
  } catch (problem) {
    say(`It cannot be loaded: ${problem.message}`);
  }
}

/** The current image was changed by another tab: show it as it is now. */
function replaced(found, words) {
  drawing.cancel();
  entry = { state: found.state, polygons: found.polygons, uncertain: found.uncertain };
  pasts.delete(current); // steps back would take the other's work away
  futures.delete(current);
  drawing.set(found.polygons);
  refresh();
  say(words);
}

desk.addEventListener("saving", () => saved("saving", "Saving …"));
desk.addEventListener("saved", () => {
  if (desk.outside) saved("kept", "Kept in another file");
  else saved("saved", `Saved ${new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" })}`);
});
desk.addEventListener("unsaved", ({ detail }) => {
  saved("unsaved", `Not saved: ${detail.reason}`);
  showTrouble();
});
desk.addEventListener("gone", showTrouble);
desk.addEventListener("back", showTrouble);
desk.addEventListener("outside", showTrouble);
desk.addEventListener("progress", refresh);
desk.addEventListener("merged", ({ detail }) => {
  if (detail.index === current && entry) replaced(detail.entry, "Another tab changed this image too: both tabs' outlines are here now.");
});
desk.addEventListener("changed", async ({ detail: index }) => {
  const busy = () => index !== current || !entry || drawing.drafting() || drawing.dirty || desk.wanted.has(index);
  if (busy()) return; // what is made now is merged when it is saved
  const found = await desk.look(index);
  if (busy()) return;
  desk.entries.set(index, found);
  replaced(found, "Another tab has changed this image.");
});

// Buttons and keys

const ACTIONS = {
  draw: () => use("draw"), select: () => use("select"), box: () => use("box"), suggest: () => suggest(),
  take: accept, dismiss, delete: remove, undo, redo: () => travel(futures, pasts, "redo"),
  none: () => mark("no_foreground", "No foreground"), skip: () => mark("skipped", "Skipped"),
  previous: () => go(current - 1), next: () => go(current + 1), forward,
  in: () => drawing.step(1), out: () => drawing.step(-1), fit: () => drawing.zoomTo(1),
  hide: () => { drawing.hide(!drawing.hidden); refresh(); },
  uncertain: () => { if (entry) commit({ uncertain: !entry.uncertain, state: entry.state, polygons: entry.polygons }); },
  help: () => $("keys").showModal(),
};
const KEYS = { d: "draw", v: "select", b: "box", s: "suggest", f: "none", k: "skip", p: "previous", n: "next",
  ArrowLeft: "previous", ArrowRight: "next", "+": "in", "=": "in", "-": "out", 0: "fit", h: "hide", u: "uncertain", "?": "help" };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

for (const [id, action] of Object.entries(ACTIONS)) {
  $(id).addEventListener(id === "uncertain" ? "change" : "click", (event) => {
    action();
    if (event.detail > 0 && id !== "help") $("stage").focus({ preventScroll: true }); // by mouse: keys go on where they were
  });
}

/** What a key does; true where it did something. */
function pressed(event) {
  const { key } = event;
  if ((event.ctrlKey || event.metaKey) && !event.altKey) {
    if (key.toLowerCase() === "z") return (event.shiftKey ? ACTIONS.redo() : undo()), true;
    if (key.toLowerCase() === "y") return ACTIONS.redo(), true;
    return false;
  }
  if (event.altKey) return false;
  if (ARROWS[key] && entry) {
    const by = event.shiftKey ? 0.25 : 1;
    if (drawing.nudge(ARROWS[key][0] * by, ARROWS[key][1] * by)) return true;
  }
  if (key === "Backspace" && drawing.drafting()) return drawing.back(), true;
  if (key === "Delete" || key === "Backspace") {
    if (document.querySelector(".a9s-handle-selected")) return false; // a marked point: Annotorious deletes it
    return remove(), true;
  }
  const onButton = document.activeElement?.matches("button, input, summary, a");
  if (key === "Enter") return onButton ? false : (whenThere(enter), true);
  if (key === "Escape") return escape(), true;
  if (key === " ") {
    if (onButton) return false;
    return $("stage").classList.add("pans"), true;
  }
  const action = KEYS[key.length === 1 ? key.toLowerCase() : key];
  return action ? (whenThere(ACTIONS[action]), true) : false;
}

addEventListener("keydown", (event) => {
  if ($("keys").open || !desk.images) return;
  if (pressed(event)) {
    event.preventDefault();
    event.stopImmediatePropagation(); // Annotorious has its own undo, of fewer things
  }
}, true);
addEventListener("keyup", (event) => { if (event.key === " ") $("stage").classList.remove("pans"); });
addEventListener("beforeunload", (event) => {
  drawing.close();
  drawing.flush();
  if (desk.wanted.size) event.preventDefault();
});

try {
  const { file, source } = await desk.open();
  $("place").textContent = `${source} → ${file}`;
  $("place").title = file;
  overview = new Overview($("classes"), desk.images, (index) => {
    typed.length = 0; // the mouse goes elsewhere
    go(index);
  });
  $("main").inert = false; // nothing can be done before
  const wanted = Number(location.hash.slice(1)) - 1;
  await go(Number.isInteger(wanted) && desk.images[wanted] ? wanted : Math.max(0, next(-1)));
  showTrouble();
} catch (problem) {
  alarm(`The page could not be set up: ${problem.message}`);
}
