"""The cross-attention head of the paper: learned queries attend to one tap after another.

Source: the ProMISe paper (arXiv 2403.04164), Auto-Prompting Module.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CrossHead(nn.Module):
    """Learned queries that attend to the deepest tap first, then to upsampled maps of the shallower taps."""

    def __init__(self, *, tap_channels: Sequence[int], num_points: int) -> None:
        """Create the head with fresh weights.

        Args:
            tap_channels: channels of the taps, shallow to deep.
            num_points: number of points, P.
        """
        super().__init__()
        width = tap_channels[-1]
        levels = len(tap_channels)
        self.query_feat = nn.Embedding(num_points, width)
        self.query_embedding = nn.Embedding(num_points, width)
        self.level_embedding = nn.Embedding(levels, width)
        # Level 0 is the deepest tap; level i is enlarged i times. Taps of SAM's ViTs need no projection.
        deep_first = tuple(reversed(tap_channels))
        self.project = nn.ModuleList(nn.Identity() if c == width else nn.Conv2d(c, width, 1) for c in deep_first)
        self.enlarge = nn.ModuleList(nn.Sequential(*(Enlarge(width) for _ in range(i))) for i in range(levels))
        self.layers = nn.ModuleList(CrossLayer(width) for _ in range(levels))
        self.score = nn.Linear(width, 2)

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        """Map taps, shallow to deep, each (B, C_i, E, E), to scores (B, P, 2)."""
        batch = taps[0].shape[0]
        query = self.query_feat.weight.expand(batch, -1, -1)
        position = self.query_embedding.weight
        for i, tap in enumerate(reversed(taps)):
            level = self.enlarge[i](self.project[i](tap))
            value = level.flatten(2).transpose(1, 2) + self.level_embedding.weight[i]
            key = value + sine_position(level.shape[2], level.shape[3], level.shape[1], level.device).to(value.dtype)
            query = self.layers[i](query, position, key, value)
        with torch.autocast(query.device.type, enabled=False):  # as in ResNetHead
            scores: Tensor = self.score(query.to(self.score.weight.dtype))
            return scores


class Enlarge(nn.Module):
    """Double the side of a map and crop its border: (B, C, H, H) → (B, C, 2H - 2, 2H - 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv = nn.Conv2d(channels, channels, 3)
        self.batchnorm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge one map."""
        return F.relu(self.batchnorm(self.conv(self.deconv(x))))


class CrossLayer(nn.Module):
    """Cross-attention and a two-layer perceptron, each followed by its residual addition and normalisation."""

    def __init__(self, width: int, *, head_width: int = 64) -> None:
        super().__init__()
        self.cross_attention = nn.MultiheadAttention(width, width // head_width or 1, batch_first=True)
        self.lin1 = nn.Linear(width, 4 * width)
        self.lin2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)  # the reference implementation's name; its norm2 is never used

    def forward(self, query: Tensor, position: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Update queries (B, P, C) with learned positions (P, C) from keys and values (B, N, C)."""
        attended, _ = self.cross_attention(query + position, key, value, need_weights=False)
        query = self.norm1(query + attended)
        updated: Tensor = self.norm3(query + self.lin2(F.gelu(self.lin1(query))))
        return updated


def sine_position(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Sine positional encoding of a map: (height·width, channels).

    The first half of the channels encodes y, the second x. Coordinates count from 1 and are scaled by
    2π / (side + 1e-6), then divided by 1, 2, 3, … (no temperature). Even channels contain the sine, odd channels the
    cosine.
    """
    half = channels // 2
    divisor = torch.arange(1, half + 1, device=device, dtype=torch.float32)

    def encode(side: int) -> Tensor:
        position = torch.arange(1, side + 1, device=device, dtype=torch.float32) / (side + 1e-6) * (2 * torch.pi)
        angle = position[:, None] / divisor
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    y = encode(height)[:, None, :].expand(-1, width, -1)
    x = encode(width)[None, :, :].expand(height, -1, -1)
    return torch.cat((y, x), dim=2).flatten(0, 1)
