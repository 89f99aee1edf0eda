"""An estimate of the IoU of a net's automatic masks: a ridge regression on a few numbers of each prediction.

SAM's own estimate describes the mask of one box, before the map of lesions is added. This estimate is fitted to the
measured IoU of the validation rows and is stored in the checkpoint. It is for nets with a map of lesions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from promise.types import Prediction

Floats = npt.NDArray[np.float64]

FEATURES = ("sam_estimate", "agreement", "crisp_mask", "crisp_map", "crisp_sam", "probability_inside", "log_area")
LEAST_ROWS = 20  # rows with a lesion; with fewer, nothing is fitted
RIDGE = 10.0  # penalty of the squared weights of standardised features; flat from 5 to 50 in cross-validation
LEAST_AREA = 1e-4  # of the logarithm, as a fraction of the image
USABLE = 0.7  # masks with a lower estimated IoU should be inspected
LEVELS = ((0.85, "likely good"), (USABLE, "usable"), (-math.inf, "check this"))  # estimated IoU from → words


@dataclass(frozen=True)
class QualityEstimate:
    """The estimated IoU is ``intercept + Σ weights · features``, limited to [0, 1].

    Attributes:
        weights: of the features; see :func:`quality_features`.
        intercept: the estimate where all features are 0.
        rows: number of validation rows that it was fitted on.
        correlation: Pearson's, of leave-one-out estimates and measured IoU; NaN where one of them is constant.
        error: mean absolute error of the leave-one-out estimates.
    """

    weights: Mapping[str, float]
    intercept: float
    rows: int
    correlation: float
    error: float

    def __call__(self, prediction: Prediction) -> Tensor:
        """Estimated IoUs (B,) of automatic masks; NaN for an image without a lesion, which has no mask to judge."""
        features = quality_features(prediction)
        weights = features.new_tensor([self.weights[name] for name in FEATURES])
        estimate = (features @ weights + self.intercept).clamp(0, 1)
        return torch.where(has_lesion(prediction), estimate, torch.nan)


@torch.no_grad()
def quality_features(prediction: Prediction) -> Tensor:
    """The features (B, F) of automatic predictions, in the order of :data:`FEATURES`.

    ``sam_estimate``: SAM's estimate. ``agreement``: soft IoU Σ min / Σ max of the map and SAM's mask. ``crisp_mask``,
    ``crisp_map``, ``crisp_sam``: soft IoU of the probabilities of the final mask, the map and SAM's mask with their own
    thresholding; 1 where all probabilities are 0 or 1. ``probability_inside``: mean probability inside the final mask.
    ``log_area``: logarithm of its area as a fraction of the image.
    """
    assert prediction.sam_logits is not None
    assert prediction.lesion_logits is not None
    size = prediction.mask_logits.shape[-2:]
    maps = F.interpolate(prediction.lesion_logits.float(), size=size, mode="bilinear", align_corners=False)
    final, lesion, sam = (
        torch.sigmoid(x.float()).flatten(1) for x in (prediction.mask_logits, maps, prediction.sam_logits)
    )
    inside = (final >= 0.5).float()
    area = inside.mean(1)
    features = {
        "sam_estimate": prediction.iou[:, 0].float(),
        "agreement": _soft_iou(lesion, sam),
        "crisp_mask": _soft_iou(final, inside),
        "crisp_map": _soft_iou(lesion, (lesion >= 0.5).float()),
        "crisp_sam": _soft_iou(sam, (sam >= 0.5).float()),
        "probability_inside": (final * inside).sum(1) / inside.sum(1).clamp(min=1),
        "log_area": area.clamp(min=LEAST_AREA).log(),
    }
    return torch.stack([features[name] for name in FEATURES], dim=1)


def _soft_iou(a: Tensor, b: Tensor) -> Tensor:
    return torch.minimum(a, b).sum(1) / torch.maximum(a, b).sum(1).clamp(min=1e-6)


def has_lesion(prediction: Prediction) -> Tensor:
    """Whether each image (B,) has a prompt set."""
    count = prediction.mask_logits.shape[0]
    owner = prediction.prompts.image
    if owner is None:
        return torch.ones(count, dtype=torch.bool, device=prediction.mask_logits.device)
    return torch.bincount(owner, minlength=count) > 0


def fit_quality(features: Floats, iou: Floats) -> QualityEstimate | None:
    """Fit the estimate; ``None`` for fewer than :data:`LEAST_ROWS` rows.

    Args:
        features: (R, F) of predictions with a lesion.
        iou: (R,) measured.
    """
    if len(iou) < LEAST_ROWS:
        return None
    center, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-9, scale, np.inf)  # a constant feature has no weight
    z = (features - center) / scale
    inverse = np.linalg.inv(z.T @ z + RIDGE * np.eye(z.shape[1]))
    standard = inverse @ z.T @ (iou - iou.mean())
    # Leave-one-out residuals of a linear fit: residual / (1 - leverage).
    leverage = 1 / len(iou) + np.einsum("ij,jk,ik->i", z, inverse, z)
    left_out = np.clip(iou - (iou - iou.mean() - z @ standard) / (1 - leverage), 0, 1)
    varies = np.ptp(left_out) > 0 and np.ptp(iou) > 0
    weights = standard / scale
    return QualityEstimate(
        weights=dict(zip(FEATURES, weights.tolist(), strict=True)),
        intercept=float(iou.mean() - center @ weights),
        rows=len(iou),
        correlation=float(np.corrcoef(left_out, iou)[0, 1]) if varies else math.nan,
        error=float(np.abs(left_out - iou).mean()),
    )


def describe_quality(estimate: float) -> str:
    """An estimated IoU in words."""
    return next(words for least, words in LEVELS if estimate >= least)
