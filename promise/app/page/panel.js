// The numbers, buttons and switches beside the image, and the mask's colours; knows no server.

const TINT = 0xff20d0ff; // ABGR of the prediction's yellow, as in all overlays of this package
const get = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

export function drawNumbers(desk) {
  const { answer, step } = desk;
  get("iou").textContent = answer ? answer.iou.toFixed(3) : "–";
  get("area").textContent = answer ? number.format(answer.area) : "–";
  get("share").textContent = answer ? `${(answer.share * 100).toFixed(2)} %` : "–";
  const inside = step?.points.filter((p) => p.label).length ?? 0;
  const outside = (step?.points.length ?? 0) - inside;
  const parts = [`${inside} inside`, `${outside} outside`, ...(step?.box ? ["a box"] : [])];
  const words = `${step?.automatic ? "Automatic prompts: " : ""}${parts.join(", ")}`;
  get("counts").textContent = desk.isEmpty ? "No prompts" : words;
  get("time").textContent = answer ? ` · ${Math.round(answer.roundTrip ?? answer.seconds * 1000)} ms` : "";
  for (const button of document.querySelectorAll("[data-choice]")) {
    const choice = Number(button.dataset.choice);
    button.setAttribute("aria-checked", step?.choice === choice);
    button.disabled = desk.isEmpty;
    button.querySelector("small").textContent = answer ? answer.ious[choice].toFixed(2) : "–";
  }
}

export function drawButtons(desk) {
  const none = !desk.key;
  get("undo").disabled = none || !desk.history.canUndo;
  get("redo").disabled = none || !desk.history.canRedo;
  get("reset").disabled = none || !desk.about.automatic || desk.step?.automatic === true;
  get("clear").disabled = none || desk.isEmpty;
  get("fit").disabled = none || desk.view.isFitted;
  for (const id of ["save-mask", "save-overlay", "save-prompts"]) get(id).disabled = !desk.answer || desk.isEmpty;
  for (const button of document.querySelectorAll("[data-tool]")) {
    if (button.tagName === "BUTTON") button.setAttribute("aria-checked", button.dataset.tool === desk.tool);
  }
}

// The answer's mask in the image's own pixels, coloured where it is foreground and clear elsewhere.
export async function drawMask(canvas, answer, [width, height]) {
  const bitmap = answer && (await createImageBitmap(pngOf(answer), { colorSpaceConversion: "none" }));
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

function pngOf(answer) {
  const bytes = Uint8Array.from(atob(answer.mask), (c) => c.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

let timer = 0;

export function notify(words) {
  get("notice").querySelector("p").textContent = words;
  get("notice").hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => { get("notice").hidden = true; }, 12_000);
}
