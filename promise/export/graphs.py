"""A net's parts as graphs: named tensors in, named tensors out, with the axes whose size is free.

Knows no file format and no runtime. Encoders are the SAM packages' own modules: the fused ones cut their work by
the device they run on.
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
from promise.models.sam.frozen import FrozenSam
from promise.types import Encoded, Points, Prompts

MULTIMASK = (1, 2, 3)  # the decoder's channels; the first is the net's prediction
MOST = {"batch": 1024, "points": 1024, "height": 2**15, "width": 2**15}  # of the free axes


@dataclass(frozen=True)
class Graph:
    """One module to be written to a file of its own."""

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]  # an example of each
    free: Mapping[str, Mapping[int, str]]  # input → axis → the size's name
    outputs: tuple[str, ...]


class Encoder(nn.Module):
    """Image (1, 3, S, S), normalised → embedding, then the taps, shallow to deep.

    One image at a time: not every SAM package's encoder can be traced for a batch of any size.
    """

    def __init__(self, image_encoder: nn.Module, backbone: Backbone) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.backbone = backbone

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Encode."""
        embedding, taps = self.backbone.encode(self.image_encoder, image, self.backbone.tap_blocks, run_block)
        return (embedding, *taps)


class Prompter(nn.Module):
    """Taps, shallow to deep → points (B, P, 2) in input pixels and their labels (B, P)."""

    def __init__(self, apm: nn.Module) -> None:
        super().__init__()
        self.apm = apm

    def forward(self, *taps: Tensor) -> tuple[Tensor, Tensor]:
        """Place points."""
        points = self.apm(Encoded(taps[-1], taps)).prompts.points  # it reads the taps alone
        assert points is not None
        return points.xy, points.label


class Decoder(nn.Module):
    """Embedding and points → logits (B, 3, 4E, 4E) and quality (B, 3) of the three multimask masks.

    Labels are SAM's: 1 foreground, 0 background, 2 and 3 a box's corners, -1 padding, of which SAM wants one at
    (0, 0) where there is no box.
    """

    def __init__(self, net: Promise, channels: tuple[int, ...] = MULTIMASK) -> None:
        super().__init__()
        self.sam = without_encoder(net.sam)
        self.ips = net.ips
        self.channels = channels

    def forward(self, embedding: Tensor, points: Tensor, labels: Tensor, pad: bool = False) -> tuple[Tensor, Tensor]:
        """Decode; ``pad`` adds the padding point."""
        shift = None if self.ips is None else self.ips(embedding)
        return self.sam.decode(
            Encoded(embedding), Prompts(Points(points, labels)), token_shift=shift, channels=self.channels, pad=pad
        )


class ImageToMask(nn.Module):
    """Picture (H, W, 3) uint8 RGB → its mask and all that led to it, in the picture's own frame.

    Gives mask (H, W) uint8, 0 or 255, before any morphology; probability (H, W); points (P, 2) in pixels of the
    picture and their labels (P,); quality (1,); logits (4E, 4E).
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

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Predict."""
        embedding, *taps = self.encoder(self.pixels(picture))
        points, labels = self.prompter(*taps)
        logits, iou = self.decoder(embedding, points, labels, pad=True)
        height, width = picture.shape[:2]
        whole = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
        probability = torch.sigmoid(whole[0, 0])
        mask = (probability >= self.threshold).to(torch.uint8) * 255
        ratio = torch.tensor(picture.shape[1::-1], dtype=torch.float32) / self.pixels.side  # of x, of y
        return mask, probability, (points[0] + 0.5) * ratio - 0.5, labels[0], iou[0], logits[0, 0]


def tap_names(backbone: Backbone) -> tuple[str, ...]:
    """Of the encoder's outputs and the prompter's inputs, shallow to deep."""
    return tuple(f"tap_{block}" for block in backbone.tap_blocks)


def without_encoder(sam: FrozenSam) -> FrozenSam:
    """The same SAM, its weights shared, for decoding only."""
    parts: Any = SimpleNamespace(
        image_encoder=nn.Identity(), prompt_encoder=sam.prompt_encoder, mask_decoder=sam.mask_decoder
    )
    return FrozenSam(parts, sam.backbone)


def build_graphs(net: Promise, *, pixels: str, threshold: float) -> list[Graph]:
    """The graphs of a net: encoder and decoder, and where the net has a prompter, that and image to mask.

    Args:
        net: on the CPU, in evaluation mode and full precision.
        pixels: how the loader normalises, as in :func:`promise.data.transforms.normalise`.
        threshold: a pixel of at least this probability is foreground.
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
    each = {0: "batch"}
    several = {0: "batch", 1: "points"}
    graphs = [Graph("encoder", encoder, {"image": image}, {}, ("embedding", *taps))]
    if net.apm is not None:
        graphs.append(Graph("prompter", Prompter(net.apm), taps, dict.fromkeys(taps, each), ("points", "labels")))
    axes = {"embedding": each, "points": several, "labels": several}
    graphs.append(Graph("decoder", Decoder(net), prompts, axes, ("logits", "iou")))
    if net.apm is not None:
        picture = torch.randint(0, 256, (side + 10, side + 20, 3), dtype=torch.uint8)
        module = ImageToMask(net, pixels=pixels, threshold=threshold)
        outputs = ("mask", "probability", "points", "labels", "iou", "logits")
        graphs.append(Graph("image", module, {"picture": picture}, {"picture": {0: "height", 1: "width"}}, outputs))
    for graph in graphs:
        graph.module.eval().requires_grad_(False)
    return graphs
