"""Score one prediction against its ground truth under all protocols, in one pass.

``reference``: at 256 pixels, as the script of the reference implementation. ``native``: at the size of the ground
truth, without postprocessing by default. ``soft``: metrics of the probability map at the size of the ground truth.
``prompts``: positions of the prompts at the size of the ground truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from promise.evaluation.metrics import binary_metrics, metrics_in, prompt_metrics, soft_metrics
from promise.inference.postprocess import Postprocess, probability_at, reference_target, sigmoid, to_size
from promise.prompts.sets import ImagePrompts

REFERENCE_SIDE = 256
REFERENCE_POSTPROCESS = Postprocess("open", 5)
NATIVE_POSTPROCESS = Postprocess("none")
_EMPTY_RULE_PROTOCOLS = ("native", "soft")  # the reference protocol has a rule of its own


@dataclass(frozen=True)
class Scored:
    """Scores of one row and the mask that the native protocol scored."""

    scores: dict[str, dict[str, float]]  # protocol → metric → value
    mask: np.ndarray  # (H, W) bool, at the size of the ground truth
    target_pixels: int  # foreground of the ground truth
    intersection: int  # pixels in both mask and ground truth
    predicted_pixels: int  # foreground of the mask

    @property
    def empty_target(self) -> bool:
        """Whether the ground truth has no foreground."""
        return self.target_pixels == 0


def score(
    logits: np.ndarray,
    target: np.ndarray,
    *,
    prompts: ImagePrompts | None = None,
    postprocess: Postprocess | None = None,
    native: Postprocess | None = None,
    empty_rule: str = "one",
) -> Scored:
    """Score one prediction.

    Args:
        logits: (h, w) float32, output of the decoder.
        target: (H, W) bool, the ground truth at its own size.
        prompts: that the prediction was made with; their size is that of the ground truth.
        postprocess: of both binary protocols, each at its own size; default: a 5 × 5 opening in the reference
            protocol, none in the native one.
        native: of the native protocol, where it differs.
        empty_rule: how the native and soft protocols score an empty ground truth; see
            :data:`promise.evaluation.config.EMPTY_RULES`. The reference protocol follows the reference
            implementation: IoU is 0, and Dice is NaN where the prediction is empty too.
    """
    small = sigmoid(to_size(logits, REFERENCE_SIDE, REFERENCE_SIDE))
    reference = (postprocess or REFERENCE_POSTPROCESS)(small)
    probability = probability_at(logits, *target.shape)
    mask = (native or postprocess or NATIVE_POSTPROCESS)(probability)
    scores = {
        "reference": binary_metrics(reference, reference_target(target, REFERENCE_SIDE), protocol="reference"),
        "native": binary_metrics(mask, target),
        "soft": soft_metrics(probability, target),
        "prompts": _score_prompts(prompts, target),
    }
    target_pixels, predicted = int(np.count_nonzero(target)), int(np.count_nonzero(mask))
    if target_pixels == 0:
        for protocol in _EMPTY_RULE_PROTOCOLS:
            value = dice_of_empty(empty_rule, predicted=predicted > 0)
            scores[protocol] = _replace_overlap(scores[protocol], protocol, value)
    return Scored(scores, mask, target_pixels, int(np.count_nonzero(mask & target)), predicted)


def _score_prompts(prompts: ImagePrompts | None, target: np.ndarray) -> dict[str, float]:
    """The metrics of the prompts; all NaN without prompts."""
    if prompts is None:
        return prompt_metrics(np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros((0, 4)), target)
    return prompt_metrics(prompts.placed_xy, prompts.placed_label, prompts.boxes, target)


def native_dice(mask: np.ndarray, target: np.ndarray, empty_rule: str = "one") -> float:
    """The native Dice of a mask, as in :func:`score`, without the other metrics.

    Args:
        mask: (H, W) bool, after postprocessing.
        target: (H, W) bool, the ground truth.
        empty_rule: as in :func:`score`.
    """
    total = int(np.count_nonzero(mask)) + int(np.count_nonzero(target))
    if not target.any():
        return dice_of_empty(empty_rule, predicted=total > 0)
    return 2 * int(np.count_nonzero(mask & target)) / total


def dice_of_empty(rule: str, *, predicted: bool) -> float:
    """The native Dice where the ground truth is empty.

    Args:
        rule: ``one``, ``skip`` or ``zero``; see :data:`promise.evaluation.config.EMPTY_RULES`.
        predicted: whether the prediction has foreground.
    """
    return {"one": 0.0 if predicted else 1.0, "skip": float("nan"), "zero": 0.0}[rule]


def _replace_overlap(scores: Mapping[str, float], protocol: str, value: float) -> dict[str, float]:
    """The scores with ``value`` for every overlap metric."""
    overlap = {name for name, metric in metrics_in(protocol).items() if metric.overlap}
    return {name: value if name in overlap else score for name, score in scores.items()}
