// Gestures of touch, pen and mouse on the stage.
//
// One pointer adds a point, moves a mark, draws a box or pans the image; two pointers zoom and pan. The `editor` provides:
//   step, view, tool          the current prompts, the view, and the tool of a click
//   tap(x, y, negative)       add a point, in pixels of the image
//   remove(hit), select(hit)  remove or select a mark that findMark returned
//   withBox(step, box)        the step with the box of the active lesion
//   live(step), commit()      update the prompts during a drag, and at its end; cancel() discards the drag
//   changed()                 the view has changed

import { withLesion } from "./history.js";
import { CORNERS, findMark } from "./marks.js";

const SLACK = { mouse: 4, pen: 6, touch: 10 }; // screen pixels; a longer movement is a drag
const REACH = { mouse: 12, pen: 16, touch: 24 }; // screen pixels; radius in which a mark is hit
const SMALLEST_BOX = 4; // screen pixels

export function listen(stage, editor) {
  const down = new Map(); // pointer → last position
  let action = null; // the gesture of a single pointer
  let space = false;

  const position = (event) => {
    const frame = stage.getBoundingClientRect();
    return [event.clientX - frame.left - stage.clientLeft, event.clientY - frame.top - stage.clientTop];
  };

  stage.addEventListener("pointerdown", (event) => {
    if (!editor.step || event.target.closest(".welcome") || event.button > 2) return;
    event.preventDefault();
    stage.focus({ preventScroll: true });
    stage.setPointerCapture(event.pointerId);
    down.set(event.pointerId, position(event));
    if (down.size === 1) action = begin(editor, event, position(event), space);
    else {
      if (action?.dragging) editor.cancel();
      action = null;
    }
  });

  stage.addEventListener("pointermove", (event) => {
    if (!down.has(event.pointerId)) return hover(stage, editor, event, position(event));
    const [from, to] = [down.get(event.pointerId), position(event)];
    if (down.size === 2) pinch(editor, down, event.pointerId, from, to);
    down.set(event.pointerId, to);
    if (action && down.size === 1) drag(editor, action, from, to);
  });

  const up = (event) => {
    if (!down.delete(event.pointerId) || !action) return;
    if (event.type === "pointercancel") editor.cancel();
    else end(editor, action, position(event));
    action = null;
  };
  stage.addEventListener("pointerup", up);
  stage.addEventListener("pointercancel", up);
  stage.addEventListener("contextmenu", (event) => event.preventDefault());

  stage.addEventListener(
    "wheel",
    (event) => {
      if (!editor.step) return;
      event.preventDefault();
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 30 : 1;
      editor.view.zoomAt(...position(event), Math.exp(-event.deltaY * lines * 0.002));
      editor.changed();
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

function begin(editor, event, start, space) {
  const kind = event.pointerType in SLACK ? event.pointerType : "mouse";
  const base = { start, slack: SLACK[kind], negative: event.shiftKey || event.button === 2, dragging: false };
  if (event.button === 1 || space) return { ...base, name: "pan" };
  const hit = findMark(editor.step, editor.active, editor.view, ...start, REACH[kind]);
  const selects = hit && editor.tool !== "remove";
  if (selects) editor.select(hit);
  if (hit) return { ...base, name: selects ? "move" : "remove", hit, step: editor.step };
  return { ...base, name: editor.tool === "box" ? "box" : editor.tool === "remove" ? "pan" : "tap", step: editor.step };
}

function drag(editor, action, from, to) {
  const distance = Math.hypot(to[0] - action.start[0], to[1] - action.start[1]);
  if (!action.dragging && distance <= action.slack) return;
  action.dragging = true;
  if (action.name === "move") editor.live(moved(editor, action, to));
  else if (action.name === "box") editor.live(editor.withBox(action.step, boxOf(editor, action.start, to)));
  else {
    editor.view.pan(to[0] - from[0], to[1] - from[1]);
    editor.changed();
  }
}

function end(editor, action, at) {
  if (!action.dragging) {
    if (action.name === "tap") editor.tap(...editor.view.toImage(...at), action.negative);
    else if (action.name === "remove") editor.remove(action.hit);
    else if (action.name === "pan" || action.name === "box") editor.select(null);
  } else if (action.name === "box" && isTiny(action.start, at)) editor.cancel();
  else if (action.name === "box" || action.name === "move") editor.commit();
}

function moved(editor, { step, hit, start }, to) {
  const [dx, dy] = [(to[0] - start[0]) / editor.view.zoom, (to[1] - start[1]) / editor.view.zoom];
  const move = (p) => editor.clamp({ ...p, x: p.x + dx, y: p.y + dy });
  return withLesion(step, hit.lesion, (one) => {
    if ("point" in hit) return { ...one, points: one.points.map((p, i) => (i === hit.point ? move(p) : p)) };
    const box = [...one.box];
    for (const i of hit.edge ? [0, 1, 2, 3] : CORNERS[hit.corner]) box[i] += i % 2 ? dy : dx;
    return { ...one, box: hit.edge ? moveInside(editor, box) : sorted(editor, box) };
  });
}

function boxOf(editor, from, to) {
  return sorted(editor, [...editor.view.toImage(...from), ...editor.view.toImage(...to)]);
}

function sorted(editor, [a, b, c, d]) {
  const [one, two] = [editor.clamp({ x: a, y: b }), editor.clamp({ x: c, y: d })];
  return [Math.min(one.x, two.x), Math.min(one.y, two.y), Math.max(one.x, two.x), Math.max(one.y, two.y)];
}

function moveInside(editor, box) {
  const shift = [0, 1].map((i) => {
    const last = editor.view.image[i] - 1;
    return box[i] < 0 ? -box[i] : box[i + 2] > last ? Math.max(last - box[i + 2], -box[i]) : 0;
  });
  return box.map((value, i) => value + shift[i % 2]);
}

const isTiny = (a, b) => Math.abs(a[0] - b[0]) < SMALLEST_BOX || Math.abs(a[1] - b[1]) < SMALLEST_BOX;

function pinch(editor, down, moving, from, to) {
  const [, other] = [...down].find(([pointer]) => pointer !== moving);
  const span = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]) || 1;
  const middle = [(to[0] + other[0]) / 2, (to[1] + other[1]) / 2];
  editor.view.zoomAt(...middle, span(to) / span(from));
  editor.view.pan((to[0] - from[0]) / 2, (to[1] - from[1]) / 2);
  editor.changed();
}

function hover(stage, editor, event, at) {
  if (!editor.step || event.pointerType === "touch") return;
  const hit = findMark(editor.step, editor.active, editor.view, ...at, REACH.mouse);
  stage.dataset.over = !hit ? "" : "corner" in hit ? (hit.corner % 2 ? "corner-b" : "corner-a") : "mark";
}
