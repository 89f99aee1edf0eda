"""What the measurements share: one SAM, its nets, synthetic images, the plain way of doing things; knows no parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Settings:
    """What is measured, and how long."""

    sam: str = "vit_b"
    sam_checkpoint: str | None = "auto"  # None: random weights, which are as fast
    batch_size: int = 8
    repeats: int = 3
    images: int = 16  # of the loader, the cached epoch and the evaluation
    device: str = "auto"
    precision: str = "auto"


class Bench:
    """One machine, one SAM: the parts of the comparisons, made once."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Build the first net."""
        self.settings = settings
        self.device = resolve_device(settings.device)
        self.precision = resolve_precision(settings.precision, self.device)
        self.folder = folder
        self.written: dict[tuple[int, int], tuple[Row, ...]] = {}
        self.nets: dict[tuple[str, str], Promise] = {}
        self.training = False  # the mode that nets are given out in
        backbone = self.net("IPS_GT", "fp32").sam.backbone
        side = backbone.image_size
        generator = torch.Generator().manual_seed(0)
        self.image = torch.rand(settings.batch_size, 3, side, side, generator=generator).to(self.device)
        self.mask = (torch.rand(settings.batch_size, 1, side, side, generator=generator) > 0.7).float().to(self.device)
        self.points = Points(
            torch.rand(settings.batch_size, 16, 2, generator=generator) * side,
            torch.tensor([1] * 8 + [0] * 8).expand(settings.batch_size, -1),
        ).to(self.device)

    def net(self, name: str, precision: str) -> Promise:
        """A net on the one SAM."""
        key = name, precision
        if key not in self.nets:
            settings = self.settings
            net = build_net(name, sam=settings.sam, sam_checkpoint=settings.sam_checkpoint, precision=precision, seed=0)
            if self.nets:
                net.sam = next(iter(self.nets.values())).sam  # one SAM in memory
            self.nets[key] = optimize_for_cpu(net).to(self.device)
        return self.nets[key].train(self.training)

    def dataset(self, recipe: str, *, count: int | None = None, size: int = 512) -> SegmentationDataset:
        """Synthetic images under a recipe: as many as the settings say, of 512 pixels a side."""
        backbone = self.net("IPS_GT", "fp32").sam.backbone
        transform = build_transform(recipe, image_size=backbone.image_size, pixels=backbone.pixels)
        return SegmentationDataset(self.rows(count or self.settings.images, size), transform, seed=0)

    def rows(self, count: int, size: int) -> tuple[Row, ...]:
        """Synthetic images on the disk, written when they are first asked for."""
        if (count, size) not in self.written:
            folder = self.folder / f"{count}-of-{size}"
            self.written[count, size] = read_table(
                make_phantoms(folder, count=count, size=size, seed=0, splits=(1, 0, 0))
            ).rows
        return self.written[count, size]

    @torch.no_grad()
    def upstream_encode(self, image: Tensor, *, taps: bool) -> Encoded:
        """The package's own modules, as published; image by image, since eight at once want 20 GiB with ViT-B."""
        sam = self.net("IPS_GT", "fp32").sam
        blocks = sam.backbone.tap_blocks if taps else ()
        encode = sam.backbone.encode
        return join([Encoded(*encode(sam.image_encoder, one, blocks, run_block)) for one in torch.split(image, 1)])

    def upstream_predict(self, name: str, image: Tensor) -> Prediction:
        """The original's way: the package's encoder, PyTorch's convolutions, one decoding an image, full precision."""
        net = self.net(name, "fp32")
        encoded = self.upstream_encode(image, taps=net.apm is not None)
        with plain_convolutions():
            points = self.points if net.apm is None else net.prompt(encoded).prompts.points
        assert points is not None
        each = []
        for i in range(len(image)):
            one = slice(i, i + 1)
            alone = Encoded(encoded.embedding[one], tuple(tap[one] for tap in encoded.taps))
            each.append(net.decode(alone, Prompts(Points(points.xy[one], points.label[one]))))
        return Prediction(torch.cat([p.mask_logits for p in each]), torch.cat([p.iou for p in each]), Prompts(points))

    def predict(self, name: str, encoded: Encoded) -> Prediction:
        """Ours: from features, the whole batch at once."""
        net = self.net(name, self.precision)
        return net.decode(encoded, Prompts(self.points) if net.apm is None else None)

    def features(self, name: str) -> Encoded:
        """The batch's features as the net wants them."""
        net = self.net(name, self.precision)
        with torch.no_grad():
            return net.encode(self.image)
