// The editor: the open image, its prompts with their history, and the results of the server.
//
// `changed` is called after every change. The page then reads `step`, `result`, `pending` and `selected` and redraws.

import { History, isEmpty, isSame } from "./history.js";
import * as server from "./server.js";
import { View } from "./view.js";

export class Editor {
  constructor({ about, changed, failed }) {
    this.about = about;
    this.changed = changed;
    this.failed = failed; // called with an error
    this.view = new View();
    this.tool = "add";
    this.history = new History();
    this.#clearState();
  }

  #clearState() {
    this.key = this.name = this.source = null;
    this.dragged = null; // the step of an unfinished drag
    this.result = null; // the result on display
    this.selected = null; // the index of a point, "box" or null
    this.queued = this.running = null; // the next step to predict, and the one being predicted
    this.resetting = false; // whether the automatic prompts are being requested
    this.history.begin(null);
  }

  get step() {
    return this.dragged ?? this.history.current;
  }

  get pending() {
    return Boolean(this.resetting || this.running || this.queued);
  }

  get isEmpty() {
    return !this.step || isEmpty(this.step);
  }

  // --- opening --------------------------------------------------------------------------------------

  // `source` opens the image and resolves to {key, name, size}. It is called again if the server has closed the image.
  async open(source) {
    const opened = await source();
    if (this.key) server.close(this.key);
    this.#clearState();
    Object.assign(this, { key: opened.key, name: opened.name, source });
    this.view.image = opened.size;
    this.view.fit();
    const noPrompts = { points: [], box: null, maskIndex: 0, automatic: false, result: null };
    this.history.begin(this.about.automatic ? await this.#automatic() : noPrompts);
    this.#show(this.history.current.result);
    return opened;
  }

  async #automatic() {
    const result = await this.#request((key) => server.automatic(key));
    const points = result.points.map(([x, y], i) => ({ x, y, label: result.labels[i] }));
    return { points, box: result.box, maskIndex: result.mask_index, automatic: true, result };
  }

  // Send a request. If the server has closed the image, open it again and repeat the request.
  async #request(send) {
    try {
      return await send(this.key);
    } catch (error) {
      if (error.status !== server.GONE) throw error;
      this.key = (await this.source()).key;
      return send(this.key);
    }
  }

  close() {
    if (this.key) server.close(this.key);
  }

  // --- prompts --------------------------------------------------------------------------------------

  tap(x, y, negative) {
    if (!this.#isInside(x, y)) return this.select(null);
    const label = Number(!negative && this.tool !== "exclude");
    const points = [...this.step.points, this.clamp({ x, y, label })];
    this.#push({ ...this.step, points }, points.length - 1);
  }

  remove(hit) {
    if ("point" in hit) this.#push({ ...this.step, points: this.step.points.filter((_, i) => i !== hit.point) });
    else this.#push({ ...this.step, box: null });
  }

  removeSelected() {
    if (this.selected !== null) this.remove(this.selected === "box" ? {} : { point: this.selected });
  }

  nudge(dx, dy) {
    if (typeof this.selected !== "number") return false;
    const move = (p) => this.clamp({ ...p, x: p.x + dx, y: p.y + dy });
    const points = this.step.points.map((p, i) => (i === this.selected ? move(p) : p));
    this.#push({ ...this.step, points }, this.selected);
    return true;
  }

  setMaskIndex(maskIndex) {
    this.#push({ ...this.step, maskIndex }, this.selected, this.step.automatic);
  }

  clear() {
    this.#push({ ...this.step, points: [], box: null });
  }

  select(hit) {
    this.selected = !hit ? null : "point" in hit ? hit.point : "box";
    this.changed();
  }

  // After the last point nothing is selected, so that the focus can leave the image.
  selectNext(by) {
    const count = this.step?.points.length ?? 0;
    const next = typeof this.selected === "number" ? this.selected + by : by > 0 ? 0 : count - 1;
    const exists = next >= 0 && next < count;
    this.select(exists ? { point: next } : null);
    return exists;
  }

  async reset() {
    if (!this.about.automatic) return this.clear();
    const { source } = this;
    this.resetting = true;
    this.changed();
    let step;
    try {
      step = await this.#automatic();
    } finally {
      if (this.source === source) this.resetting = false;
    }
    if (this.source !== source) return; // another image has been opened
    this.dragged = this.queued = null;
    if (!isSame(step, this.history.current)) this.history.push(step);
    this.selected = null;
    this.#show(step.result);
  }

  undo() {
    this.#travel(() => this.history.undo());
  }

  redo() {
    this.#travel(() => this.history.redo());
  }

  live(step) {
    this.dragged = { ...step, automatic: false, result: null };
    this.#predict(this.dragged);
  }

  commit() {
    const step = this.dragged;
    this.dragged = null;
    if (step) this.#push(step, this.selected);
  }

  cancel() {
    this.dragged = null;
    this.#travel(() => {});
  }

  clamp(point) {
    const [width, height] = this.view.image;
    return { ...point, x: Math.min(Math.max(point.x, 0), width - 1), y: Math.min(Math.max(point.y, 0), height - 1) };
  }

  #isInside(x, y) {
    const [width, height] = this.view.image;
    return x >= -0.5 && y >= -0.5 && x < width - 0.5 && y < height - 0.5;
  }

  #push(step, selected = null, automatic = false) {
    if (isSame(step, this.history.current)) return this.cancel();
    const pushed = { ...step, automatic, result: null };
    this.history.push(pushed);
    this.selected = selected;
    this.#predict(pushed);
  }

  #travel(move) {
    move();
    this.selected = null;
    const { current } = this.history;
    if (!current) return;
    if (current.result || isEmpty(current)) {
      this.queued = null;
      this.#show(current.result);
    } else this.#predict(current);
  }

  // The result of the current prompts as a file.
  file(kind, more) {
    const { step } = this;
    return this.#request((key) => server.file(key, step, kind, more));
  }

  // --- results --------------------------------------------------------------------------------------

  // One request runs at a time. Of the steps that arrive meanwhile, only the last is predicted next.
  async #predict(step) {
    this.queued = isEmpty(step) ? null : step;
    if (isEmpty(step)) return this.#show(null);
    this.changed();
    if (this.running) return;
    while (this.queued) {
      const sent = (this.running = this.queued);
      const { source } = this;
      this.queued = null;
      try {
        const started = performance.now();
        sent.result = await this.#request((key) => server.predict(key, sent));
        sent.result.roundTrip = performance.now() - started;
      } catch (error) {
        if (sent === this.step) this.failed(error);
      }
      if (this.source !== source) return; // another image has been opened
      this.running = null;
      if (sent === this.step || (this.dragged && sent.result)) this.#show(sent.result);
    }
    this.changed();
  }

  #show(result) {
    this.result = result;
    this.changed();
  }
}
