"""A picture of any size → a net's pixels, bit for bit as the loader makes them, in arithmetic that any runtime has.

The loader resizes 8-bit pictures by torchvision, which on an x86 CPU with AVX2 and on ARM sums in integers: weights
of 16 bits, each pass rounded to 8 bits, columns before rows. The same sums stand here as products of matrices in
double precision, where they are exact. (On an older CPU torchvision sums in floats, and pixels may differ by one
level.) Knows no net.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from promise.data.transforms.recipes import normalise

WEIGHT_BITS = 15  # a weight stays below 2 to this power
MOST_BITS = 22  # and is never scaled by more than 2 to this one


class Pixels(nn.Module):
    """Resize and normalise, as :class:`promise.data.transforms.Transform` without augmentation."""

    def __init__(self, *, side: int, pixels: str) -> None:
        """Fix the side S of the net's input and the normalisation, as in :func:`promise.data.transforms.normalise`."""
        super().__init__()
        self.side = side
        self.pixels = pixels

    def forward(self, picture: Tensor) -> Tensor:
        """Map (H, W, 3) uint8 RGB to (1, 3, S, S) float32."""
        levels = picture.permute(2, 0, 1).double()
        levels = shrink_rows(levels, self.side)
        levels = shrink_rows(levels.transpose(1, 2), self.side).transpose(1, 2)
        return normalise(levels.to(torch.uint8), self.pixels)[None]


def shrink_rows(levels: Tensor, side: int) -> Tensor:
    """Resize the last axis of (3, H, W) float64, whole numbers from 0 to 255, to ``side``; the same kind of numbers."""
    weights, bits = integer_weights(torch.arange(levels.shape[-1], dtype=torch.float64), side)
    sums = levels @ weights.transpose(0, 1)
    return torch.floor(sums / torch.exp2(bits) + 0.5).clamp(0, 255)


def integer_weights(at: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """What each of ``side`` pixels takes of those at 0, 1, …, W - 1, and the power of two that it is counted in.

    Args:
        at: (W,) float64, the numbers from 0 to W - 1.
        side: how many pixels there shall be.

    Returns:
        (side, W) float64, whole numbers, and () float64.
    """
    width = at[-1] + 1
    scale = width / side
    reach = scale.clamp(min=1)  # a pixel takes from neighbours nearer than this, the nearer the more
    centre = scale * (torch.arange(side, dtype=torch.float64)[:, None] + 0.5)
    first = torch.floor(centre - reach + 0.5).clamp(min=0)
    end = torch.minimum(torch.floor(centre + reach + 0.5), width)
    near = (1 - torch.abs((at - centre + 0.5) * (1 / reach))).clamp(min=0)
    near = torch.where((at >= first) & (at < end), near, torch.zeros_like(near))
    shares = near / near.sum(dim=1, keepdim=True)
    # As many bits as the largest share can have without leaving 16 bits.
    powers = torch.arange(1, MOST_BITS + 1, dtype=torch.float64)
    bits = (torch.floor(shares.max() * torch.exp2(powers) + 0.5) < 2**WEIGHT_BITS).double().sum()
    return torch.floor(shares * torch.exp2(bits) + 0.5), bits
