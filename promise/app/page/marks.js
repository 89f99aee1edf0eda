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

  draw(step, selected, view) {
    const matrix = `matrix(${view.zoom} 0 0 ${view.zoom} ${view.left} ${view.top})`;
    for (const path of [this.halo, this.outline]) path.setAttribute("transform", matrix);
    const shapes = [];
    if (step?.box) shapes.push(...this.#box(step.box, selected === "box", view));
    step?.points.forEach((point, i) => shapes.push(this.#point(point, selected === i, view)));
    this.prompts.replaceChildren(...shapes);
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

// The mark of a step at a position of the stage: {point: i}, {corner: i}, {edge: true} or null.
export function findMark(step, view, x, y, reach) {
  let found = null;
  let nearest = reach;
  step.points.forEach((point, i) => {
    const [left, top] = view.toStage(point.x, point.y);
    const distance = Math.hypot(left - x, top - y);
    if (distance <= nearest) [found, nearest] = [{ point: i }, distance];
  });
  if (found || !step.box) return found;
  CORNERS.forEach(([i, j], corner) => {
    const [left, top] = view.toStage(step.box[i], step.box[j]);
    const distance = Math.hypot(left - x, top - y);
    if (distance <= nearest) [found, nearest] = [{ corner }, distance];
  });
  return found ?? (isOnEdge(step.box, view, x, y, reach / 2) ? { edge: true } : null);
}

function isOnEdge(box, view, x, y, reach) {
  const [x0, y0] = view.toStage(box[0], box[1]);
  const [x1, y1] = view.toStage(box[2], box[3]);
  const within = x > x0 - reach && x < x1 + reach && y > y0 - reach && y < y1 + reach;
  const inside = x > x0 + reach && x < x1 - reach && y > y0 + reach && y < y1 - reach;
  return within && !inside;
}
