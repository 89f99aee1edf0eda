// The history of prompts and results.
//
// A step: {points: [{x, y, label}], box: [x0, y0, x1, y1] | null, maskIndex: 0 | 1 | 2, automatic: bool,
// result: … | null}. x and y are pixels of the image, (0, 0) is the centre of the first pixel. Only the result of a step
// is ever changed, so that undo restores exactly the result that was shown.

const MAX_STEPS = 200;

export class History {
  constructor() {
    this.begin(null);
  }

  begin(step) {
    this.steps = step ? [step] : [];
    this.index = this.steps.length - 1;
  }

  get current() {
    return this.steps[this.index] ?? null;
  }

  get canUndo() {
    return this.index > 0;
  }

  get canRedo() {
    return this.index < this.steps.length - 1;
  }

  push(step) {
    this.steps = [...this.steps.slice(0, this.index + 1), step].slice(-MAX_STEPS);
    this.index = this.steps.length - 1;
  }

  undo() {
    this.index -= Number(this.canUndo);
  }

  redo() {
    this.index += Number(this.canRedo);
  }
}

export function isEmpty(step) {
  return !step.points.length && !step.box;
}

export function isSame(a, b) {
  const plain = ({ points, box, maskIndex }) => JSON.stringify([points.map((p) => [p.x, p.y, p.label]), box, maskIndex]);
  return plain(a) === plain(b);
}
