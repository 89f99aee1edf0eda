"""One prediction against one truth, under three protocols in one pass; knows no models, files or tables.

``reference``: 256 pixels, as the original's script; ``native``: the truth's own size, untouched; ``soft``: the
field's measures on the probability map at the truth's own size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from promise.evaluation.metrics import binary_metrics, soft_metrics
from promise.inference.postprocess import Postprocess, probability_at, reference_target, sigmoid, to_size

PROTOCOLS = ("reference", "native", "soft")
REFERENCE_SIDE = 256
REFERENCE_POSTPROCESS = Postprocess("open", 5)
NATIVE_POSTPROCESS = Postprocess("none")
# Scores that are 0/0 or 0 by construction where the truth is empty.
_OVERLAP = ("dice", "iou", "precision", "recall", "f_beta", "weighted_f", "f_")


@dataclass(frozen=True)
class Scored:
    """Scores of one row and the mask that the native protocol scored."""

    scores: dict[str, dict[str, float]]  # protocol → metric → value
    mask: np.ndarray  # (H, W) bool, the truth's size
    truth_pixels: int  # foreground
    intersection: int  # pixels in mask and truth
    predicted_pixels: int  # in the mask

    @property
    def empty_truth(self) -> bool:
        """Whether the truth has no foreground."""
        return self.truth_pixels == 0


def score(
    logits: np.ndarray,
    target: np.ndarray,
    *,
    postprocess: Postprocess | None = None,
    native: Postprocess | None = None,
    empty_rule: str = "one",
) -> Scored:
    """Score one prediction.

    Args:
        logits: (h, w) float32 of the decoder.
        target: (H, W) bool, the truth at its own size.
        postprocess: of both binary protocols, each at its own size; default: a 5 × 5 opening in the reference
            protocol, none in the native one.
        native: of the native protocol, where it differs.
        empty_rule: what the native and soft protocols say of a truth without foreground; see
            :data:`promise.evaluation.config.EMPTY_RULES`. The reference protocol keeps the original's: IoU 0, and Dice left out where the
            prediction is empty too.
    """
    small = sigmoid(to_size(logits, REFERENCE_SIDE, REFERENCE_SIDE))
    reference = (postprocess or REFERENCE_POSTPROCESS)(small)
    probability = probability_at(logits, *target.shape)
    mask = (native or postprocess or NATIVE_POSTPROCESS)(probability)
    scores = {
        "reference": binary_metrics(reference, reference_target(target, REFERENCE_SIDE)),
        "native": binary_metrics(mask, target),
        "soft": soft_metrics(probability, target),
    }
    truth, predicted = int(np.count_nonzero(target)), int(np.count_nonzero(mask))
    if truth == 0:
        for protocol in ("native", "soft"):
            scores[protocol] = _apply_rule(scores[protocol], empty_rule, predicted=predicted > 0)
    return Scored(scores, mask, truth, int(np.count_nonzero(mask & target)), predicted)


def dice_of_empty(rule: str, *, predicted: bool) -> float:
    """The native Dice where the truth is empty."""
    return {"one": 0.0 if predicted else 1.0, "skip": float("nan"), "zero": 0.0}[rule]


def _apply_rule(values: Mapping[str, float], rule: str, *, predicted: bool) -> dict[str, float]:
    value = dice_of_empty(rule, predicted=predicted)
    return {name: value if name.startswith(_OVERLAP) else given for name, given in values.items()}
