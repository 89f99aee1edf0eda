// The page: creates its parts, connects them and draws them.

import { Editor } from "./editor.js";
import { listen } from "./gestures.js";
import { listenToKeys } from "./keys.js";
import { Marks } from "./marks.js";
import { download, drawButtons, drawMask, drawNumbers, notify } from "./panel.js";
import { SampleList } from "./samples.js";
import * as server from "./server.js";

const get = (id) => document.getElementById(id);
const stage = get("stage");
const image = get("image");
const marks = new Marks(get("marks"));
const about = await server.about();
const editor = new Editor({ changed: draw, failed: (error) => notify(error.message) });
let net = about.nets[0].name; // the net that opens images
const loaded = new Map(); // name of a net that the server has loaded → its properties

// --- drawing ----------------------------------------------------------------------------------------

let scheduled = null; // the last result that was scheduled for drawing
let visible = null; // the result that mask and outline show
let drawing = Promise.resolve(); // masks are drawn one after another

function draw() {
  const { view } = editor;
  get("view").style.transform = `translate(${view.left}px, ${view.top}px) scale(${view.zoom})`;
  get("view").classList.toggle("pixels", view.zoom > 3);
  stage.classList.toggle("pending", editor.pending);
  stage.dataset.tool = editor.tool;
  if (editor.result !== scheduled) {
    const result = (scheduled = editor.result);
    drawing = drawing.then(() => drawResult(result)).catch((error) => notify(error.message));
  }
  if (editor.pending || visible !== editor.result) stage.dataset.state = "pending";
  drawing.then(updateState);
  marks.draw(editor.step, editor.selected, editor.active, view);
  drawNumbers(editor);
  drawStatus();
  drawButtons(editor);
}

function drawStatus() {
  if (!editor.key) return;
  const noLesion = editor.about.lesions && editor.isEmpty && editor.step?.automatic ? ". No lesion found." : "";
  const hint = editor.about.automatic ? noLesion : ". Click the object to start.";
  const text = `${editor.name}, ${editor.view.image.join(" × ")} pixels${hint}`;
  if (get("status").textContent !== text) get("status").textContent = text; // screen readers announce changes
}

async function drawResult(result) {
  if (result !== editor.result) return; // a later result is scheduled
  await drawMask(get("mask"), result, editor.view.image);
  marks.setOutlines(result?.outlines ?? []);
  visible = result;
}

// The attribute data-state shows scripts and tests when the current result is visible.
function updateState() {
  if (!get("busy").hidden) stage.dataset.state = "opening";
  else if (!editor.key) stage.dataset.state = "empty";
  else stage.dataset.state = editor.pending || visible !== editor.result ? "pending" : "ready";
}

new ResizeObserver(() => {
  editor.view.resize(stage.clientWidth, stage.clientHeight);
  draw();
}).observe(stage);

// --- opening ----------------------------------------------------------------------------------------

const PAUSE = 150; // ms: of several quick steps through the samples, only the last one is opened
let opening = 0;
let opened = { sample: null, net }; // what is open: the number of a sample, and the net
let discarded = null; // the step whose changes the user agreed to lose
let reopen = null; // opens the image again, with the present net
const samples = new SampleList(about, openSample);

// `source` is called with the name of a net.
async function open(source, name, sample = null) {
  const [turn, chosen] = [++opening, net];
  showBusy(loaded.has(chosen) ? `Opening ${name} …` : `Loading the net ${chosen} and opening ${name} …`);
  get("notice").hidden = true;
  samples.mark(sample);
  try {
    if (sample !== null) await new Promise((resolve) => setTimeout(resolve, PAUSE));
    const isWanted = async () => turn === opening && (await mayLeave()) && turn === opening;
    if (!(await isWanted())) return keep(turn);
    const found = await editor.open(() => source(chosen), isWanted); // the user may change prompts meanwhile
    if (!found) return keep(turn);
    opened = { sample, net: chosen };
    reopen = () => open(source, name, sample);
    showNet(chosen, found.net);
    image.src = `/api/images/${found.key}/picture`;
    [image.width, image.height] = found.size;
    await image.decode();
    stage.classList.remove("empty");
    if (!get("samples").contains(document.activeElement)) stage.focus({ preventScroll: true });
  } catch (error) {
    if (turn !== opening) return;
    notify(error.message);
    discarded = null;
    keep(turn, sample ?? opened.sample);
  } finally {
    if (turn === opening) showBusy(null);
    draw();
  }
}

// The image that is open stays open. Steps continue from sample `at`.
function keep(turn, at = opened.sample) {
  if (turn !== opening) return;
  samples.mark(at, opened.sample);
  if (editor.key) chooseNet(opened.net);
}

// Ask once before changes are lost that have not been saved.
async function mayLeave() {
  const dialog = get("leave");
  if (!editor.isUnsaved || editor.step === discarded) return true;
  if (dialog.open) return false;
  get("leave-name").textContent = editor.name;
  dialog.returnValue = ""; // some browsers do not set it for the key Escape
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue === "save") await saveFile("mask", ".png");
  else if (dialog.returnValue === "discard") discarded = editor.step;
  else return false;
  return true;
}

function openSample(number) {
  open((chosen) => server.openSample(number, chosen), about.samples[number], number);
}

function openFile(file) {
  if (!file) return;
  if (file.size > about.limits.bytes) {
    const size = (file.size / 2 ** 20).toFixed(1);
    notify(`${file.name} has ${size} MB; the limit of this server is ${about.limits.megabytes} MB.`);
  } else open((chosen) => server.openFile(file, chosen), file.name || "the image");
}

function showBusy(message) {
  get("busy").hidden = message === null;
  get("busy-message").textContent = message ?? "";
  stage.setAttribute("aria-busy", message !== null);
  updateState();
}

