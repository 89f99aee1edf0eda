"""The ResNet head of the paper: a ResNet-34 on the fused taps regresses points.

Source: the ProMISe paper (arXiv 2403.04164), Auto-Prompting Module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet34


class ResNetHead(nn.Module):
    """Concatenate the taps, deepest first, fuse them by three convolutions, and regress points by a ResNet-34."""

    # Convolutions at the resolution of the embedding, which take most of the time of a training step:
    # optimize_for_cpu replaces them.
    large_convolutions = ("fusion_conv1", "fusion_conv2", "fusion_conv3", "resnet.conv1")

    def __init__(self, *, tap_channels: Sequence[int], num_points: int, width: int = 256) -> None:
        """Create the head with fresh weights.

        Args:
            tap_channels: channels of the taps, shallow to deep.
            num_points: number of points, P.
            width: channels of the fused map.
        """
        super().__init__()
        self.fusion_conv1 = nn.Conv2d(sum(tap_channels), width, 3, padding=1)
        self.fusion_conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.fusion_conv3 = nn.Conv2d(width, width, 3, padding=1)
        # Reference parity: two layers differ from torchvision's ResNet-34.
        self.resnet: Any = resnet34(num_classes=2 * num_points)
        self.resnet.conv1 = nn.Conv2d(width, 64, 3, padding=1, bias=False)
        self.resnet.layer4[-1].downsample = nn.Sequential(nn.Conv2d(512, 512, 1, bias=False), nn.BatchNorm2d(512))

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        """Map taps, shallow to deep, each (B, C_i, E, E), to scores (B, P, 2)."""
        x = torch.cat(tuple(reversed(taps)), dim=1)
        x = self.fusion_conv3(F.relu(self.fusion_conv2(F.relu(self.fusion_conv1(x)))))
        features = _resnet_features(self.resnet, x)
        # The last layer runs in full precision: bfloat16 would round points to a grid of several pixels.
        with torch.autocast(x.device.type, enabled=False):
            scores: Tensor = self.resnet.fc(features.to(self.resnet.fc.weight.dtype))
            return scores.view(scores.shape[0], -1, 2)


def _resnet_features(net: Any, x: Tensor) -> Tensor:
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in layer:
            x = _run_block(block, x)
    return torch.flatten(net.avgpool(x), 1)


def _run_block(block: nn.Module, x: Tensor) -> Tensor:
    """Run a block; on a CPU, in full precision if a convolution would process a map of 1 × 1.

    On such maps oneDNN 3.12 (torch 2.14) reads uninitialised memory in the bf16 weight gradient of a strided 3 × 3
    convolution. Maps of real backbones are 64 × 64 and do not become that small.
    """
    tiny = max(x.shape[-2:]) <= 2 and x.device.type == "cpu"  # 2 × 2 becomes 1 × 1 by a stride
    with torch.autocast(x.device.type, enabled=False) if tiny else contextlib.nullcontext():
        out: Tensor = block(x.to(torch.float32) if tiny else x)
    return out
