// The page: its parts are made, tied together and drawn here.

import { Desk } from "./desk.js";
import { listen } from "./gestures.js";
import { listenToKeys } from "./keys.js";
import { Marks } from "./marks.js";
import { drawButtons, drawMask, drawNumbers, notify, save } from "./panel.js";
import * as server from "./server.js";

const get = (id) => document.getElementById(id);
const stage = get("stage");
const picture = get("picture");
const marks = new Marks(get("marks"));
const about = await server.about();
const desk = new Desk({ about, changed: draw, failed: (error) => notify(error.message) });

// --- drawing ----------------------------------------------------------------------------------------

let drawn = null; // the answer that is drawn next
let painted = null; // the one that mask and outline show
let drawing = Promise.resolve(); // masks are drawn one after the other

function draw() {
  const { view } = desk;
  get("view").style.transform = `translate(${view.left}px, ${view.top}px) scale(${view.zoom})`;
  get("view").classList.toggle("pixels", view.zoom > 3);
  stage.classList.toggle("pending", desk.pending);
  stage.dataset.tool = desk.tool;
  if (desk.answer !== drawn) {
    const answer = (drawn = desk.answer);
    drawing = drawing.then(() => drawAnswer(answer)).catch((error) => notify(error.message));
  }
  if (desk.pending) stage.dataset.state = "asking";
  drawing.then(settle);
  marks.draw(desk.step, desk.selected, view);
  drawNumbers(desk);
  drawButtons(desk);
}

async function drawAnswer(answer) {
  if (answer !== desk.answer) return; // a later one waits behind
  await drawMask(get("mask"), answer, desk.view.image);
  marks.setOutlines(answer?.outlines ?? []);
  painted = answer;
}

// Whoever watches the page, a test for one, sees from the state when all that was asked for is shown.
function settle() {
  if (!get("busy").hidden) stage.dataset.state = "opening";
  else if (!desk.key) stage.dataset.state = "empty";
  else stage.dataset.state = desk.pending || painted !== desk.answer ? "asking" : "ready";
}

new ResizeObserver(() => {
  desk.view.resize(stage.clientWidth, stage.clientHeight);
  draw();
}).observe(stage);

// --- opening ----------------------------------------------------------------------------------------

let opening = 0;

async function open(source, name) {
  const turn = ++opening;
  busy(`Reading ${name} …`);
  try {
    const opened = await desk.open(async () => {
      const found = await source();
      if (turn !== opening) server.close(found.key);
      return found;
    });
    picture.src = `/api/images/${opened.key}/picture`;
    [picture.width, picture.height] = opened.size;
    await picture.decode();
    stage.classList.remove("empty");
    stage.focus({ preventScroll: true });
    const size = opened.size.join(" × ");
    get("status").textContent = `${opened.name}, ${size} pixels${about.automatic ? "" : ". Click on the object to begin."}`;
  } catch (error) {
    notify(error.message);
  } finally {
    if (turn === opening) busy(null);
    draw();
  }
}

function openFile(file) {
  if (!file) return;
  if (file.size > about.limits.bytes) {
    const size = (file.size / 2 ** 20).toFixed(1);
    notify(`${file.name} has ${size} MB; this server takes at most ${about.limits.megabytes} MB.`);
  } else open(() => server.openFile(file), file.name || "the image");
}

function busy(words) {
  get("busy").hidden = words === null;
  get("busy-words").textContent = words ?? "";
  stage.setAttribute("aria-busy", words !== null);
  settle();
}

get("file").addEventListener("change", (event) => {
  openFile(event.target.files[0]);
  event.target.value = "";
});
addEventListener("paste", (event) => openFile([...event.clipboardData.files][0]));

let over = 0; // drags enter and leave every element in turn
addEventListener("dragenter", (event) => { event.preventDefault(); get("veil").hidden = !++over; });
addEventListener("dragleave", () => { get("veil").hidden = !--over; });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  over = 0;
  get("veil").hidden = true;
  openFile(event.dataTransfer.files[0]);
});
addEventListener("pagehide", () => desk.close());

