"""Shared by all measurements: one SAM, its nets, synthetic images, and the baseline implementation."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor

from promise.benchmark.config import IMAGE_SIDE, NUM_POINTS, Settings
from promise.data.dataset import SegmentationDataset
from promise.data.phantom import make_phantoms
from promise.data.table import Row, read_table
from promise.data.transforms.recipes import build_transform
from promise.models.cpu import optimize_for_cpu
from promise.models.cpu.winograd import plain_convolutions
from promise.models.promise import Promise
from promise.models.registry import build_net
from promise.models.sam.backbones import run_block
from promise.runtime.device import resolve_device, resolve_precision
from promise.types import Encoded, Points, Prediction, Prompts, join


class Bench:
    """Nets, inputs and data sets of a benchmark, created on first use."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Build the first net and random inputs.

        Args:
            settings: workload.
            folder: folder for synthetic images and cached features.
        """
        self.settings = settings
        self.device = resolve_device(settings.device)
        self.precision = resolve_precision(settings.precision, self.device)
        self.folder = folder
        self.written: dict[tuple[int, int], tuple[Row, ...]] = {}
        self.nets: dict[tuple[str, str], Promise] = {}
        self.training = False  # mode of the nets that are returned
        backbone = self.net("IPS_GT", "fp32").sam.backbone
        side = backbone.image_size
        generator = torch.Generator().manual_seed(0)
        self.image = torch.rand(settings.batch_size, 3, side, side, generator=generator).to(self.device)
        self.mask = (torch.rand(settings.batch_size, 1, side, side, generator=generator) > 0.7).float().to(self.device)
        self.points = Points(
            torch.rand(settings.batch_size, NUM_POINTS, 2, generator=generator) * side,
            torch.tensor([1] * (NUM_POINTS // 2) + [0] * (NUM_POINTS // 2)).expand(settings.batch_size, -1),
        ).to(self.device)

    def net(self, name: str, precision: str) -> Promise:
        """Return a net. All nets use the same SAM."""
        key = name, precision
        if key not in self.nets:
            settings = self.settings
            net = build_net(name, sam=settings.sam, sam_checkpoint=settings.sam_checkpoint, precision=precision, seed=0)
            if self.nets:
                net.sam = next(iter(self.nets.values())).sam  # keep one SAM in memory
            self.nets[key] = optimize_for_cpu(net).to(self.device)
        return self.nets[key].train(self.training)

    def dataset(self, recipe: str, *, count: int | None = None, size: int = IMAGE_SIDE) -> SegmentationDataset:
        """Return a dataset of synthetic images under a recipe.

        Args:
            recipe: name of the transform.
            count: number of images; default: that of the settings.
            size: width and height in pixels.
        """
        backbone = self.net("IPS_GT", "fp32").sam.backbone
        transform = build_transform(recipe, image_size=backbone.image_size, pixels=backbone.pixels)
        return SegmentationDataset(self.rows(count or self.settings.images, size), transform, seed=0)

    def rows(self, count: int, size: int) -> tuple[Row, ...]:
        """Return the rows of synthetic images, which are written on first use."""
        if (count, size) not in self.written:
            folder = self.folder / f"{count}-of-{size}"
            self.written[count, size] = read_table(
                make_phantoms(folder, count=count, size=size, seed=0, splits=(1, 0, 0))
            ).rows
        return self.written[count, size]

    @torch.no_grad()
    def upstream_encode(self, image: Tensor, *, taps: bool) -> Encoded:
        """Encode with the modules of the SAM package, image by image: with ViT-B, a batch of eight requires 20 GiB."""
        sam = self.net("IPS_GT", "fp32").sam
        blocks = sam.backbone.tap_blocks if taps else ()
        encode = sam.backbone.encode
        return join([Encoded(*encode(sam.image_encoder, one, blocks, run_block)) for one in torch.split(image, 1)])

    def upstream_predict(self, name: str, image: Tensor) -> Prediction:
        """Predict as the reference implementation does.

        Encoder of the SAM package, convolutions of PyTorch, one decoder pass per image, fp32.
        """
        net = self.net(name, "fp32")
        encoded = self.upstream_encode(image, taps=net.apm is not None)
        with plain_convolutions():
            points = self.points if net.apm is None else net.prompt(encoded).prompts.points
        assert points is not None
        predictions = []
        for i in range(len(image)):
            one = slice(i, i + 1)
            alone = encoded.map(itemgetter(one))
            predictions.append(net.decode(alone, Prompts(Points(points.xy[one], points.label[one]))))
        return Prediction(
            torch.cat([p.mask_logits for p in predictions]), torch.cat([p.iou for p in predictions]), Prompts(points)
        )

    def predict(self, name: str, encoded: Encoded) -> Prediction:
        """Predict from features, decoding the whole batch together."""
        net = self.net(name, self.precision)
        return net.decode(encoded, Prompts(self.points) if net.apm is None else None)

    def features(self, name: str) -> Encoded:
        """Return the features of the batch, with taps if the net requires them."""
        net = self.net(name, self.precision)
        with torch.no_grad():
            return net.encode(self.image)
