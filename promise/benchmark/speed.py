"""What is fast here against the plain way, part by part; knows no flags and no files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from promise.benchmark.bench import Bench
from promise.benchmark.timings import Comparison, take_turns
from promise.data.dataset import SegmentationDataset, build_loader
from promise.evaluation.metrics import evaluate_pair
from promise.evaluation.scoring import score
from promise.features.dataset import CachedDataset, collate_cached
from promise.features.loader import CacheOptions, cached_or_raw
from promise.inference.loop import predict_rows
from promise.models.cpu.winograd import Conv3x3, plain_convolutions
from promise.models.promise import Promise
from promise.runtime.errors import UserError
from promise.training.losses import bce_dice, resize_target
from promise.types import Encoded, Prediction


def encoder(bench: Bench) -> Comparison:
    """One image through the frozen encoder, with taps."""
    image = bench.image[:1]
    variants = {"package's encoder, fp32": lambda: bench.upstream_encode(image, taps=True)}
    for precision in dict.fromkeys(("fp32", bench.precision)):
        net = bench.net("APM_IPS_resnet", precision)
        variants[f"fused, {precision}"] = torch.no_grad()(lambda net=net: net.encode(image))
    plain, ours = bench.upstream_encode(image, taps=True), bench.net("APM_IPS_resnet", "fp32").encode(image)
    for a, b in zip((plain.embedding, *plain.taps), (ours.embedding, *ours.taps), strict=True):
        if not torch.allclose(a, b, atol=1e-4, rtol=1e-4):
            raise UserError(f"the fused encoder is wrong here: off by {float((a - b).abs().max()):g} in fp32.")
    return take_turns(f"encoder, {bench.settings.sam}", "image", variants, repeats=bench.settings.repeats)


def descend(prediction: Prediction, mask: Tensor) -> None:
    """Loss and gradients of a prediction."""
    height, width = prediction.mask_logits.shape[-2:]
    torch.autograd.backward(bce_dice(prediction.mask_logits, resize_target(mask, (int(height), int(width)))))


def step(bench: Bench, name: str) -> Comparison:
    """One training step: forward, loss, backward, Adam."""
    bench.training = True
    size, cached = bench.settings.batch_size, bench.features(name)
    optimizers = {
        precision: torch.optim.Adam(
            [p for p in bench.net(name, precision).parameters() if p.requires_grad], lr=0.0, fused=fused
        )
        for precision, fused in (("fp32", False), (bench.precision, True))
    }

    def learn(predict: Callable[[], Prediction], precision: str) -> None:
        descend(predict(), bench.mask)
        optimizers[precision].step()
        optimizers[precision].zero_grad(set_to_none=True)

    variants = {
        "encoder in the step, decode one by one, fp32": lambda: learn(
            lambda: bench.upstream_predict(name, bench.image), "fp32"
        ),
        f"features cached, decode batched, {bench.precision}": lambda: learn(
            lambda: bench.predict(name, cached), bench.precision
        ),
    }
    has_winograd = any(isinstance(module, Conv3x3) for module in bench.net(name, bench.precision).modules())
    if has_winograd and bench.device.type == "cpu" and bench.precision == "fp32":
        variants["features cached, decode batched, PyTorch's convolutions, fp32"] = lambda: learn(
            plain_convolutions()(lambda: bench.predict(name, cached)), "fp32"
        )
    return take_turns(f"training step, {name}", f"{size} images", variants, repeats=bench.settings.repeats)


def validation(bench: Bench, name: str) -> Comparison:
    """One batch of validation rows: forward only."""
    bench.training = False
    cached = bench.features(name)
    variants = {
        "encoder each time, decode one by one, fp32": torch.inference_mode()(
            lambda: bench.upstream_predict(name, bench.image)
        ),
        f"features cached, decode batched, {bench.precision}": torch.inference_mode()(
            lambda: bench.predict(name, cached)
        ),
    }
    size = bench.settings.batch_size
    return take_turns(f"validation, {name}", f"{size} images", variants, repeats=bench.settings.repeats)


def epoch(bench: Bench, name: str = "APM_IPS_resnet") -> Comparison:
    """Steps from features that are in memory, and from features that the loader brings from the disk."""
    bench.training = True
    net, cached = bench.net(name, bench.precision), bench.features(name)
    loader = build_loader(
        _cached(bench, bench.dataset("basic_color"), net),
        collate_fn=collate_cached,
        batch_size=bench.settings.batch_size,
        shuffle=True,
        seed=0,
        workers=0 if bench.device.type == "cpu" else 2,
        drop_last=True,
    )
    steps = len(loader)
    if steps == 0:
        raise UserError(f"--images {bench.settings.images} are fewer than --batch-size {bench.settings.batch_size}.")

    def learn(encoded: Encoded, mask: Tensor) -> None:
        descend(bench.predict(name, encoded), mask)
        net.zero_grad(set_to_none=True)

    def from_memory() -> None:
        for _ in range(steps):
            learn(cached, bench.mask)

    def from_disk() -> None:
        for batch in loader:
            learn(batch.image.to(bench.device), batch.mask.to(bench.device))

    variants = {"features in memory": from_memory, "features from the disk": from_disk}
    per = steps * bench.settings.batch_size
    return take_turns(f"cached epoch, {name}", "image", variants, repeats=bench.settings.repeats, per=per)


def evaluation(bench: Bench, name: str = "APM_IPS_resnet") -> Comparison:
    """Reading, predicting and scoring every image: from pixels, and with features that an earlier evaluation left."""
    bench.training = False
    size, dataset, ours = bench.settings.batch_size, bench.dataset("basic_color"), bench.net(name, bench.precision)

    def scored(net: torch.nn.Module, loader: DataLoader[Any]) -> None:
        for row in predict_rows(net, loader, draw=lambda batch: None, device=bench.device):
            score(row.logits, np.zeros((512, 512), bool) | (row.index % 2 == 0))

    plain = build_loader(dataset, batch_size=1, shuffle=False, seed=0, workers=0)
    batched = build_loader(dataset, batch_size=size, shuffle=False, seed=0, workers=2)
    cached = build_loader(
        _cached(bench, dataset, ours), collate_fn=collate_cached, batch_size=size, shuffle=False, seed=0, workers=0
    )
    variants = {
        "package's encoder, one by one, fp32": lambda: scored(_Upstream(bench, name), plain),
        f"fused, batched, {bench.precision}": lambda: scored(ours, batched),
        f"features cached, batched, {bench.precision}": lambda: scored(ours, cached),
    }
    per, repeats = len(dataset), max(1, bench.settings.repeats // 2)
    return take_turns(f"evaluation, {name}", "image", variants, repeats=repeats, per=per)


def _cached(bench: Bench, dataset: SegmentationDataset, net: Promise) -> CachedDataset:
    """The dataset with its features on the disk."""
    settings = CacheOptions("all", bench.folder / "features", batch_size=bench.settings.batch_size, quiet=True)
    served, _ = cached_or_raw(
        dataset, net, settings, recipe="basic_color", training=bench.training, device=bench.device
    )
    assert isinstance(served, CachedDataset)
    return served


def loader(bench: Bench) -> Comparison:
    """Reading and augmenting with ``train2_color``, by worker processes."""
    dataset = bench.dataset("train2_color")
    loaders = {
        f"{workers} workers": build_loader(
            dataset, batch_size=bench.settings.batch_size, shuffle=True, seed=0, workers=workers
        )
        for workers in (0, 1, 2)
    }

    def drain(loader: Any) -> None:
        for _ in loader:
            pass

    variants = {name: (lambda loader=loader: drain(loader)) for name, loader in loaders.items()}
    return take_turns("loader, train2_color", "image", variants, repeats=bench.settings.repeats, per=len(dataset))


def metrics(bench: Bench) -> Comparison:
    """All metrics of one pair of 256 × 256 pixels."""
    rng = np.random.default_rng(0)
    probability = rng.random((256, 256), np.float32)
    target = np.zeros((256, 256), bool)
    target[60:170, 80:200] = True
    many = 10
    work = {"evaluate_pair": lambda: [evaluate_pair(probability, target) for _ in range(many)]}
    return take_turns("metrics, 256 × 256", "image", work, repeats=bench.settings.repeats, per=many)


def start_up(bench: Bench) -> Comparison:
    """The interpreter alone, and ``promise-train --help``."""
    variants = {
        "python -c pass": lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
        "promise-train --help": lambda: subprocess.run(
            [sys.executable, "-m", "promise.cli.train", "--help"], check=True, stdout=subprocess.DEVNULL
        ),
    }
    return take_turns("start-up", "call", variants, repeats=max(3, bench.settings.repeats))


class _Upstream(torch.nn.Module):
    """A net for :func:`promise.inference.loop.predict_rows` that goes the original's way."""

    def __init__(self, bench: Bench, name: str) -> None:
        super().__init__()
        self.bench, self.name = bench, name

    def forward(self, image: Tensor, prompts: None, *, mask_index: int) -> Prediction:
        return self.bench.upstream_predict(self.name, image)
