// Which key does what; knows only the actions it is given. `nudge` and `next` say whether there was something to do.

const TOOLS = { p: "add", n: "exclude", b: "box", x: "remove" };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function listenToKeys(stage, act) {
  addEventListener("keydown", (event) => {
    if (event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.matches("input[type=range]") && event.key in ARROWS) return;
    const done = event.ctrlKey || event.metaKey ? withControl(event, act) : plain(event, stage, act);
    if (done) event.preventDefault();
  });
  addEventListener("keyup", (event) => {
    if (event.key.toLowerCase() === "h") act.hide(false);
  });
}

function withControl(event, act) {
  const key = event.key.toLowerCase();
  if (key === "z") (event.shiftKey ? act.redo : act.undo)();
  else if (key === "y") act.redo();
  else return false;
  return true;
}

function plain(event, stage, act) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in ARROWS) return act.nudge(...ARROWS[key].map((d) => d * (event.shiftKey ? 10 : 1)));
  if (key === "Tab") return event.target === stage && act.next(event.shiftKey ? -1 : 1);
  if (key in TOOLS) act.tool(TOOLS[key]);
  else if (/^[123]$/.test(key)) act.choose(Number(key) - 1);
  else if (key in act.single && !event.repeat) act.single[key]();
  else if (key in act.repeated) act.repeated[key]();
  else return false;
  return true;
}
