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

from promise.export.components import find_boxes
from promise.export.pixels import Pixels
from promise.models.promise import NO_LESION, Promise, fuse_map, pool_taps, shrink_image
from promise.models.prompters.dense import DensePrompter, box_corners
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
    """Normalised image (1, 3, S, S) → embedding (1, C, E, E), then taps, each (1, C_i, E / p, E / p), shallow to deep.

    The taps are pooled as the prompter requires, else p = 1. If it reads the image, that is the last output, at the
    size (1, 3, 4E, 4E). The batch size is fixed, because not every SAM package can
    be traced with a dynamic one.
    """

    def __init__(self, net: Promise) -> None:
        super().__init__()
        self.image_encoder = net.sam.image_encoder
        self.backbone = net.sam.backbone
        self.tap_pooling = net.tap_pooling
        self.needs_image = net.needs_image

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the embedding, followed by the taps."""
        embedding, taps = self.backbone.encode(self.image_encoder, image, self.backbone.tap_blocks, run_block)
        small = (shrink_image(image, 4 * self.backbone.embedding_side),) if self.needs_image else ()
        return (embedding, *(taps if self.tap_pooling == 1 else pool_taps(taps, self.tap_pooling)), *small)


class Prompter(nn.Module):
    """Taps, shallow to deep → points (B, P, 2) in input pixels, labels (B, P)."""

    outputs: tuple[str, ...] = ("points", "labels")

    def __init__(self, apm: nn.Module) -> None:
        super().__init__()
        self.apm = apm

    def forward(self, *taps: Tensor) -> tuple[Tensor, Tensor]:
        """Return points and labels."""
        points = self.apm(Encoded(taps[-1], taps)).prompts.points  # prompters read the taps only
        assert points is not None
        return points.xy, points.label


class LesionPrompter(nn.Module):
    """Embedding (B, C, E, E), taps → map (B, 1, 2E, 2E) of logits, boxes (B, K, 4) in input pixels, scores (B, K).

    If the prompter reads the image, it follows the taps. K is ``max_lesions``. Lesions are in descending order of their
    scores; absent ones have score 0.
    """

    outputs: tuple[str, ...] = ("map", "boxes", "scores")

    def __init__(self, apm: DensePrompter) -> None:
        super().__init__()
        self.apm = apm

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the map, boxes and scores."""
        embedding, *taps = features
        image = taps.pop() if self.apm.needs_image else None
        logits = self.apm.lesion_logits(Encoded(embedding, tuple(taps), image=image))
        probability = self.apm.probability(logits)
        scores, boxes = find_boxes(probability, self.apm.lesions)
        return logits, box_corners(boxes, self.apm.image_size / probability.shape[-1]), scores.float()


class Decoder(nn.Module):
    """Embedding (B, C, E, E), points (B, P, 2) and labels (B, P) → logits (B, M, 4E, 4E) and estimated IoU (B, M).

    The outputs are those of the masks of :func:`decoder_channels`. Labels are those of SAM: 1 foreground, 0 background,
    2 and 3 corners of a box, -1 padding. Without a box, SAM requires one padding point at (0, 0).
    """

    def __init__(self, net: Promise, channels: tuple[int, ...]) -> None:
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


class PointsToMask(nn.Module):
    """Features of an image → logits (1, 1, 4E, 4E), estimated IoU (1, 1), points (1, P, 2), labels (1, P)."""

    outputs: tuple[str, ...] = Prompter.outputs

    def __init__(self, net: Promise) -> None:
        super().__init__()
        assert net.apm is not None
        self.prompter = Prompter(net.apm)
        self.decoder = Decoder(net, MULTIMASK[:1])

    def forward(self, embedding: Tensor, *taps: Tensor) -> tuple[Tensor, ...]:
        """Decode the mask of the prompter's points."""
        points, labels = self.prompter(*taps)
        return (*self.decoder(embedding, points, labels, pad=True), points, labels)


class LesionsToMask(nn.Module):
    """Features of an image → logits (1, 1, 4E, 4E), estimated IoU (1, 1), corners (1, K, 2, 2), scores (1, K), map."""

    outputs: tuple[str, ...] = ("boxes", "scores", "map")

    def __init__(self, net: Promise) -> None:
        super().__init__()
        assert isinstance(net.apm, DensePrompter)
        self.apm = net.apm
        self.prompter = LesionPrompter(net.apm)
        self.sam = without_encoder(net.sam)
        self.ips = net.ips
        self.channel = net.channel()

    def forward(self, embedding: Tensor, *taps: Tensor) -> tuple[Tensor, ...]:
        """Decode the boxes of K lesions in one batch; the union of the present ones is fused with the map."""
        settings = self.apm.lesions
        lesion_logits, boxes, scores = self.prompter(embedding, *taps)
        each = (settings.max_lesions, -1, -1, -1)
        masks = self.apm.mask_prompts(lesion_logits).expand(each) if settings.mask_prompt else None
        shift = None if self.ips is None else self.ips(embedding).expand(each[:3])
        logits, iou = self.sam.decode(
            Encoded(embedding.expand(each)),
            Prompts(boxes=boxes[0], masks=masks),
            token_shift=shift,
            channels=(self.channel,),
        )
        found = scores > 0
        count = found.sum(dim=1, keepdim=True)
        united = torch.where(found[0, :, None, None, None], logits, -torch.inf).amax(dim=0, keepdim=True)
        united = torch.where(count[:, :, None, None] > 0, united, NO_LESION)
        fused = fuse_map(united, lesion_logits, settings.fuse, found.any(dim=1))
        mean_iou = torch.where(found.T, iou, 0.0).sum(dim=0, keepdim=True) / count.clamp(min=1)
        return fused, mean_iou, boxes.unflatten(2, (2, 2)), scores, lesion_logits


