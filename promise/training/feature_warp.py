"""Random warps of features together with their masks, to train a map of lesions on.

Features of the frozen encoder are rotated, scaled and shifted at random. Like mirrored features, they approximate those
of the warped image.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from promise.models.prompters.dense import warp_maps
from promise.types import Batch, Encoded

LOG_SCALE = 0.4  # the scale is between exp(-LOG_SCALE) and exp(LOG_SCALE)
SHIFT = 0.15  # largest shift, as a fraction of the side


def warp_batch(batch: Batch) -> Batch:
    """Warp the masks of a batch of features, and let the prompter warp the features in the same way."""
    assert isinstance(batch.image, Encoded)
    warp = random_warps(len(batch))
    return replace(batch, image=replace(batch.image, warp=warp), mask=warp_maps(batch.mask, warp))


def random_warps(count: int) -> Tensor:
    """Random rotations by any angle, scales and shifts (count, 2, 3); see :func:`warp_maps`."""
    angle, scale = math.pi * _uniform(count), torch.exp(LOG_SCALE * _uniform(count))
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    rotation = torch.stack((torch.stack((cos, -sin), dim=-1), torch.stack((sin, cos), dim=-1)), dim=-2)
    return torch.cat((rotation, 2 * SHIFT * _uniform(count, 2, 1)), dim=-1)  # coordinates span 2


def _uniform(*shape: int) -> Tensor:
    return 2 * torch.rand(*shape) - 1
