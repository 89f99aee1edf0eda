// What was asked and what was answered, step by step; knows no page and no server.
//
// A step: {points: [{x, y, label}], box: [x0, y0, x1, y1] | null, choice: 0 | 1 | 2, automatic: bool, answer: … | null}.
// x and y are pixels of the image, (0, 0) the centre of the first. A step is never changed but for its answer, so that
// undoing brings back the very answer that was there.

const MOST_STEPS = 200;

export class History {
  constructor() {
    this.begin(null);
  }

  begin(step) {
    this.steps = step ? [step] : [];
    this.at = this.steps.length - 1;
  }

  get now() {
    return this.steps[this.at] ?? null;
  }

  get canUndo() {
    return this.at > 0;
  }

  get canRedo() {
    return this.at < this.steps.length - 1;
  }

  push(step) {
    this.steps = [...this.steps.slice(0, this.at + 1), step].slice(-MOST_STEPS);
    this.at = this.steps.length - 1;
  }

  undo() {
    this.at -= Number(this.canUndo);
  }

  redo() {
    this.at += Number(this.canRedo);
  }
}

export function isEmpty(step) {
  return !step.points.length && !step.box;
}

export function isSame(a, b) {
  const plain = ({ points, box, choice }) => JSON.stringify([points.map((p) => [p.x, p.y, p.label]), box, choice]);
  return plain(a) === plain(b);
}