get("file").addEventListener("change", (event) => {
  openFile(event.target.files[0]);
  event.target.value = "";
});
addEventListener("paste", (event) => openFile([...event.clipboardData.files][0]));

let over = 0; // the number of elements under the drag: each sends its own enter and leave events
addEventListener("dragenter", (event) => { event.preventDefault(); get("veil").hidden = !++over; });
addEventListener("dragleave", () => { get("veil").hidden = !--over; });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  over = 0;
  get("veil").hidden = true;
  openFile(event.dataTransfer.files[0]);
});
addEventListener("beforeunload", (event) => { if (editor.isUnsaved) event.preventDefault(); });
addEventListener("pagehide", () => editor.close());

// --- nets -------------------------------------------------------------------------------------------

function chooseNet(name) {
  net = get("nets").value = name;
  showNet(name, loaded.get(name));
}

// The properties of a net are known once it is loaded, when it has opened an image.
function showNet(name, properties) {
  const { purpose } = about.nets.find((one) => one.name === name);
  get("purpose").textContent = `The net ${name} segments ${purpose}. Select another net at the top.`;
  get("net").textContent = properties?.title ?? purpose;
  if (properties) loaded.set(name, properties);
  samples.show(name, Boolean(properties?.estimates));
  if (!properties) return;
  get("own-mask").hidden = properties.own_mask !== null;
  get("masks-note").textContent = `SAM predicts three masks and an IoU for each. The net was trained on ${
    properties.own_mask === null ? "a fourth, SAM's single mask" : "the first"
  }.`;
}

// --- buttons and keys -------------------------------------------------------------------------------

function setTool(name) {
  editor.tool = name;
  editor.select(null);
}

function changeOpacity(by = 0) {
  const slider = get("opacity");
  slider.valueAsNumber += by;
  get("opacity-value").textContent = `${slider.value} %`;
  get("mask").style.opacity = slider.value / 100;
}

const updateVisibility = () => {
  get("marks").classList.toggle("no-outline", !get("show-outline").checked);
  get("marks").classList.toggle("no-prompts", !get("show-marks").checked);
};

const withImage = (action) => (...values) => {
  if (editor.key) Promise.resolve(action(...values)).catch((error) => notify(error.message));
};
const stem = () => editor.name.replace(/\.[^.]*$/, "");
const actions = {
  tool: setTool,
  undo: withImage(() => editor.undo()),
  redo: withImage(() => editor.redo()),
  setMaskIndex: withImage((maskIndex) => { if (!editor.isEmpty) editor.setMaskIndex(maskIndex === editor.about.own_mask ? null : maskIndex); }),
  nudge: (dx, dy) => editor.nudge(dx, dy),
  hide: (hidden) => stage.classList.toggle("hide", hidden),
  next: (by) => editor.selectNext(by),
  step: (by) => samples.step(by),
};
const reset = withImage(() => editor.reset());
const clear = withImage(() => editor.clear());
const zoom = withImage((factor) => {
  editor.view.zoomAt(stage.clientWidth / 2, stage.clientHeight / 2, factor);
  draw();
});
const fit = withImage(() => { editor.view.fit(); draw(); });
const saveFile = async (kind, ending, more = {}) => download(await editor.file(kind, more), `${stem()}${ending}`);
const saveAs = (kind, ending, more = () => ({})) => withImage(async () => {
  if (editor.hasMask) await saveFile(kind, ending, more());
});
const saveMask = saveAs("mask", ".png");
const saveOverlay = saveAs("overlay", "_overlay.png", () => ({ opacity: get("opacity").value / 100 }));
const savePrompts = saveAs("prompts", "_prompts.json");
const newLesion = withImage(() => editor.startLesion());
const removeSelected = withImage(() => editor.removeSelected());
const showKeys = () => get("keys").showModal();

actions.single = {
  r: reset, c: clear, l: newLesion, s: saveMask, o: () => get("file").click(), 0: fit, "?": showKeys,
  h: () => actions.hide(true), Delete: removeSelected, Backspace: removeSelected, Escape: () => editor.select(null),
};
actions.repeated = { "[": () => changeOpacity(-5), "]": () => changeOpacity(5), "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8) };

for (const button of document.querySelectorAll("button[data-tool]")) button.onclick = () => setTool(button.dataset.tool);
for (const button of document.querySelectorAll("button[data-mask-index]")) {
  button.onclick = () => actions.setMaskIndex(button.dataset.maskIndex === "" ? null : Number(button.dataset.maskIndex));
}
for (const [id, action] of Object.entries({
  undo: actions.undo, redo: actions.redo, reset, clear, fit, "new-lesion": newLesion, "show-keys": showKeys,
  "save-mask": saveMask, "save-overlay": saveOverlay, "save-prompts": savePrompts,
})) get(id).onclick = action;
get("opacity").oninput = () => changeOpacity();
get("show-outline").onchange = get("show-marks").onchange = updateVisibility;
get("notice").querySelector("button").onclick = () => { get("notice").hidden = true; };
get("theme").onclick = () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const current = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const next = current === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("theme", next); } catch { /* not available in some private windows */ }
};

// --- start ------------------------------------------------------------------------------------------

for (const { name, about: properties } of about.nets) {
  get("nets").add(new Option(name));
  if (properties) loaded.set(name, properties);
}
get("nets").onchange = () => {
  chooseNet(get("nets").value);
  if (editor.key) reopen();
};
get("choose-net").hidden = get("purpose").hidden = about.nets.length < 2;
get("no-samples").hidden = about.samples.length > 0;
chooseNet(net);
get("limits").textContent = `up to ${about.limits.megabytes} MB`;
listen(stage, editor);
listenToKeys(stage, actions);
changeOpacity();
draw();
stage.dataset.state = "empty";