// --- buttons and keys -------------------------------------------------------------------------------

function tool(name) {
  desk.tool = name;
  desk.select(null);
}

function opacity(by = 0) {
  const slider = get("opacity");
  slider.valueAsNumber += by;
  get("opacity-value").textContent = `${slider.value} %`;
  get("mask").style.opacity = slider.value / 100;
}

const shown = () => {
  get("marks").classList.toggle("no-outline", !get("show-outline").checked);
  get("marks").classList.toggle("no-prompts", !get("show-marks").checked);
};

const withImage = (work) => (...given) => {
  if (desk.key) Promise.resolve(work(...given)).catch((error) => notify(error.message));
};
const stem = () => desk.name.replace(/\.[^.]*$/, "");
const act = {
  tool,
  undo: withImage(() => desk.undo()),
  redo: withImage(() => desk.redo()),
  choose: withImage((choice) => { if (!desk.isEmpty) desk.choose(choice); }),
  nudge: (dx, dy) => desk.nudge(dx, dy),
  hide: (yes) => stage.classList.toggle("hide", yes),
  next: (by) => desk.selectNext(by),
};
const reset = withImage(() => desk.reset());
const clear = withImage(() => desk.clear());
const zoom = withImage((factor) => {
  desk.view.zoomAt(stage.clientWidth / 2, stage.clientHeight / 2, factor);
  draw();
});
const fit = withImage(() => { desk.view.fit(); draw(); });
const saveAs = (kind, ending, more = () => ({})) => withImage(async () => {
  if (!desk.isEmpty) save(await desk.file(kind, more()), `${stem()}${ending}`);
});
const saveMask = saveAs("mask", ".png");
const saveOverlay = saveAs("overlay", "_overlay.png", () => ({ opacity: get("opacity").value / 100 }));
const savePrompts = saveAs("prompts", "_prompts.json");
const removeSelected = withImage(() => desk.removeSelected());
const showKeys = () => get("keys").showModal();

act.single = {
  r: reset, c: clear, s: saveMask, o: () => get("file").click(), 0: fit, "?": showKeys,
  h: () => act.hide(true), Delete: removeSelected, Backspace: removeSelected, Escape: () => desk.select(null),
};
act.repeated = { "[": () => opacity(-5), "]": () => opacity(5), "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8) };

for (const button of document.querySelectorAll("button[data-tool]")) button.onclick = () => tool(button.dataset.tool);
for (const button of document.querySelectorAll("button[data-choice]")) {
  button.onclick = () => act.choose(Number(button.dataset.choice));
}
for (const [id, work] of Object.entries({
  undo: act.undo, redo: act.redo, reset, clear, fit, "show-keys": showKeys,
  "save-mask": saveMask, "save-overlay": saveOverlay, "save-prompts": savePrompts,
})) get(id).onclick = work;
get("opacity").oninput = () => opacity();
get("show-outline").onchange = get("show-marks").onchange = shown;
get("notice").querySelector("button").onclick = () => { get("notice").hidden = true; };
get("theme").onclick = () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("theme", next); } catch { /* private windows may refuse */ }
};

// --- beginning --------------------------------------------------------------------------------------

get("net").textContent = about.title;
get("limits").textContent = `up to ${about.limits.megabytes} MB`;
about.samples.forEach((name, i) => {
  const button = document.createElement("button");
  button.title = name;
  button.innerHTML = `<img src="/samples/${i}.jpg" width="96" height="96" alt="">`;
  button.firstChild.alt = name;
  button.onclick = () => open(() => server.openSample(i), name);
  get("samples").querySelector(".row").append(button);
});
get("samples").hidden = !about.samples.length;
listen(stage, desk);
listenToKeys(stage, act);
opacity();
draw();
stage.dataset.state = "empty";
