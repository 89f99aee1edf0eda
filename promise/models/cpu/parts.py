"""What the fused encoders share: layers on channels-last maps with their weights cast once, and strips.

A strip is some rows of one picture: on a CPU the wide hidden layers pass through the cache strip by strip instead of
through main memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# On a CPU, elements of a hidden layer that are alive at once: a megabyte or two of bfloat16.
STRIP_ELEMENTS = 2**20


@dataclass(frozen=True)
class Linear:
    """A linear layer on the last axis of (B, H, W, C)."""

    weight: Tensor  # (out, in)
    bias: Tensor | None

    @staticmethod
    def of(layer: Any, dtype: torch.dtype) -> Linear:
        """Of a linear layer or a 1 × 1 convolution."""
        bias = None if layer.bias is None else layer.bias.to(dtype)
        return Linear(layer.weight.flatten(1).to(dtype), bias)

    @staticmethod
    def folded(pair: Any, dtype: torch.dtype) -> Linear:
        """Of a 1 × 1 convolution and its batch normalisation."""
        weight, bias = fold_batch_norm(pair)
        return Linear(weight.flatten(1).to(dtype), bias.to(dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        if x.device.type == "cpu" and x.dtype == torch.float32:
            # The same product by oneDNN, which is the faster library for matrices as narrow as these.
            wide = F.conv2d(x.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias)
            return wide.permute(0, 2, 3, 1)
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Norm:
    """Layer normalisation on the last axis of (B, H, W, C)."""

    weight: Tensor
    bias: Tensor
    eps: float

    @staticmethod
    def of(layer: Any, dtype: torch.dtype) -> Norm:
        """Of a LayerNorm on channels, last or first."""
        return Norm(layer.weight.to(dtype), layer.bias.to(dtype), layer.eps)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise each pixel's channels."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Mlp:
    """Two linear layers with their normalisation and residual, on (B, H, W, C)."""

    norm: Norm
    widen: Linear
    narrow: Linear

    @staticmethod
    def of(norm: Any, widen: Any, narrow: Any, dtype: torch.dtype, *, stream: torch.dtype) -> Mlp:
        """Of three layers; computes in ``dtype`` on a residual stream that is kept in ``stream``."""
        return Mlp(Norm.of(norm, stream), Linear.of(widen, dtype), Linear.of(narrow, dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """x plus what the layers make of it."""
        out, dtype = torch.empty_like(x), self.widen.weight.dtype
        for picture, top, bottom in strips(out, x.shape[2] * self.widen.weight.shape[0]):
            strip = x[picture, top:bottom]
            out[picture, top:bottom] = strip + self.narrow(F.gelu(self.widen(self.norm(strip).to(dtype))))
        return out


@dataclass(frozen=True)
class Neck:
    """The last convolutions, on (B, H, W, C)."""

    first: Linear
    first_norm: Norm
    second: Tensor  # (256, 256, 3, 3)
    second_norm: Norm

    @staticmethod
    def of(neck: Any, dtype: torch.dtype) -> Neck:
        """Of SAM's neck: convolution, norm, convolution, norm; no biases."""
        return Neck(
            Linear.of(neck[0], dtype), Norm.of(neck[1], dtype), neck[2].weight.to(dtype), Norm.of(neck[3], dtype)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, 256)."""
        x = self.first_norm(self.first(x)).permute(0, 3, 1, 2)
        return self.second_norm(F.conv2d(x, self.second, padding=1).permute(0, 2, 3, 1))


def fold_batch_norm(pair: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that does what ``pair.c`` and ``pair.bn`` (in evaluation) do together."""
    norm = pair.bn
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = pair.c.weight.double() * scale[:, None, None, None]
    return weight.float(), (norm.bias.double() - norm.running_mean.double() * scale).float()


def strips(out: Tensor, row: int, *, multiple: int = 1) -> Iterator[tuple[slice, int, int]]:
    """Cut (B, H, W, C) into (pictures, first row, row after the last).

    Args:
        out: what the strips will fill.
        row: elements of the widest hidden layer for one row of one picture.
        multiple: each strip but a picture's last has a multiple of so many rows.
    """
    batch, height = out.shape[:2]
    if out.device.type != "cpu":
        yield slice(None), 0, height
        return
    rows = max(STRIP_ELEMENTS // row // multiple, 1) * multiple
    for picture in range(batch):
        for top in range(0, height, rows):
            yield slice(picture, picture + 1), top, min(top + rows, height)
