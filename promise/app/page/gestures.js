// What fingers, pen and mouse mean on the stage; knows no server and no history.
//
// One pointer taps, moves a mark, draws a box or shifts the image; two zoom and shift. What it means is told to `desk`:
//   step, view, tool          what is there, and what a click does
//   tap(x, y, negative)       add a point, in image pixels
//   remove(hit), select(hit)  a mark, as findMark tells it
//   live(step), commit()      prompts while a mark is dragged, and when it is let go; cancel() as if it had not been
//   changed()                 the view was zoomed or shifted

import { CORNERS, findMark } from "./marks.js";

const SLACK = { mouse: 4, pen: 6, touch: 10 }; // screen pixels until a press is a drag
const REACH = { mouse: 12, pen: 16, touch: 24 }; // screen pixels around a mark that count as it
const SMALLEST_BOX = 4; // screen pixels

export function listen(stage, desk) {
  const down = new Map(); // pointer → its last place
  let action = null; // of a single pointer
  let space = false;

  const place = (event) => {
    const frame = stage.getBoundingClientRect();
    return [event.clientX - frame.left - stage.clientLeft, event.clientY - frame.top - stage.clientTop];
  };

  stage.addEventListener("pointerdown", (event) => {
    if (!desk.step || event.target.closest(".welcome") || event.button > 2) return;
    event.preventDefault();
    stage.focus({ preventScroll: true });
    stage.setPointerCapture(event.pointerId);
    down.set(event.pointerId, place(event));
    if (down.size === 1) action = begin(desk, event, place(event), space);
    else {
      if (action?.dragging) desk.cancel();
      action = null;
    }
  });

  stage.addEventListener("pointermove", (event) => {
    if (!down.has(event.pointerId)) return hover(stage, desk, event, place(event));
    const [from, to] = [down.get(event.pointerId), place(event)];
    if (down.size === 2) pinch(desk, down, event.pointerId, from, to);
    down.set(event.pointerId, to);
    if (action && down.size === 1) drag(desk, action, from, to);
  });

  const up = (event) => {
    if (!down.delete(event.pointerId) || !action) return;
    if (event.type === "pointercancel") desk.cancel();
    else end(desk, action, place(event));
    action = null;
  };
  stage.addEventListener("pointerup", up);
  stage.addEventListener("pointercancel", up);
  stage.addEventListener("contextmenu", (event) => event.preventDefault());

  stage.addEventListener(
    "wheel",
    (event) => {
      if (!desk.step) return;
      event.preventDefault();
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 30 : 1;
      desk.view.zoomAt(...place(event), Math.exp(-event.deltaY * lines * 0.002));
      desk.changed();
    },
    { passive: false },
  );

  stage.addEventListener("keydown", (event) => {
    if (event.code !== "Space") return;
    event.preventDefault();
    space = true;
  });
  addEventListener("keyup", (event) => { if (event.code === "Space") space = false; });
}

function begin(desk, event, start, space) {
  const kind = event.pointerType in SLACK ? event.pointerType : "mouse";
  const base = { start, slack: SLACK[kind], negative: event.shiftKey || event.button === 2, dragging: false };
  if (event.button === 1 || space) return { ...base, name: "pan" };
  const hit = findMark(desk.step, desk.view, ...start, REACH[kind]);
  const selects = hit && desk.tool !== "remove";
  if (selects) desk.select(hit);
  if (hit) return { ...base, name: selects ? "move" : "remove", hit, step: desk.step };
  return { ...base, name: desk.tool === "box" ? "box" : desk.tool === "remove" ? "pan" : "tap", step: desk.step };
}

function drag(desk, action, from, to) {
  const away = Math.hypot(to[0] - action.start[0], to[1] - action.start[1]);
  if (!action.dragging && away <= action.slack) return;
  action.dragging = true;
  if (action.name === "move") desk.live(moved(desk, action, to));
  else if (action.name === "box") desk.live({ ...action.step, box: boxOf(desk, action.start, to) });
  else {
    desk.view.shift(to[0] - from[0], to[1] - from[1]);
    desk.changed();
  }
}

function end(desk, action, at) {
  if (!action.dragging) {
    if (action.name === "tap") desk.tap(...desk.view.toImage(...at), action.negative);
    else if (action.name === "remove") desk.remove(action.hit);
    else if (action.name === "pan" || action.name === "box") desk.select(null);
  } else if (action.name === "box" && isTiny(action.start, at)) desk.cancel();
  else if (action.name === "box" || action.name === "move") desk.commit();
}

function moved(desk, { step, hit, start }, to) {
  const [dx, dy] = [(to[0] - start[0]) / desk.view.zoom, (to[1] - start[1]) / desk.view.zoom];
  if ("point" in hit) {
    const points = step.points.map((p, i) => (i === hit.point ? desk.clamp({ ...p, x: p.x + dx, y: p.y + dy }) : p));
    return { ...step, points };
  }
  const box = [...step.box];
  for (const i of hit.edge ? [0, 1, 2, 3] : CORNERS[hit.corner]) box[i] += i % 2 ? dy : dx;
  return { ...step, box: hit.edge ? keptInside(desk, box) : sorted(desk, box) };
}

function boxOf(desk, from, to) {
  return sorted(desk, [...desk.view.toImage(...from), ...desk.view.toImage(...to)]);
}

function sorted(desk, [a, b, c, d]) {
  const [one, two] = [desk.clamp({ x: a, y: b }), desk.clamp({ x: c, y: d })];
  return [Math.min(one.x, two.x), Math.min(one.y, two.y), Math.max(one.x, two.x), Math.max(one.y, two.y)];
}

function keptInside(desk, box) {
  const back = [0, 1].map((i) => {
    const most = desk.view.image[i] - 1;
    return box[i] < 0 ? -box[i] : box[i + 2] > most ? Math.max(most - box[i + 2], -box[i]) : 0;
  });
  return box.map((value, i) => value + back[i % 2]);
}

const isTiny = (a, b) => Math.abs(a[0] - b[0]) < SMALLEST_BOX || Math.abs(a[1] - b[1]) < SMALLEST_BOX;

function pinch(desk, down, moving, from, to) {
  const [, other] = [...down].find(([pointer]) => pointer !== moving);
  const span = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]) || 1;
  const middle = [(to[0] + other[0]) / 2, (to[1] + other[1]) / 2];
  desk.view.zoomAt(...middle, span(to) / span(from));
  desk.view.shift((to[0] - from[0]) / 2, (to[1] - from[1]) / 2);
  desk.changed();
}

function hover(stage, desk, event, at) {
  if (!desk.step || event.pointerType === "touch") return;
  const hit = findMark(desk.step, desk.view, ...at, REACH.mouse);
  stage.dataset.over = !hit ? "" : "corner" in hit ? (hit.corner % 2 ? "corner-b" : "corner-a") : "mark";
}
