"""Resizing and normalisation of images with operations that every runtime supports, identical to those of the loader.

The loader resizes 8-bit images with torchvision, which uses integer arithmetic on ARM and on x86 CPUs with AVX2: 16-bit
weights, each pass rounded to 8 bits, columns before rows. Here the same sums are matrix products in double precision,
where they are exact. On older CPUs torchvision uses floating point, and pixels may differ by one level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from promise.data.transforms.recipes import normalise

WEIGHT_BITS = 15  # weights are less than 2**WEIGHT_BITS
MAX_SCALE_BITS = 22  # and are scaled by at most 2**MAX_SCALE_BITS


class Pixels(nn.Module):
    """Resize and normalise an image, as :class:`promise.data.transforms.recipes.Transform` without augmentation."""

    def __init__(self, *, side: int, pixels: str) -> None:
        """Set the input side S, and the normalisation as in :func:`promise.data.transforms.recipes.normalise`."""
        super().__init__()
        self.side = side
        self.pixels = pixels

    def forward(self, image: Tensor) -> Tensor:
        """Map (H, W, 3) uint8 RGB to (1, 3, S, S) float32."""
        levels = image.permute(2, 0, 1).double()
        levels = resize_rows(levels, self.side)
        levels = resize_rows(levels.transpose(1, 2), self.side).transpose(1, 2)
        return normalise(levels.to(torch.uint8), self.pixels)[None]


def resize_rows(levels: Tensor, side: int) -> Tensor:
    """Resize the last axis of (3, H, W) float64 to ``side``. Input and output values are whole numbers in 0 … 255."""
    weights, bits = integer_weights(torch.arange(levels.shape[-1], dtype=torch.float64), side)
    sums = levels @ weights.transpose(0, 1)
    return torch.floor(sums / torch.exp2(bits) + 0.5).clamp(0, 255)


def integer_weights(at: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return integer resampling weights from W to ``side`` pixels, and the power of two by which they are scaled.

    Args:
        at: (W,) float64, the positions 0 … W - 1.
        side: number of output pixels.

    Returns:
        Weights (side, W) float64, whole numbers, and number of bits () float64. The weights divided by 2**bits sum to
        about 1 in each row.
    """
    width = at[-1] + 1
    scale = width / side
    radius = scale.clamp(min=1)  # radius of the triangular filter
    centre = scale * (torch.arange(side, dtype=torch.float64)[:, None] + 0.5)
    first = torch.floor(centre - radius + 0.5).clamp(min=0)
    end = torch.minimum(torch.floor(centre + radius + 0.5), width)
    near = (1 - torch.abs((at - centre + 0.5) * (1 / radius))).clamp(min=0)
    near = torch.where((at >= first) & (at < end), near, torch.zeros_like(near))
    fractions = near / near.sum(dim=1, keepdim=True)
    # As many bits as the largest weight allows.
    powers = torch.arange(1, MAX_SCALE_BITS + 1, dtype=torch.float64)
    bits = (torch.floor(fractions.max() * torch.exp2(powers) + 0.5) < 2**WEIGHT_BITS).double().sum()
    return torch.floor(fractions * torch.exp2(bits) + 0.5), bits
