// The open image: its prompts, their history and what the server says of them; knows no buttons and no gestures.
//
// `changed` is called after every change; the page reads `step`, `answer`, `pending` and `selected` and draws itself.

import { History, isEmpty, isSame } from "./history.js";
import * as server from "./server.js";
import { View } from "./view.js";

export class Desk {
  constructor({ about, changed, failed }) {
    this.about = about;
    this.changed = changed;
    this.failed = failed; // told an error
    this.view = new View();
    this.tool = "add";
    this.history = new History();
    this.#forget();
  }

  #forget() {
    this.key = this.name = this.source = null;
    this.dragged = null; // the step that a drag would make
    this.answer = null; // the one that is shown
    this.selected = null; // a point's number, "box" or null
    this.wanted = this.asking = null; // the step to ask next, and the one that is being asked
    this.resetting = false; // the net's own prompts are being asked for
    this.history.begin(null);
  }

  get step() {
    return this.dragged ?? this.history.now;
  }

  get pending() {
    return Boolean(this.resetting || this.asking || this.wanted);
  }

  get isEmpty() {
    return !this.step || isEmpty(this.step);
  }

  // --- an image -------------------------------------------------------------------------------------

  // `source` opens the image: it gives {key, name, size}, and may be asked again when the server has dropped it.
  async open(source) {
    const opened = await source();
    if (this.key) server.close(this.key);
    this.#forget();
    Object.assign(this, { key: opened.key, name: opened.name, source });
    this.view.image = opened.size;
    this.view.fit();
    const nothing = { points: [], box: null, choice: 0, automatic: false, answer: null };
    this.history.begin(this.about.automatic ? await this.#automatic() : nothing);
    this.#show(this.history.now.answer);
    return opened;
  }

  async #automatic() {
    const answer = await this.#again((key) => server.automatic(key));
    const points = answer.points.map(([x, y], i) => ({ x, y, label: answer.labels[i] }));
    return { points, box: answer.box, choice: answer.choice, automatic: true, answer };
  }

  // Ask; where the server has dropped the image, open it once more and ask again.
  async #again(ask) {
    try {
      return await ask(this.key);
    } catch (error) {
      if (error.status !== server.GONE) throw error;
      this.key = (await this.source()).key;
      return ask(this.key);
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

  choose(choice) {
    this.#push({ ...this.step, choice }, this.selected, this.step.automatic);
  }

  clear() {
    this.#push({ ...this.step, points: [], box: null });
  }

  select(hit) {
    this.selected = !hit ? null : "point" in hit ? hit.point : "box";
    this.changed();
  }

  // Behind the last point there is none, so that the focus can go on.
  selectNext(by) {
    const count = this.step?.points.length ?? 0;
    const next = typeof this.selected === "number" ? this.selected + by : by > 0 ? 0 : count - 1;
    const found = next >= 0 && next < count;
    this.select(found ? { point: next } : null);
    return found;
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
    if (this.source !== source) return; // another image was opened meanwhile
    this.dragged = this.wanted = null;
    if (!isSame(step, this.history.now)) this.history.push(step);
    this.selected = null;
    this.#show(step.answer);
  }

  undo() {
    this.#travel(() => this.history.undo());
  }

  redo() {
    this.#travel(() => this.history.redo());
  }

  live(step) {
    this.dragged = { ...step, automatic: false, answer: null };
    this.#ask(this.dragged);
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
    if (isSame(step, this.history.now)) return this.cancel();
    const pushed = { ...step, automatic, answer: null };
    this.history.push(pushed);
    this.selected = selected;
    this.#ask(pushed);
  }

  #travel(move) {
    move();
    this.selected = null;
    const now = this.history.now;
    if (!now) return;
    if (now.answer || isEmpty(now)) {
      this.wanted = null;
      this.#show(now.answer);
    } else this.#ask(now);
  }

  // What the present prompts give, as a file.
  file(kind, more) {
    const { step } = this;
    return this.#again((key) => server.file(key, step, kind, more));
  }

  // --- answers --------------------------------------------------------------------------------------

  // One question at a time; of those that come meanwhile the last is asked next.
  async #ask(step) {
    this.wanted = isEmpty(step) ? null : step;
    if (isEmpty(step)) return this.#show(null);
    this.changed();
    if (this.asking) return;
    while (this.wanted) {
      const asked = (this.asking = this.wanted);
      const { source } = this;
      this.wanted = null;
      try {
        const started = performance.now();
        asked.answer = await this.#again((current) => server.predict(current, asked));
        asked.answer.roundTrip = performance.now() - started;
      } catch (error) {
        if (asked === this.step) this.failed(error);
      }
      if (this.source !== source) return; // another image was opened meanwhile
      this.asking = null;
      if (asked === this.step || (this.dragged && asked.answer)) this.#show(asked.answer);
    }
    this.changed();
  }

  #show(answer) {
    this.answer = answer;
    this.changed();
  }
}
