"""The search for lesions on a map with operations that every runtime supports, equal to that of the net.

Connected components come from label propagation. The number of lesions is fixed; absent ones have score 0. Points are
not placed: they require distance transforms.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from promise.models.prompters.lesions import LesionSettings


def find_boxes(probability: Tensor, settings: LesionSettings) -> tuple[Tensor, Tensor]:
    """Find lesions as :func:`promise.models.prompters.lesions.find_lesions`, best score first.

    Args:
        probability: maps (B, h, w) float32.
        settings: threshold, limits and scores; ``max_lesions`` is K.

    Returns:
        Scores (B, K) float64, and boxes (B, K, 4) float32 x0, y0, x1, y1: first and last columns and rows in pixels of
        the map. Both are 0 for absent lesions.
    """
    batch, height, width = probability.shape
    labels = label_components(probability >= settings.threshold)
    count = math.ceil(height / 2) * math.ceil(width / 2)
    values = probability.double().flatten(1)
    zeros = torch.zeros(batch, count + 1, dtype=torch.float64)
    sums, areas = (
        zeros.scatter_add(1, labels.flatten(1), each)[:, :count]  # without the background
        for each in (values, torch.ones_like(values))
    )
    strong = (sums / (height * width) >= settings.min_score) & (sums / areas.clamp(min=1) >= settings.min_probability)
    left = torch.where(strong, sums / (height * width), 0.0)
    places = torch.arange(count)
    columns, rows = torch.arange(width).float(), torch.arange(height).float()
    scores, boxes = [], []
    for _ in range(settings.max_lesions):  # the first of equal scores wins, which a sort does not guarantee
        best = left.argmax(dim=1, keepdim=True)
        scores.append(left.gather(1, best))
        left = torch.where(places == best, 0.0, left)
        lesion = labels == best[:, :, None]
        across, down = lesion.any(dim=1), lesion.any(dim=2)
        far = math.inf
        edges = (
            torch.where(across, columns, far).amin(dim=1),
            torch.where(down, rows, far).amin(dim=1),
            torch.where(across, columns, -far).amax(dim=1),
            torch.where(down, rows, -far).amax(dim=1),
        )
        boxes.append(torch.stack(edges, dim=1))
    found = torch.cat(scores, dim=1)
    found = torch.where(found >= settings.min_share * found[:, :1], found, 0.0)
    return found, torch.where(found[:, :, None] > 0, torch.stack(boxes, dim=1), 0.0)


def label_components(mask: Tensor) -> Tensor:
    """Label the 8-connected components of masks (B, h, w) bool.

    Returns:
        Labels (B, h, w) int64. The label of a component is the number of its first block of 2 × 2 pixels in reading
        order, so that labels are in the order of those of OpenCV; that of the background is the number of blocks.
    """
    down, across = (math.ceil(side / 2) for side in mask.shape[1:])
    count = down * across
    rows, columns = (torch.arange(side) // 2 for side in mask.shape[1:])
    # Pixels of a block are neighbours: no two components share a block.
    labels = torch.where(mask, rows[:, None] * across + columns, count)
    numbers = torch.arange(count + 1).expand(mask.shape[0], -1)
    jumps = math.ceil(math.log2(count + 1))

    def unfinished(_labels: Tensor, changed: Tensor) -> Tensor:
        return changed > 0

    def merge(labels: Tensor, _changed: Tensor) -> tuple[Tensor, Tensor]:
        """Every label becomes the lowest that it reaches over ever lower neighbours."""
        near = -F.max_pool2d(-labels.float()[:, None], 3, stride=1, padding=1)[:, 0].long()
        near = torch.where(labels < count, near, labels)
        lowest = numbers.scatter_reduce(1, labels.flatten(1), near.flatten(1), "amin")
        for _ in range(jumps):
            lowest = lowest.gather(1, lowest)
        merged = lowest.gather(1, labels.flatten(1)).reshape(labels.shape)
        return merged, (merged != labels).sum()

    state = labels, torch.tensor(1)
    if torch.compiler.is_exporting():
        loop: Any = torch.while_loop
        state = loop(unfinished, merge, state)
    else:
        while unfinished(*state):
            state = merge(*state)
    return state[0]
