"""Measure, in one run and by turns, what is fast here against the plain way; knows no flags.

Every comparison runs its variants in turn, again and again, on the same input: a machine that slows down slows all of
them. Quoted are medians; ratios are medians of the turns' ratios.
"""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from promise.cached import CachedDataset, CacheSettings, collate_cached, serve
from promise.data.dataset import SegmentationDataset, build_loader
from promise.data.phantom import make_phantoms
from promise.data.table import Row, read_table
from promise.device import describe_environment, keep_freed_memory, resolve_device
from promise.engine import predict_rows
from promise.errors import UserError, unknown_name
from promise.files import write_json, write_text
from promise.losses import bce_dice, resize_target
from promise.metrics import evaluate_pair
from promise.models.backbones import run_block
from promise.models.promise import Promise, resolve_precision
from promise.models.prompts import prompt_batch
from promise.registry import build_net
from promise.scoring import score
from promise.timings import NETS, Comparison, markdown, processor, published_training, take_turns
from promise.transforms import build_transform
from promise.types import Batch, Encoded, Points, Prediction, join

log = logging.getLogger(__name__)


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
        """Build the nets and write the synthetic images."""
        keep_freed_memory()
        self.settings = settings
        self.device = resolve_device(settings.device)
        self.precision = resolve_precision(settings.precision, self.device)
        self.folder = folder
        table = read_table(make_phantoms(folder / "images", count=settings.images, size=512, seed=0, splits=(1, 0, 0)))
        self.rows: tuple[Row, ...] = table.rows
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
            self.nets[key] = net.to(self.device)
        return self.nets[key].train(self.training)

    def dataset(self, recipe: str) -> SegmentationDataset:
        """The synthetic images under a recipe."""
        backbone = self.net("IPS_GT", "fp32").sam.backbone
        transform = build_transform(recipe, image_size=backbone.image_size, pixels=backbone.pixels)
        return SegmentationDataset(self.rows, transform, seed=0)

    @torch.no_grad()
    def upstream_encode(self, image: Tensor, *, taps: bool) -> Encoded:
        """The package's own modules, as published; image by image, since eight at once want 20 GiB with ViT-B."""
        sam = self.net("IPS_GT", "fp32").sam
        blocks = sam.backbone.tap_blocks if taps else ()
        encode = sam.backbone.encode
        return join([Encoded(*encode(sam.image_encoder, one, blocks, run_block)) for one in torch.split(image, 1)])

    def upstream_predict(self, name: str, image: Tensor) -> Prediction:
        """The original's way: the package's encoder and one decoding an image, in full precision."""
        net = self.net(name, "fp32")
        encoded = self.upstream_encode(image, taps=net.apm is not None)
        points = self.points if net.apm is None else net.apm(encoded.taps)
        each = []
        for i in range(len(image)):
            one = slice(i, i + 1)
            alone = Encoded(encoded.embedding[one], tuple(tap[one] for tap in encoded.taps))
            each.append(net.decode(alone, Points(points.xy[one], points.label[one])))
        return Prediction(torch.cat([p.mask_logits for p in each]), torch.cat([p.iou for p in each]), points)

    def predict(self, name: str, encoded: Encoded) -> Prediction:
        """Ours: from features, the whole batch at once."""
        net = self.net(name, self.precision)
        return net.decode(encoded, self.points if net.apm is None else None)

    # --- what is compared -------------------------------------------------------------------------

    def encoder(self) -> Comparison:
        """One image through the frozen encoder, with taps."""
        image = self.image[:1]
        variants = {"package's encoder, fp32": lambda: self.upstream_encode(image, taps=True)}
        for precision in dict.fromkeys(("fp32", self.precision)):
            net = self.net("APM_IPS_resnet", precision)
            variants[f"fused, {precision}"] = torch.no_grad()(lambda net=net: net.encode(image))
        plain, ours = self.upstream_encode(image, taps=True), self.net("APM_IPS_resnet", "fp32").encode(image)
        for a, b in zip((plain.embedding, *plain.taps), (ours.embedding, *ours.taps), strict=True):
            if not torch.allclose(a, b, atol=1e-4, rtol=1e-4):
                raise UserError(f"the fused encoder is wrong here: off by {float((a - b).abs().max()):g} in fp32.")
        return take_turns(f"encoder, {self.settings.sam}", "image", variants, repeats=self.settings.repeats)

    def step(self, name: str) -> Comparison:
        """One training step: forward, loss, backward, Adam."""
        self.training = True
        size, cached = self.settings.batch_size, self._features(name)
        optimizers = {
            precision: torch.optim.Adam(
                [p for p in self.net(name, precision).parameters() if p.requires_grad], lr=0.0, fused=fused
            )
            for precision, fused in (("fp32", False), (self.precision, True))
        }

        def learn(predict: Callable[[], Prediction], precision: str) -> None:
            prediction = predict()
            side = tuple(prediction.mask_logits.shape[-2:])
            value = bce_dice(prediction.mask_logits, resize_target(self.mask, (side[0], side[1])))
            torch.autograd.backward(value)
            optimizers[precision].step()
            optimizers[precision].zero_grad(set_to_none=True)

        variants = {
            "encoder in the step, decode one by one, fp32": lambda: learn(
                lambda: self.upstream_predict(name, self.image), "fp32"
            ),
            f"features cached, decode batched, {self.precision}": lambda: learn(
                lambda: self.predict(name, cached), self.precision
            ),
        }
        return take_turns(f"training step, {name}", f"{size} images", variants, repeats=self.settings.repeats)

    def validation(self, name: str) -> Comparison:
        """One batch of validation rows: forward only."""
        self.training = False
        cached = self._features(name)
        variants = {
            "encoder each time, decode one by one, fp32": torch.inference_mode()(
                lambda: self.upstream_predict(name, self.image)
            ),
            f"features cached, decode batched, {self.precision}": torch.inference_mode()(
                lambda: self.predict(name, cached)
            ),
        }
        size = self.settings.batch_size
        return take_turns(f"validation, {name}", f"{size} images", variants, repeats=self.settings.repeats)

    def epoch(self, name: str = "APM_IPS_resnet") -> Comparison:
        """Steps from features that are in memory, and from features that the loader brings from the disk."""
        self.training = True
        net, cached = self.net(name, self.precision), self._features(name)
        settings = CacheSettings("all", self.folder / "features", batch_size=self.settings.batch_size, quiet=True)
        served, _ = serve(
            self.dataset("basic_color"), net, settings, recipe="basic_color", training=True, device=self.device
        )
        assert isinstance(served, CachedDataset)
        loader = build_loader(
            served,
            collate_fn=collate_cached,
            batch_size=self.settings.batch_size,
            shuffle=True,
            seed=0,
            workers=0 if self.device.type == "cpu" else 2,
            drop_last=True,
        )
        steps = len(loader)
        if steps == 0:
            raise UserError(f"--images {self.settings.images} are fewer than --batch-size {self.settings.batch_size}.")

        def learn(encoded: Encoded, mask: Tensor) -> None:
            logits = self.predict(name, encoded).mask_logits
            torch.autograd.backward(bce_dice(logits, resize_target(mask, (logits.shape[-2], logits.shape[-1]))))
            net.zero_grad(set_to_none=True)

        def from_memory() -> None:
            for _ in range(steps):
                learn(cached, self.mask)

        def from_disk() -> None:
            for batch in loader:
                learn(batch.image.to(self.device), batch.mask.to(self.device))

        variants = {"features in memory": from_memory, "features from the disk": from_disk}
        per = steps * self.settings.batch_size
        return take_turns(f"cached epoch, {name}", "image", variants, repeats=self.settings.repeats, per=per)

    def evaluation(self, name: str = "APM_IPS_resnet") -> Comparison:
        """Reading, predicting and scoring every image, nothing cached."""
        self.training = False
        dataset = self.dataset("basic_color")

        def scored(net: torch.nn.Module, *, batch_size: int, workers: int) -> None:
            loader = build_loader(dataset, batch_size=batch_size, shuffle=False, seed=0, workers=workers)
            for row in predict_rows(net, loader, prompter=_automatic, device=self.device):
                score(row.logits, np.zeros((512, 512), bool) | (row.index % 2 == 0))

        variants = {
            "package's encoder, one by one, fp32": lambda: scored(_Upstream(self, name), batch_size=1, workers=0),
            f"fused, batched, {self.precision}": lambda: scored(
                self.net(name, self.precision), batch_size=self.settings.batch_size, workers=2
            ),
        }
        per, repeats = len(dataset), max(1, self.settings.repeats // 2)
        return take_turns(f"evaluation, {name}", "image", variants, repeats=repeats, per=per)

    def loader(self) -> Comparison:
        """Reading and augmenting with ``train2_color``, by worker processes."""
        dataset = self.dataset("train2_color")
        loaders = {
            f"{workers} workers": build_loader(
                dataset, batch_size=self.settings.batch_size, shuffle=True, seed=0, workers=workers
            )
            for workers in (0, 1, 2)
        }

        def drain(loader: Any) -> None:
            for _ in loader:
                pass

        variants = {name: (lambda loader=loader: drain(loader)) for name, loader in loaders.items()}
        return take_turns("loader, train2_color", "image", variants, repeats=self.settings.repeats, per=len(dataset))

    def metrics(self) -> Comparison:
        """All metrics of one pair of 256 × 256 pixels."""
        rng = np.random.default_rng(0)
        probability = rng.random((256, 256), np.float32)
        target = np.zeros((256, 256), bool)
        target[60:170, 80:200] = True
        many = 10
        work = {"evaluate_pair": lambda: [evaluate_pair(probability, target) for _ in range(many)]}
        return take_turns("metrics, 256 × 256", "image", work, repeats=self.settings.repeats, per=many)

    def start_up(self) -> Comparison:
        """The interpreter alone, and ``promise-train --help``."""
        variants = {
            "python -c pass": lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
            "promise-train --help": lambda: subprocess.run(
                [sys.executable, "-m", "promise.cli.train", "--help"], check=True, stdout=subprocess.DEVNULL
            ),
        }
        return take_turns("start-up", "call", variants, repeats=max(3, self.settings.repeats))

    def _features(self, name: str) -> Encoded:
        net = self.net(name, self.precision)
        with torch.no_grad():
            return net.encode(self.image)


class _Upstream(torch.nn.Module):
    """A net for :func:`promise.engine.predict_rows` that goes the original's way."""

    def __init__(self, bench: Bench, name: str) -> None:
        super().__init__()
        self.bench, self.name = bench, name

    def forward(self, image: Tensor, points: Points | None, boxes: Tensor | None = None) -> Prediction:
        return self.bench.upstream_predict(self.name, image)


def _automatic(batch: Batch) -> Any:
    return prompt_batch("auto", batch, num_points=16, seed=0, epoch=0)


PARTS = (
    "encoder",
    "step:IPS_GT",
    "step:APM_IPS_resnet",
    "validation:IPS_GT",
    "validation:APM_IPS_resnet",
    "epoch",
    "evaluation",
    "loader",
    "metrics",
    "start_up",
)


def benchmark(settings: Settings, *, parts: Sequence[str] = PARTS, output: Path | None = None) -> str:
    """Measure and write ``bench.json`` and ``bench.md``; returns the Markdown.

    Raises:
        UserError: an unknown part, or figures that cannot be right.
    """
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part", part, PARTS)
    done: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="promise-bench-") as folder:
        bench = Bench(settings, Path(folder))
        for part in parts:
            log.info("measuring %s", part)
            method, _, net = part.partition(":")
            done.append(getattr(bench, method)(*([net] if net else [])))
    _refuse_broken(done)
    record = {
        "settings": {**settings.__dict__, "precision": bench.precision},
        "environment": {**describe_environment(bench.device), "processor": processor()},
        "comparisons": [{"title": c.title, "unit": c.unit, "rows": c.rows} for c in done],
        "published_training": {net: total for net in NETS if (total := published_training(done, net))},
    }
    text = markdown(record)
    if output is not None:
        write_json(output / "bench.json", record)
        write_text(output / "bench.md", text)
    return text


def _refuse_broken(done: Sequence[Comparison]) -> None:
    broken = [
        f"{c.title}, {name}: {times}"
        for c in done
        for name, times in c.turns.items()
        if not times or not all(math.isfinite(t) and t > 0 for t in times)
    ]
    if broken:
        raise UserError("these figures cannot be right: " + "; ".join(broken))
