"""The losses of prompts: of a map of lesions, and of the positions of points; the loss of a net from its row.

The loss of the positions draws positive points into the lesion and negative points out of it.

The mask loss reaches the points only through SAM's frozen prompt encoder and decoder. This loss acts on the positions
themselves: the signed distance of each point to the border of the ground truth.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from promise.models.registry import NetSpec, PromptLoss
from promise.training.losses import Criterion, Loss, bce_dice
from promise.types import Batch, Prediction

MARGIN = 0.02  # distance from the border at which a point has no loss, as a fraction of the image side


def build_criterion(spec: NetSpec, mask: Loss, *, location_weight: float) -> Criterion:
    """The loss of a net; of one that trains in two stages, the sum of both.

    Args:
        spec: row of the net; a map of lesions that is all it learns has no loss of the mask.
        mask: loss of the mask.
        location_weight: see :func:`with_location_loss`.
    """
    own = spec.prompt_loss or (map_loss if spec.trains_map else None)
    decodes = spec.token_shift or not spec.trains_map
    return Criterion(mask if decodes else None, with_location_loss(own, location_weight))


def map_loss(prediction: Prediction, batch: Batch) -> Tensor:
    """Loss of a map of lesions: binary cross-entropy plus soft Dice against the mask at the resolution of the map.

    Args:
        prediction: with K maps (B, K, h, w), whose mean loss is computed.
        batch: with masks (B, 1, S, S) in [0, 1].
    """
    assert prediction.lesion_logits is not None
    logits = prediction.lesion_logits
    target = F.interpolate(batch.mask, size=logits.shape[-2:], mode="area")
    return torch.stack([bce_dice(one, target) for one in torch.split(logits, 1, dim=1)]).mean()


def with_location_loss(own: PromptLoss | None, weight: float) -> PromptLoss | None:
    """Add ``weight`` times :func:`location_loss` to the loss of a prompter.

    Args:
        own: the loss of the net's row in the table, which keeps its weight of 1; ``None`` if it has none.
        weight: at least 0; for 0, ``own`` is returned unchanged.
    """
    if weight == 0:
        return own

    def loss(prediction: Prediction, batch: Batch) -> Tensor:
        located = weight * location_loss(prediction, batch)
        return located if own is None else own(prediction, batch) + located

    return loss


def location_loss(prediction: Prediction, batch: Batch, *, margin: float = MARGIN) -> Tensor:
    """Hinge loss of the signed distance d of each point to the border of the lesion.

    A positive point contributes ``relu(margin - d)``, a negative point ``relu(margin + d)``. Where the mask has no
    foreground, positive points contribute 0; where it has no background, negative points do. Padding is ignored.

    Args:
        prediction: with points (B, P, 2) in input pixels.
        batch: with masks (B, 1, S, S), foreground above 0.5.
        margin: in units of the image side.

    Returns:
        A scalar in units of the image side: the mean over the points of an image, averaged over images; 0 where all
        points are on their side of the border, at least ``margin`` away.

    Raises:
        ValueError: the prediction has no points.
    """
    points = prediction.points
    if points is None:
        raise ValueError("the location loss needs points, but the prediction has none.")
    xy = points.xy.float()  # in 16 bits, positions would be rounded to whole pixels
    foreground = (batch.mask[:, 0] > 0.5).cpu().numpy()
    distance = torch.from_numpy(np.stack([signed_distance(one) for one in foreground])).to(xy.device)
    some_inside = torch.from_numpy(foreground.any(axis=(1, 2))).to(xy.device)[:, None]
    some_outside = torch.from_numpy(~foreground.all(axis=(1, 2))).to(xy.device)[:, None]
    d = sample_at(distance, xy)
    positive = (points.label == 1) & some_inside
    negative = (points.label == 0) & some_outside
    hinge = F.relu(margin - d) * positive + F.relu(margin + d) * negative
    return (hinge.sum(1) / (points.label >= 0).sum(1).clamp(min=1)).mean()


def signed_distance(foreground: np.ndarray) -> np.ndarray:
    """Distances to the border of a mask, which runs along the edges of its pixels.

    Args:
        foreground: (S, S) bool.

    Returns:
        (S, S) float32 in units of the side S: positive inside, negative outside, with an error of at most 3 %. 1
        everywhere for a mask without background, -1 for one without foreground.
    """
    if foreground.all() or not foreground.any():
        return np.where(foreground, 1.0, -1.0).astype(np.float32)
    mask = foreground.astype(np.uint8)
    # Not DIST_MASK_PRECISE, which takes twice as long: 20 ms per image of 1024 pixels.
    inside, outside = (cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_5) for part in (mask, 1 - mask))
    # Both count from pixel centre to pixel centre; the border is half a pixel closer.
    return np.asarray(np.where(foreground, inside - 0.5, 0.5 - outside) / max(mask.shape), np.float32)


def sample_at(maps: Tensor, xy: Tensor) -> Tensor:
    """Bilinear values (B, P) of maps (B, H, W) at points (B, P, 2) in pixels, differentiable in the points.

    (0, 0) is the centre of the first pixel; points outside the image take the value of the nearest pixel.
    """
    height, width = maps.shape[-2:]
    size = torch.tensor([width, height], dtype=xy.dtype, device=xy.device)
    grid = (2 * xy + 1) / size - 1
    values = F.grid_sample(maps[:, None], grid[:, None], mode="bilinear", padding_mode="border", align_corners=False)
    return values[:, 0, 0]
