// The editor: the open image, its prompts with their history, and the results of the server.
//
// `changed` is called after every change. The page then reads `step`, `result`, `pending` and `selected` and redraws.

import { History, isEmpty, isSame, withLesion } from "./history.js";
import * as server from "./server.js";
import { View } from "./view.js";

export class Editor {
  constructor({ changed, failed }) {
    this.about = {}; // properties of the net of the open image
    this.changed = changed;
    this.failed = failed; // called with an error
    this.view = new View();
    this.tool = "add";
    this.history = new History();
    this.#clearState();
  }

  #clearState() {
    this.key = this.name = this.source = null;
    this.first = this.saved = null; // the step after opening, and the one that was saved last
    this.dragged = null; // the step of an unfinished drag
    this.result = null; // the result on display
    this.selected = null; // {lesion, point}, {lesion, box: true} or null
    this.active = 0; // the lesion to which prompts are added: the last one touched, or a new one if there is no such
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

  // Whether the user has made changes that were not saved.
  get isUnsaved() {
    const { step } = this;
    return Boolean(step && this.first) && step !== this.saved && !isSame(step, this.first);
  }

  // Whether the current prompts have a mask. Without prompts, only nets that find lesions have one: an empty mask.
  get hasMask() {
    return Boolean(this.step) && (this.about.lesions || !isEmpty(this.step));
  }

  // Whether a click corrects the mask instead of adding a point: SAM reads clicks on an automatic mask less well.
  get corrects() {
    return this.about.lesions && this.step.automatic && (this.isEmpty || !this.isNew);
  }

  get isNew() {
    return Boolean(this.step) && this.active >= this.step.lesions.length;
  }

  // --- opening --------------------------------------------------------------------------------------

  // `source` opens the image and resolves to {key, name, size, net}. It is called again if the server has closed the image.
  // If `isWanted` resolves to false, the image is closed again, and the result is null.
  async open(source, isWanted) {
    const opened = await source();
    if (!(await isWanted())) {
      server.close(opened.key);
      return null;
    }
    if (this.key) server.close(this.key);
    this.#clearState();
    Object.assign(this, { key: opened.key, name: opened.name, source });
    this.about = opened.net;
    this.view.image = opened.size;
    this.view.fit();
    const noPrompts = { lesions: [], maskIndex: null, fuse: false, automatic: false, clicks: [], result: null };
    const first = this.about.automatic ? await this.#automatic() : noPrompts;
    if (this.source !== source) return null;
    this.history.begin(first);
    this.first = first;
    this.#show(this.history.current.result);
    return opened;
  }

  async #automatic() {
    const result = await this.#request((key) => server.automatic(key));
    const lesions = result.lesions.map(({ points, labels, box }) => {
      return { points: points.map(([x, y], i) => ({ x, y, label: labels[i] })), box };
    });
    return { lesions, maskIndex: null, fuse: result.fuse, automatic: true, clicks: [], result };
  }

  // Send a request. If the server has closed the image, open it again and repeat the request.
  async #request(send) {
    const { source } = this;
    try {
      return await send(this.key);
    } catch (error) {
      if (error.status !== server.GONE || this.source !== source) throw error;
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
    if (this.corrects) return this.#push({ ...this.step, clicks: [...this.step.clicks, this.clamp({ x, y, label })] }, null, true);
    const lesion = Math.min(this.active, this.step.lesions.length);
    const add = (one) => ({ ...one, points: [...one.points, this.clamp({ x, y, label })] });
    const step = withLesion(this.step, lesion, add);
    this.active = lesion;
    this.#push(step, { lesion, point: step.lesions[lesion].points.length - 1 });
  }

  // The current step with a box of the active lesion.
  withBox(step, box) {
    return withLesion(step, Math.min(this.active, step.lesions.length), (one) => ({ ...one, box }));
  }

  remove(hit) {
    const without = ({ points, box }) =>
      "point" in hit ? { points: points.filter((_, i) => i !== hit.point), box } : { points, box: null };
    const step = withLesion(this.step, hit.lesion, without);
    this.active = Math.max(0, Math.min(hit.lesion, step.lesions.length - 1));
    this.#push(step);
  }

  removeSelected() {
    if (this.selected) this.remove(this.selected);
  }

  removeLesion(index) {
    const last = this.step.lesions.length - 2;
    this.active = Math.max(0, Math.min(this.active - Number(index < this.active), last));
    this.#push({ ...this.step, lesions: this.step.lesions.filter((_, i) => i !== index) });
  }

  // The next point or box starts a lesion of its own.
  startLesion() {
    if (!this.step) return;
    this.active = this.isNew ? Math.max(0, this.step.lesions.length - 1) : this.step.lesions.length;
    this.select(null);
  }

  activate(index) {
    this.active = index;
    this.select(null);
  }

  nudge(dx, dy) {
    if (!this.selected || !("point" in this.selected)) return false;
    const { lesion, point } = this.selected;
    const move = (p) => this.clamp({ ...p, x: p.x + dx, y: p.y + dy });
    const moved = (one) => ({ ...one, points: one.points.map((p, i) => (i === point ? move(p) : p)) });
    this.#push(withLesion(this.step, lesion, moved), this.selected);
    return true;
  }

  setMaskIndex(maskIndex) {
    this.#push({ ...this.step, maskIndex }, this.selected, this.step.automatic);
  }

  clear() {
    this.active = 0;
    this.#push({ ...this.step, lesions: [] });
  }

  select(hit) {
    this.selected = hit && { lesion: hit.lesion, ...("point" in hit ? { point: hit.point } : { box: true }) };
    if (hit) this.active = hit.lesion;
    this.changed();
  }

  // After the last point nothing is selected, so that the focus can leave the image.
  selectNext(by) {
    const all = (this.step?.lesions ?? []).flatMap(({ points }, lesion) =>
      points.flatMap(({ label }, point) => (label < 0 ? [] : [{ lesion, point }])),
    );
    const { selected } = this;
    const at = all.findIndex((one) => one.lesion === selected?.lesion && one.point === selected?.point);
    const next = all[at >= 0 ? at + by : by > 0 ? 0 : all.length - 1] ?? null;
    this.select(next);
    return next !== null;
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
    this.active = 0;
    this.#show(step.result);
  }

  undo() {
    this.#travel(() => this.history.undo());
  }

  redo() {
    this.#travel(() => this.history.redo());
  }

  live(step) {
    this.dragged = { ...step, fuse: false, automatic: false, clicks: [], result: null };
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
    // The map of lesions is added, and clicks are applied, to masks of the net's own prompts only.
    const changed = automatic ? step : { ...step, fuse: false, clicks: [] };
    const pushed = { ...changed, automatic, result: null };
    this.history.push(pushed);
    this.selected = selected;
    this.#predict(pushed);
  }

  #travel(move) {
    move();
    this.selected = null;
    const { current } = this.history;
    if (!current) return;
    this.active = Math.min(this.active, Math.max(0, current.lesions.length - 1));
    if (current.result || !this.hasMask) {
      this.queued = null;
      this.#show(current.result);
    } else this.#predict(current);
  }

  // The result of the current prompts as a file. Changes are saved by a file of the mask or of the prompts.
  async file(kind, more) {
    const { step } = this;
    const content = await this.#request((key) => server.file(key, step, kind, more));
    if (kind !== "overlay") this.saved = step;
    return content;
  }

  // --- results --------------------------------------------------------------------------------------

  // One request runs at a time. Of the steps that arrive meanwhile, only the last is predicted next.
  async #predict(step) {
    this.queued = this.hasMask ? step : null;
    if (!this.hasMask) return this.#show(null);
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
