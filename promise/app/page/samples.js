// The list of the sample images: thumbnails with estimates of the quality, in order of names or worst first.

import * as server from "./server.js";

const POLL = 1000; // ms between two requests for estimates
const get = (id) => document.getElementById(id);

export class SampleList {
  // `open` is called with the number of a sample.
  constructor({ samples }, open) {
    this.open = open;
    this.at = null; // the number of the sample from which steps start; null after other images
    this.polled = null; // what is being polled: {net}, the name of the net whose estimates are shown
    this.found = new Map(); // number of a sample → its estimate
    this.items = samples.map((name, number) => this.#item(name, number));
    this.row = get("thumbnails");
    this.row.replaceChildren(...this.items);
    get("samples").hidden = !samples.length;
    get("worst-first").hidden = get("estimated").hidden = true;
    get("worst-first").onclick = () => {
      get("worst-first").setAttribute("aria-pressed", !this.isWorstFirst);
      this.#sort();
      this.#show();
    };
    this.row.addEventListener("pointerleave", () => this.#sort());
    get("previous").onclick = () => this.step(-1);
    get("next").onclick = () => this.step(1);
    this.mark(null);
  }

  // Show the estimates of a net, if it has any.
  show(net, estimates) {
    if (estimates && net === this.polled?.net) return;
    this.polled = estimates ? { net } : null;
    this.found.clear();
    for (const item of this.items) {
      item.lastChild.textContent = "";
      item.title = item.firstChild.alt;
      delete item.dataset.estimate;
    }
    get("worst-first").hidden = get("estimated").hidden = !estimates;
    this.#sort();
    if (estimates) this.#poll(this.polled);
  }

  get isWorstFirst() {
    return get("worst-first").getAttribute("aria-pressed") === "true";
  }

  // Open the next sample in the present order; returns whether there is a list.
  step(by) {
    const target = this.#neighbour(by);
    if (target) this.open(Number(target.dataset.number));
    return this.items.length > 0;
  }

  #neighbour(by) {
    const order = [...this.row.children];
    if (this.at === null) return by > 0 ? order[0] : null;
    return order[order.indexOf(this.items[this.at]) + by] ?? null;
  }

  // Steps start from sample `number`; `open` is the one that is open, which differs if `number` could not be opened.
  mark(number, open = number) {
    this.at = number;
    this.items.forEach((item, i) => (i === open ? item.setAttribute("aria-current", "true") : item.removeAttribute("aria-current")));
    this.#show();
  }

  // Position and buttons; the marked thumbnail is scrolled into view, without scrolling the page.
  #show() {
    const { row } = this;
    const item = this.items[this.at];
    const place = item ? [...row.children].indexOf(item) + 1 : "–";
    get("position").textContent = `${place} / ${this.items.length}`;
    get("previous").disabled = !this.#neighbour(-1);
    get("next").disabled = !this.#neighbour(1);
    get("estimated").textContent = this.found.size < this.items.length ? `${this.found.size} of ${this.items.length} estimated` : "";
    if (!item) return;
    const [outer, inner] = [row.getBoundingClientRect(), item.getBoundingClientRect()];
    if (inner.left < outer.left || inner.right > outer.right) row.scrollLeft += (inner.left + inner.right - outer.left - outer.right) / 2;
  }

  #item(name, number) {
    const item = document.createElement("button");
    item.title = name;
    item.dataset.number = number;
    item.innerHTML = `<img src="/samples/${number}.jpg" width="76" height="60" loading="lazy" alt=""><span></span>`;
    item.firstChild.alt = name;
    item.onclick = () => this.open(number);
    return item;
  }

  async #poll(polled) {
    try {
      const estimates = await server.estimates(this.found.size, polled.net);
      if (polled !== this.polled) return; // another net is shown
      for (const { number, estimated_iou: iou, estimate } of estimates) {
        this.found.set(number, iou ?? -1); // first where there is no lesion, or none could be computed
        const item = this.items[number];
        item.lastChild.innerHTML = `${iou === null ? "" : `<b>${iou.toFixed(3)}</b> `}${estimate}`;
        item.title = `${item.firstChild.alt}: ${iou === null ? "" : `estimated IoU ${iou.toFixed(3)}, `}${estimate}`;
        item.dataset.estimate = estimate;
      }
    } catch { /* the server is asked again */ }
    if (!this.row.matches(":hover")) this.#sort(); // no thumbnail moves under the pointer
    if (this.found.size < this.items.length) setTimeout(() => this.#poll(polled), POLL);
  }

  // Samples without an estimate come last. The focus and the scroll position are kept.
  #sort() {
    const value = (item) => (this.isWorstFirst ? this.found.get(Number(item.dataset.number)) ?? 2 : 0);
    const order = [...this.items].sort((a, b) => value(a) - value(b));
    if (order.some((item, i) => item !== this.row.children[i])) {
      const [focused, left] = [document.activeElement, this.row.scrollLeft];
      this.row.replaceChildren(...order);
      this.row.scrollLeft = left;
      if (this.row.contains(focused)) focused.focus({ preventScroll: true });
    }
    this.#show();
  }
}
