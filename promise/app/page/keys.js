// Keyboard shortcuts. `actions.nudge`, `actions.next` and `actions.step` return whether they had an effect.

const TOOLS = { p: "add", n: "exclude", b: "box", x: "remove" };
const PAGES = { PageUp: -1, PageDown: 1 };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function listenToKeys(stage, actions) {
  addEventListener("keydown", (event) => {
    if (event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.matches("input[type=range]") && (event.key in ARROWS || event.key in PAGES)) return;
    const done = event.ctrlKey || event.metaKey ? withControl(event, actions) : plain(event, stage, actions);
    if (done) event.preventDefault();
  });
  addEventListener("keyup", (event) => {
    if (event.key.toLowerCase() === "h") actions.hide(false);
  });
}

function withControl(event, actions) {
  const key = event.key.toLowerCase();
  if (key === "z") (event.shiftKey ? actions.redo : actions.undo)();
  else if (key === "y") actions.redo();
  else return false;
  return true;
}

function plain(event, stage, actions) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in ARROWS) return actions.nudge(...ARROWS[key].map((d) => d * (event.shiftKey ? 10 : 1)));
  if (key in PAGES) return actions.step(PAGES[key]);
  if (key === "Tab") return event.target === stage && actions.next(event.shiftKey ? -1 : 1);
  if (key in TOOLS) actions.tool(TOOLS[key]);
  else if (/^[123]$/.test(key)) actions.setMaskIndex(Number(key) - 1);
  else if (key in actions.single && !event.repeat) actions.single[key]();
  else if (key in actions.repeated) actions.repeated[key]();
  else return false;
  return true;
}
