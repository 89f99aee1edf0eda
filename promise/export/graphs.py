"""The parts of a net as modules with named inputs and outputs, and their dynamic axes.

Encoders are the modules of the SAM packages. The operations of the fused encoders depend on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promise.export.pixels import Pixels
from promise.models.promise import Promise
from promise.models.sam.backbones import Backbone, run_block
from promise.models.sam.frozen import MULTIMASK, FrozenSam
from promise.types import Encoded, Points, Prompts

MAX_SIZES = {"batch": 1024, "points": 1024, "height": 2**15, "width": 2**15}  # of dynamic axes


@dataclass(frozen=True)
class Graph:
    """A module that is written to one file."""

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]  # example inputs
    free: Mapping[str, Mapping[int, str]]  # dynamic axes: input → axis → name of the size, a key of MAX_SIZES
    outputs: tuple[str, ...]


class Encoder(nn.Module):
    """Normalised image (1, 3, S, S) → embedding (1, C, E, E), then taps, each (1, C_i, E, E), shallow to deep.

    The batch size is fixed, because not every SAM package can be traced with a dynamic one.
    """

    def __init__(self, image_encoder: nn.Module, backbone: Backbone) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.backbone = backbone

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the embedding, followed by the taps."""
        embedding, taps = self.backbone.encode(self.image_encoder, image, self.backbone.tap_blocks, run_block)
        return (embedding, *taps)


class Prompter(nn.Module):
    """Taps, shallow to deep → points (B, P, 2) in input pixels, labels (B, P)."""

    def __init__(self, apm: nn.Module) -> None:
        super().__init__()
        self.apm = apm

    def forward(self, *taps: Tensor) -> tuple[Tensor, Tensor]:
        """Return points and labels."""
        points = self.apm(Encoded(taps[-1], taps)).prompts.points  # prompters read the taps only
        assert points is not None
        return points.xy, points.label


class Decoder(nn.Module):
    """Embedding (B, C, E, E), points (B, P, 2) and labels (B, P) → logits (B, 3, 4E, 4E) and estimated IoU (B, 3).

    The outputs are those of the three multimask masks. Labels are those of SAM: 1 foreground, 0 background, 2 and 3
    corners of a box, -1 padding. Without a box, SAM requires one padding point at (0, 0).
    """

    def __init__(self, net: Promise, channels: tuple[int, ...] = MULTIMASK) -> None:
        super().__init__()
        self.sam = without_encoder(net.sam)
        self.ips = net.ips
        self.channels = channels

    def forward(self, embedding: Tensor, points: Tensor, labels: Tensor, pad: bool = False) -> tuple[Tensor, Tensor]:
        """Return logits and estimated IoU. ``pad`` appends the padding point."""
        shift = None if self.ips is None else self.ips(embedding)
        return self.sam.decode(
            Encoded(embedding), Prompts(Points(points, labels)), token_shift=shift, channels=self.channels, pad=pad
        )


class ImageToMask(nn.Module):
    """Image (H, W, 3) uint8 RGB → its mask, with the intermediate results, at the size of the image.

    Outputs: mask (H, W) uint8, 0 or 255, before any morphology; probability (H, W); points (P, 2) in pixels of the
    image; labels (P,); estimated IoU (1,); logits (4E, 4E).
    """

    def __init__(self, net: Promise, *, pixels: str, threshold: float) -> None:
        super().__init__()
        assert net.apm is not None
        backbone = net.sam.backbone
        self.pixels = Pixels(side=backbone.image_size, pixels=pixels)
        self.encoder = Encoder(net.sam.image_encoder, backbone)
        self.prompter = Prompter(net.apm)
        self.decoder = Decoder(net, MULTIMASK[:1])
        self.threshold = threshold

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:  # the name of the ONNX input
        """Return mask, probability, points, labels, estimated IoU and logits."""
        embedding, *taps = self.encoder(self.pixels(picture))
        points, labels = self.prompter(*taps)
        logits, iou = self.decoder(embedding, points, labels, pad=True)
        height, width = picture.shape[:2]
        resized = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
        probability = torch.sigmoid(resized[0, 0])
        mask = (probability >= self.threshold).to(torch.uint8) * 255
        ratio = torch.tensor(picture.shape[1::-1], dtype=torch.float32) / self.pixels.side  # of x, of y
        return mask, probability, (points[0] + 0.5) * ratio - 0.5, labels[0], iou[0], logits[0, 0]


def tap_names(backbone: Backbone) -> tuple[str, ...]:
    """Names of the taps as outputs of the encoder and inputs of the prompter, shallow to deep."""
    return tuple(f"tap_{block}" for block in backbone.tap_blocks)


def without_encoder(sam: FrozenSam) -> FrozenSam:
    """Return a SAM that only decodes and shares its weights with ``sam``."""
    parts: Any = SimpleNamespace(
        image_encoder=nn.Identity(), prompt_encoder=sam.prompt_encoder, mask_decoder=sam.mask_decoder
    )
    return FrozenSam(parts, sam.backbone)


def build_graphs(net: Promise, *, pixels: str, threshold: float) -> list[Graph]:
    """Return the graphs of a net: encoder and decoder; with a prompter also prompter and image to mask.

    Args:
        net: net on the CPU, in evaluation mode and fp32.
        pixels: normalisation of images, see :func:`promise.data.transforms.recipes.normalise`.
        threshold: minimum probability of foreground pixels.
    """
    backbone = net.sam.backbone
    side = backbone.image_size
    image = torch.rand(1, 3, side, side)
    encoder = Encoder(net.sam.image_encoder, backbone)
    taps = {
        name: torch.rand(2, channels, backbone.embedding_side, backbone.embedding_side)
        for name, channels in zip(tap_names(backbone), backbone.tap_channels, strict=True)
    }
    prompts = {
        "embedding": torch.rand(2, backbone.embedding_channels, backbone.embedding_side, backbone.embedding_side),
        "points": torch.rand(2, 5, 2) * side,
        "labels": torch.tensor([[1, 0, 2, 3, -1]] * 2),
    }
    batch = {0: "batch"}
    batch_and_points = {0: "batch", 1: "points"}
    graphs = [Graph("encoder", encoder, {"image": image}, {}, ("embedding", *taps))]
    if net.apm is not None:
        graphs.append(Graph("prompter", Prompter(net.apm), taps, dict.fromkeys(taps, batch), ("points", "labels")))
    axes = {"embedding": batch, "points": batch_and_points, "labels": batch_and_points}
    graphs.append(Graph("decoder", Decoder(net), prompts, axes, ("logits", "iou")))
    if net.apm is not None:
        example = torch.randint(0, 256, (side + 10, side + 20, 3), dtype=torch.uint8)
        module = ImageToMask(net, pixels=pixels, threshold=threshold)
        outputs = ("mask", "probability", "points", "labels", "iou", "logits")
        graphs.append(Graph("image", module, {"picture": example}, {"picture": {0: "height", 1: "width"}}, outputs))
    for graph in graphs:
        graph.module.eval().requires_grad_(False)
    return graphs