class ImageToMask(nn.Module):
    """Image (H, W, 3) uint8 RGB → its mask, with the intermediate results, at the size of the image.

    Outputs: mask (H, W) uint8, 0 or 255, before any morphology; probability (H, W); estimated IoU (1,); logits (4E,
    4E). For a net that predicts points: points (P, 2) in pixels of the image; labels (P,). For a net that finds
    lesions: boxes (K, 2, 2), x0, y0 and x1, y1 in pixels of the image; scores (K,), 0 for absent lesions; logits (1,
    2E, 2E) of the map.
    """

    def __init__(self, net: Promise, *, pixels: str, threshold: float) -> None:
        super().__init__()
        self.pixels = Pixels(side=net.sam.backbone.image_size, pixels=pixels)
        self.encoder = Encoder(net)
        self.automatic = PointsToMask(net) if net.lesions is None else LesionsToMask(net)
        first, second, *rest = self.automatic.outputs
        self.outputs = ("mask", "probability", first, second, "iou", "logits", *rest)
        self.threshold = threshold

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:  # the name of the ONNX input
        """Return what the class describes, in the order of ``outputs``."""
        logits, iou, xy, values, *rest = self.automatic(*self.encoder(self.pixels(picture)))
        height, width = picture.shape[:2]
        resized = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
        probability = torch.sigmoid(resized[0, 0])
        mask = (probability >= self.threshold).to(torch.uint8) * 255
        ratio = torch.tensor(picture.shape[1::-1], dtype=torch.float32) / self.pixels.side  # of x, of y
        xy = (xy[0] + 0.5) * ratio - 0.5
        return (mask, probability, xy, values[0], iou[0], logits[0, 0], *(one[0] for one in rest))


def tap_names(backbone: Backbone) -> tuple[str, ...]:
    """Names of the taps as outputs of the encoder and inputs of the prompter, shallow to deep."""
    return tuple(f"tap_{block}" for block in backbone.tap_blocks)


def decoder_channels(net: Promise) -> tuple[int, ...]:
    """The masks of the decoder graph: SAM's three multimask masks, after the single mask if the net finds lesions."""
    return MULTIMASK if net.lesions is None else (0, *MULTIMASK)


def encoder_outputs(net: Promise) -> tuple[str, ...]:
    """Names of the outputs of the encoder graph."""
    return ("embedding", *tap_names(net.sam.backbone), *(("small_image",) if net.needs_image else ()))


def prompter_inputs(net: Promise, encoded: Encoded) -> dict[str, Tensor]:
    """The inputs of the prompter graph: the outputs of the encoder if the net finds lesions, else the taps."""
    outputs = dict(zip(encoder_outputs(net), encoded.tensors, strict=True))
    return outputs if net.lesions is not None else {name: outputs[name] for name in tap_names(net.sam.backbone)}


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
    side, grid = backbone.image_size, backbone.embedding_side
    image = torch.rand(1, 3, side, side)
    embedding = torch.rand(2, backbone.embedding_channels, grid, grid)
    taps = tuple(torch.rand(2, channels, grid, grid) for channels in backbone.tap_channels)
    prompts = {
        "embedding": embedding,
        "points": torch.rand(2, 5, 2) * side,
        "labels": torch.tensor([[1, 0, 2, 3, -1]] * 2),
    }
    batch = {0: "batch"}
    batch_and_points = {0: "batch", 1: "points"}
    graphs = [Graph("encoder", Encoder(net), {"image": image}, {}, encoder_outputs(net))]
    if net.apm is not None:
        small = torch.rand(2, 3, 4 * grid, 4 * grid) if net.needs_image else None
        inputs = prompter_inputs(net, Encoded(embedding, pool_taps(taps, net.tap_pooling), image=small))
        prompter = LesionPrompter(net.apm) if isinstance(net.apm, DensePrompter) else Prompter(net.apm)
        graphs.append(Graph("prompter", prompter, inputs, dict.fromkeys(inputs, batch), prompter.outputs))
    axes = {"embedding": batch, "points": batch_and_points, "labels": batch_and_points}
    graphs.append(Graph("decoder", Decoder(net, decoder_channels(net)), prompts, axes, ("logits", "iou")))
    if net.apm is not None:
        example = torch.randint(0, 256, (side + 10, side + 20, 3), dtype=torch.uint8)
        whole = ImageToMask(net, pixels=pixels, threshold=threshold)
        free = {"picture": {0: "height", 1: "width"}}
        graphs.append(Graph("image", whole, {"picture": example}, free, whole.outputs))
    for graph in graphs:
        graph.module.eval().requires_grad_(False)
    return graphs
