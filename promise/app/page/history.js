// The history of prompts and results.
//
// A step: {lesions: [{points: [{x, y, label}], box: [x0, y0, x1, y1] | null}], maskIndex: 0 | 1 | 2 | null,
// fuse: bool, automatic: bool, clicks: [{x, y, label}], result: … | null}. The mask is the union of the masks of the
// lesions, corrected with the clicks in their order. x and y are pixels
// of the image, (0, 0) is the centre of the first pixel; the label of a point is 1 (inside), 0 (outside) or -1 (padding,
// not shown). maskIndex null is the net's own output. Only the result of a step is ever changed, so that undo restores
// exactly the result that was shown.

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

export const isEmpty = (step) => !step.lesions.length;

// A step with one lesion changed; a lesion without prompts is removed. `change` receives {points, box}.
export function withLesion(step, index, change) {
  const lesions = [...step.lesions];
  lesions[index] = change(lesions[index] ?? { points: [], box: null });
  return { ...step, lesions: lesions.filter(({ points, box }) => points.some((p) => p.label >= 0) || box) };
}

export function isSame(a, b) {
  const flat = (points) => points.map((p) => [p.x, p.y, p.label]);
  const plain = ({ lesions, maskIndex, fuse, clicks }) =>
    JSON.stringify([lesions.map(({ points, box }) => [flat(points), box]), maskIndex, fuse, flat(clicks)]);
  return plain(a) === plain(b);
}
