// The view: maps pixels of the image to the stage with zoom and pan.

const MAX_ZOOM = 32; // screen pixels per image pixel
const MARGIN = 12; // screen pixels around a fitted image

export class View {
  constructor() {
    this.image = [1, 1];
    this.stage = [1, 1];
    this.fit();
  }

  get fitted() {
    const room = (i) => Math.max(this.stage[i] - 2 * MARGIN, 1) / this.image[i];
    return Math.min(room(0), room(1), MAX_ZOOM);
  }

  get isFitted() {
    return Math.abs(this.zoom / this.fitted - 1) < 1e-6;
  }

  fit() {
    this.zoom = this.fitted;
    this.left = (this.stage[0] - this.image[0] * this.zoom) / 2;
    this.top = (this.stage[1] - this.image[1] * this.zoom) / 2;
  }

  resize(width, height) {
    const wasFitted = this.isFitted;
    const [x, y] = this.toImage(this.stage[0] / 2, this.stage[1] / 2);
    this.stage = [width, height];
    if (wasFitted) this.fit();
    else {
      const [left, top] = this.toStage(x, y);
      this.pan(width / 2 - left, height / 2 - top);
    }
  }

  // (0, 0) is the centre of the first pixel, half a pixel from the image's corner.
  toImage(x, y) {
    return [(x - this.left) / this.zoom - 0.5, (y - this.top) / this.zoom - 0.5];
  }

  toStage(x, y) {
    return [(x + 0.5) * this.zoom + this.left, (y + 0.5) * this.zoom + this.top];
  }

  zoomAt(x, y, factor) {
    const zoom = Math.min(Math.max(this.zoom * factor, this.fitted), Math.max(MAX_ZOOM, this.fitted));
    this.left = x - ((x - this.left) / this.zoom) * zoom;
    this.top = y - ((y - this.top) / this.zoom) * zoom;
    this.zoom = zoom;
    if (this.isFitted) this.fit();
    else this.pan(0, 0);
  }

  // At least a part of the image stays visible.
  pan(dx, dy) {
    const keep = (i, at) => {
      const size = this.image[i] * this.zoom;
      const room = this.stage[i] / 2;
      return Math.min(Math.max(at, room - size), room);
    };
    this.left = keep(0, this.left + dx);
    this.top = keep(1, this.top + dy);
  }
}
