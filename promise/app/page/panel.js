// The panel beside the image: numbers and buttons. Also draws the mask.

const TINT = 0xff20d0ff; // ABGR; the yellow of predictions in all overlays of this package
const get = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

export function drawNumbers(editor) {
  const { result, step } = editor;
  const estimated = result?.estimated_iou ?? null; // learned; else SAM's own
  get("iou-name").textContent = estimated === null ? "Predicted IoU" : "Estimated IoU";
  get("iou-name").title = estimated === null
    ? "SAM's estimate of the overlap (IoU) of mask and object, without ground truth"
    : "Estimate of the overlap (IoU) of mask and lesion, fitted to the validation images of the net";
  get("iou").textContent = editor.isEmpty ? "–" : format(estimated ?? result?.iou, 3);
  get("iou-words").textContent = result?.estimate ?? (step?.clicks.length ? "no estimate after clicks" : "");
  get("area").textContent = result ? number.format(result.area) : "–";
  get("fraction").textContent = result ? `${(result.fraction * 100).toFixed(2)} %` : "–";
  const lesions = step?.lesions ?? [];
  get("counts").textContent = describe(editor);
  drawLesions(editor, lesions);
  get("time").textContent = result ? ` · ${Math.round(result.roundTrip ?? result.seconds * 1000)} ms` : "";
  const shown = step && (step.maskIndex ?? editor.about.own_mask);
  for (const button of document.querySelectorAll("[data-mask-index]")) {
    const maskIndex = button.dataset.maskIndex === "" ? null : Number(button.dataset.maskIndex);
    const iou = maskIndex !== null ? result?.ious[maskIndex] : shown === null ? result?.iou : undefined;
    button.setAttribute("aria-checked", Boolean(step) && shown === maskIndex);
    button.disabled = editor.isEmpty;
    button.querySelector("small").textContent = editor.isEmpty ? "–" : format(iou, 2);
  }
}

// A mask that was corrected with clicks has no estimate.
const format = (value, digits) => value?.toFixed(digits) ?? "–";

function describe({ step, isEmpty, about }) {
  const clicks = step?.clicks.length ? `, ${count(step.clicks.length, "click")}` : "";
  if (isEmpty) return !step || !about.lesions ? "No prompts" : step.automatic ? `No lesion found${clicks}` : "No lesion";
  const points = step.lesions.flatMap((lesion) => lesion.points);
  const [inside, outside] = [1, 0].map((label) => points.filter((p) => p.label === label).length);
  const boxes = step.lesions.filter(({ box }) => box).length;
  const parts = [
    ...(step.lesions.length > 1 || about.lesions ? [count(step.lesions.length, "lesion")] : []),
    ...(points.length || !boxes ? [`${inside} inside`, `${outside} outside`] : []),
    ...(boxes ? [count(boxes, "box")] : []),
  ];
  const prompts = `${step.automatic ? "Automatic prompts: " : ""}${parts.join(", ")}`;
  return clicks ? `Corrected by ${count(step.clicks.length, "click")}. ${prompts}` : prompts;
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : noun === "box" ? "es" : "s"}`;

// One row per lesion: select it or remove it.
function drawLesions(editor, lesions) {
  const several = editor.about.lesions || lesions.length > 1 || (editor.isNew && lesions.length > 0);
  get("lesions-card").hidden = !editor.step || !several;
  get("no-lesion").hidden = lesions.length > 0;
  get("no-lesion").textContent = editor.step?.automatic ? "No lesion found." : "No lesion.";
  const key = JSON.stringify([editor.active, lesions]);
  if (get("lesions").dataset.drawn === key) return; // keeps the focus
  get("lesions").dataset.drawn = key;
  const rows = lesions.map(({ points, box }, i) => {
    const row = document.createElement("li");
    row.innerHTML = `<button role="radio" class="choose"><b>${i + 1}</b> <span></span></button>
      <button class="remove" aria-label="Remove lesion ${i + 1}" title="Remove lesion ${i + 1}">×</button>`;
    const dots = points.filter((p) => p.label >= 0).length;
    row.querySelector("span").textContent = [...(box ? ["box"] : []), ...(dots ? [count(dots, "point")] : [])].join(", ");
    const [choose, remove] = row.querySelectorAll("button");
    choose.setAttribute("aria-checked", i === editor.active);
    choose.onclick = () => editor.activate(i);
    remove.onclick = () => editor.removeLesion(i);
    return row;
  });
  get("lesions").replaceChildren(...rows);
}

export function drawButtons(editor) {
  const closed = !editor.key;
  get("undo").disabled = closed || !editor.history.canUndo;
  get("redo").disabled = closed || !editor.history.canRedo;
  get("reset").disabled = closed || !editor.about.automatic || (editor.step?.automatic === true && !editor.step.clicks.length);
  get("clear").disabled = closed || editor.isEmpty;
  get("new-lesion").disabled = closed || editor.isEmpty;
  get("new-lesion").setAttribute("aria-pressed", !closed && !editor.isEmpty && editor.isNew);
  get("fit").disabled = closed || editor.view.isFitted;
  for (const id of ["save-mask", "save-overlay", "save-prompts"]) get(id).disabled = !editor.result || !editor.hasMask;
  const save = get("save-prompts");
  const clicked = Boolean(editor.step?.clicks.length); // clicks are not prompts
  if (clicked) save.disabled = true;
  save.title = clicked ? "A mask that was corrected by clicks is not reproduced by prompts" : save.dataset.title;
  for (const button of document.querySelectorAll("[data-tool]")) {
    if (button.tagName === "BUTTON") button.setAttribute("aria-checked", button.dataset.tool === editor.tool);
  }
}

// Draw the mask of a result at the size of the image: foreground in colour, background transparent.
export async function drawMask(canvas, result, [width, height]) {
  const bitmap = result && (await createImageBitmap(pngOf(result), { colorSpaceConversion: "none" }));
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.clearRect(0, 0, width, height);
  if (!bitmap) return;
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, width, height);
  const colours = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < colours.length; i++) colours[i] = colours[i] & 0x80 ? TINT : 0;
  context.putImageData(pixels, 0, 0);
}

function pngOf(result) {
  const bytes = Uint8Array.from(atob(result.mask), (c) => c.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

let timer = 0;

export function notify(message) {
  get("notice").querySelector("p").textContent = message;
  get("notice").hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => { get("notice").hidden = true; }, 12_000);
}
