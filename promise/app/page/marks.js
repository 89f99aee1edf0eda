// Outline, points and box above the image, as SVG in pixels of the stage.

const NAMESPACE = "http://www.w3.org/2000/svg";
const RADIUS = matchMedia("(pointer: coarse)").matches ? 9 : 7;
export const CORNERS = [[0, 1], [2, 1], [2, 3], [0, 3]]; // indices of x and y in a box, clockwise

function element(name, attributes) {
  const created = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) created.setAttribute(key, value);
  return created;
}

export class Marks {
  constructor(svg) {
    this.outline = element("path", { class: "outline" });
    this.halo = element("path", { class: "halo" });
    this.prompts = element("g", { class: "prompts" });
    svg.append(this.halo, this.outline, this.prompts);
  }

  setOutlines(outlines) {
    const paths = outlines.map((flat) => {
      let text = "";
      for (let i = 0; i < flat.length; i += 2) text += `${i ? "L" : "M"}${flat[i] + 0.5} ${flat[i + 1] + 0.5}`;
      return `${text}Z`;
    });
    for (const path of [this.halo, this.outline]) path.setAttribute("d", paths.join(""));
  }

  draw(step, selected, active, view) {
    const matrix = `matrix(${view.zoom} 0 0 ${view.zoom} ${view.left} ${view.top})`;
    for (const path of [this.halo, this.outline]) path.setAttribute("transform", matrix);
    const lesions = step?.lesions ?? [];
    const shapes = lesions.map((lesion, i) => {
      const isSelected = (mark) => selected?.lesion === i && selected[mark] !== undefined;
      const group = element("g", { class: `lesion${i === active || lesions.length < 2 ? " active" : ""}` });
      if (lesion.box) group.append(...this.#box(lesion.box, isSelected("box"), view));
      lesion.points.forEach((point, p) => {
        if (point.label >= 0) group.append(this.#point(point, isSelected("point") && selected.point === p, view));
      });
      if (lesions.length > 1) group.append(this.#number(lesion, i + 1, view));
      return group;
    });
    const clicks = element("g", { class: "clicks active" });
    for (const click of step?.clicks ?? []) clicks.append(this.#point(click, false, view));
    this.prompts.replaceChildren(...shapes, clicks);
  }

  // The number of a lesion, above its box or beside its first point.
  #number({ points, box }, number, view) {
    const [x, y] = box ? view.toStage(box[0], box[1]) : view.toStage(points[0].x, points[0].y);
    const [left, top] = box ? [x + 9, y - 8] : [x + RADIUS + 4, y - RADIUS];
    const label = element("text", { class: "number", x: left, y: Math.max(top, 13) });
    label.textContent = number;
    return label;
  }

  #point({ x, y, label }, selected, view) {
    const [left, top] = view.toStage(x, y);
    const kind = label ? "positive" : "negative";
    const group = element("g", {
      class: `point ${kind}${selected ? " selected" : ""}`,
      transform: `translate(${left} ${top})`,
    });
    if (selected) group.append(element("circle", { r: RADIUS + 5, class: "ring" }));
    const arm = RADIUS * 0.5;
    group.append(
      element("circle", { r: RADIUS }),
      element("path", { d: `M${-arm} 0H${arm}${label ? `M0 ${-arm}V${arm}` : ""}` }),
    );
    return group;
  }

  #box(box, selected, view) {
    const [x0, y0] = view.toStage(box[0], box[1]);
    const [x1, y1] = view.toStage(box[2], box[3]);
    const frame = { x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
    const shapes = [element("rect", { ...frame, class: "box under" }), element("rect", { ...frame, class: "box" })];
    if (selected) shapes[1].classList.add("selected");
    for (const [i, j] of CORNERS) {
      const [x, y] = view.toStage(box[i], box[j]);
      shapes.push(element("rect", { x: x - 5, y: y - 5, width: 10, height: 10, rx: 2, class: "corner" }));
    }
    return shapes;
  }
}

// The mark of a step at a position of the stage: {lesion, point}, {lesion, corner}, {lesion, edge: true} or null. The
// active lesion comes first where boxes overlap.
export function findMark(step, active, view, x, y, reach) {
  let found = null;
  let nearest = reach;
  const near = (left, top, hit) => {
    const distance = Math.hypot(left - x, top - y);
    if (distance <= nearest) [found, nearest] = [hit, distance];
  };
  step.lesions.forEach(({ points }, lesion) => {
    points.forEach((p, point) => { if (p.label >= 0) near(...view.toStage(p.x, p.y), { lesion, point }); });
  });
  if (found) return found;
  step.lesions.forEach(({ box }, lesion) => {
    if (box) CORNERS.forEach(([i, j], corner) => near(...view.toStage(box[i], box[j]), { lesion, corner }));
  });
  if (found) return found;
  const boxed = step.lesions.map((_, i) => i).filter((i) => step.lesions[i].box);
  const order = boxed.sort((a, b) => (b === active) - (a === active));
  const lesion = order.find((i) => isOnEdge(step.lesions[i].box, view, x, y, reach / 2));
  return lesion === undefined ? null : { lesion, edge: true };
}

function isOnEdge(box, view, x, y, reach) {
  const [x0, y0] = view.toStage(box[0], box[1]);
  const [x1, y1] = view.toStage(box[2], box[3]);
  const within = x > x0 - reach && x < x1 + reach && y > y0 - reach && y < y1 + reach;
  const inside = x > x0 + reach && x < x1 - reach && y > y0 + reach && y < y1 - reach;
  return within && !inside;
}
