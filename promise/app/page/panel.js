// The panel beside the image: numbers and buttons. Also draws the mask.

const TINT = 0xff20d0ff; // ABGR; the yellow of predictions in all overlays of this package
const get = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

export function drawNumbers(editor) {
  const { result, step } = editor;
  get("iou").textContent = result ? result.iou.toFixed(3) : "–";
  get("area").textContent = result ? number.format(result.area) : "–";
  get("fraction").textContent = result ? `${(result.fraction * 100).toFixed(2)} %` : "–";
  const inside = step?.points.filter((p) => p.label).length ?? 0;
  const outside = (step?.points.length ?? 0) - inside;
  const parts = [`${inside} inside`, `${outside} outside`, ...(step?.box ? ["1 box"] : [])];
  const counts = `${step?.automatic ? "Automatic prompts: " : ""}${parts.join(", ")}`;
  get("counts").textContent = editor.isEmpty ? "No prompts" : counts;
  get("time").textContent = result ? ` · ${Math.round(result.roundTrip ?? result.seconds * 1000)} ms` : "";
  for (const button of document.querySelectorAll("[data-mask-index]")) {
    const maskIndex = Number(button.dataset.maskIndex);
    button.setAttribute("aria-checked", step?.maskIndex === maskIndex);
    button.disabled = editor.isEmpty;
    button.querySelector("small").textContent = result ? result.ious[maskIndex].toFixed(2) : "–";
  }
}

export function drawButtons(editor) {
  const closed = !editor.key;
  get("undo").disabled = closed || !editor.history.canUndo;
  get("redo").disabled = closed || !editor.history.canRedo;
  get("reset").disabled = closed || !editor.about.automatic || editor.step?.automatic === true;
  get("clear").disabled = closed || editor.isEmpty;
  get("fit").disabled = closed || editor.view.isFitted;
  for (const id of ["save-mask", "save-overlay", "save-prompts"]) get(id).disabled = !editor.result || editor.isEmpty;
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
