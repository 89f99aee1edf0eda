"""Building blocks of the fused encoders: layers on channels-last maps, whose weights are cast once, and strips.

A strip is a group of consecutive rows of one image. On a CPU the wide hidden layers are computed strip by strip, so
that they stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# On a CPU, maximum number of elements of a hidden layer in memory: about two megabytes of bfloat16.
STRIP_ELEMENTS = 2**20


@dataclass(frozen=True)
class Linear:
    """A linear layer on the last axis of (B, H, W, C)."""

    weight: Tensor  # (out, in)
    bias: Tensor | None

    @staticmethod
    def of(layer: Any, dtype: torch.dtype) -> Linear:
        """Build from a linear layer or a 1 × 1 convolution."""
        bias = None if layer.bias is None else layer.bias.to(dtype)
        return Linear(layer.weight.flatten(1).to(dtype), bias)

    @staticmethod
    def folded(pair: Any, dtype: torch.dtype) -> Linear:
        """Build from a 1 × 1 convolution (``pair.c``) and its batch normalisation (``pair.bn``)."""
        weight, bias = fold_batch_norm(pair)
        return Linear(weight.flatten(1).to(dtype), bias.to(dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        if x.device.type == "cpu" and x.dtype == torch.float32:
            # The same product as a convolution by oneDNN, which is faster for matrices as narrow as these.
            wide = F.conv2d(x.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias)
            return wide.permute(0, 2, 3, 1)
        if x.device.type == "cpu" and not x.is_contiguous():
            x = x.contiguous()  # else torch multiplies each row of a map by its own copy of the weights
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Norm:
    """Layer normalisation on the last axis of (B, H, W, C)."""

    weight: Tensor
    bias: Tensor
    eps: float

    @staticmethod
    def of(layer: Any, dtype: torch.dtype) -> Norm:
        """Build from a LayerNorm on channels, which may be the last or the first axis."""
        return Norm(layer.weight.to(dtype), layer.bias.to(dtype), layer.eps)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the channels of each pixel; the shape does not change."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Mlp:
    """Two linear layers with their normalisation and residual, on (B, H, W, C)."""

    norm: Norm
    widen: Linear
    narrow: Linear

    @staticmethod
    def of(norm: Any, widen: Any, narrow: Any, dtype: torch.dtype, *, stream: torch.dtype) -> Mlp:
        """Build from three layers; they compute in ``dtype``, the residual stream has the type ``stream``."""
        return Mlp(Norm.of(norm, stream), Linear.of(widen, dtype), Linear.of(narrow, dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """Return x plus the output of the layers, (B, H, W, C)."""
        out, dtype = torch.empty_like(x), self.widen.weight.dtype
        for index, top, bottom in strips(out, x.shape[2] * self.widen.weight.shape[0]):
            strip = x[index, top:bottom]
            hidden = F.gelu(self.widen(self.norm(strip).to(dtype)))
            torch.add(strip, self.narrow(hidden), out=out[index, top:bottom])
        return out


@dataclass(frozen=True)
class Neck:
    """SAM's neck, the last convolutions of an image encoder, on (B, H, W, C)."""

    first: Linear
    first_norm: Norm
    second: Tensor  # (256, 256, 3, 3)
    second_norm: Norm

    @staticmethod
    def of(neck: Any, dtype: torch.dtype) -> Neck:
        """Build from SAM's neck: convolution, norm, convolution, norm; no biases."""
        return Neck(
            Linear.of(neck[0], dtype), Norm.of(neck[1], dtype), neck[2].weight.to(dtype), Norm.of(neck[3], dtype)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, 256)."""
        x = self.first_norm(self.first(x)).permute(0, 3, 1, 2)
        return self.second_norm(F.conv2d(x, self.second, padding=1).permute(0, 2, 3, 1))


def fold_batch_norm(pair: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals ``pair.c`` followed by ``pair.bn`` in evaluation mode."""
    norm = pair.bn
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = pair.c.weight.double() * scale[:, None, None, None]
    return weight.float(), (norm.bias.double() - norm.running_mean.double() * scale).float()


def strips(out: Tensor, row: int, *, multiple: int = 1) -> Iterator[tuple[slice, int, int]]:
    """Divide (B, H, W, C) into strips; on other devices than a CPU the whole batch is one strip.

    Args:
        out: the map that the strips will fill.
        row: elements of the widest hidden layer for one row of one image.
        multiple: the number of rows of each strip, except the last of an image, is a multiple of this.

    Yields:
        The slice of the batch, the first row, and the row after the last.
    """
    batch, height = out.shape[:2]
    if out.device.type != "cpu":
        yield slice(None), 0, height
        return
    rows = max(STRIP_ELEMENTS // row // multiple, 1) * multiple
    for index in range(batch):
        for top in range(0, height, rows):
            yield slice(index, index + 1), top, min(top + rows, height)
