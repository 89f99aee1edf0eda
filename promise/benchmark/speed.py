"""Comparisons of this package with a baseline, part by part."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from promise.benchmark.bench import Bench
from promise.benchmark.config import IMAGE_SIDE, PLAIN_RECIPE, PROMPTER_NET, RANDOM_RECIPE
from promise.benchmark.limits import count_flop
from promise.benchmark.timings import ENCODER, STEP, VALIDATION, Comparison, Work, time_interleaved
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
    """Frozen encoder with taps, on one image."""
    image = bench.image[:1]
    variants = {"package's encoder, fp32": lambda: bench.upstream_encode(image, taps=True)}
    for precision in dict.fromkeys(("fp32", bench.precision)):
        net = bench.net(PROMPTER_NET, precision)
        variants[f"fused, {precision}"] = torch.no_grad()(lambda net=net: net.encode(image))
    baseline, fused = bench.upstream_encode(image, taps=True), bench.net(PROMPTER_NET, "fp32").encode(image)
    for a, b in zip((baseline.embedding, *baseline.taps), (fused.embedding, *fused.taps), strict=True):
        if not torch.allclose(a, b, atol=1e-4, rtol=1e-4):
            raise UserError(
                "the fused encoder is wrong on this machine: it differs from the encoder of the package by "
                f"{float((a - b).abs().max()):g} in fp32.",
                code="encoder-differs",
            )
    flop = count_flop(lambda: bench.upstream_encode(image, taps=True))
    return time_interleaved(
        f"{ENCODER}, {bench.settings.sam}",
        "image",
        variants,
        repeats=bench.settings.repeats,
        part=ENCODER,
        work={name: Work(flop, name.rpartition(" ")[2]) for name in variants},
    )


def descend(prediction: Prediction, mask: Tensor) -> None:
    """Compute the loss of a prediction and its gradients."""
    height, width = prediction.mask_logits.shape[-2:]
    torch.autograd.backward(bce_dice(prediction.mask_logits, resize_target(mask, (int(height), int(width)))))


def step(bench: Bench, name: str) -> Comparison:
    """Training step: forward, loss, backward, Adam."""
    bench.training = True
    cached = bench.features(name)
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
    return _time_batches(bench, STEP, name, variants)


def validation(bench: Bench, name: str) -> Comparison:
    """Validation of one batch: forward pass only."""
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
    return _time_batches(bench, VALIDATION, name, variants)


def _time_batches(bench: Bench, part: str, net: str, variants: Mapping[str, Callable[[], object]]) -> Comparison:
    """Time variants, whose names end with their precision, on a batch."""
    size, repeats = bench.settings.batch_size, bench.settings.repeats
    work = {name: Work(count_flop(call), name.rpartition(" ")[2]) for name, call in variants.items()}
    return time_interleaved(
        f"{part}, {net}", f"{size} images", variants, repeats=repeats, part=part, net=net, images=size, work=work
    )


def epoch(bench: Bench, name: str = PROMPTER_NET) -> Comparison:
    """Training epoch from features in memory, and from features that the loader reads from disk."""
    bench.training = True
    net, cached = bench.net(name, bench.precision), bench.features(name)
    loader = build_loader(
        _cached(bench, bench.dataset(PLAIN_RECIPE), net),
        collate_fn=collate_cached,
        batch_size=bench.settings.batch_size,
        shuffle=True,
        seed=0,
        workers=0 if bench.device.type == "cpu" else 2,
        drop_last=True,
    )
    steps = len(loader)
    if steps == 0:
        raise UserError(
            f"--images ({bench.settings.images}) must be at least as large as "
            f"--batch-size ({bench.settings.batch_size}).",
            code="images-fewer-than-batch-size",
        )

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
    return time_interleaved(f"cached epoch, {name}", "image", variants, repeats=bench.settings.repeats, per=per)


def evaluation(bench: Bench, name: str = PROMPTER_NET) -> Comparison:
    """Evaluation (reading, predicting, scoring): from pixels, and with features cached by an earlier evaluation."""
    bench.training = False
    size, dataset, net = bench.settings.batch_size, bench.dataset(PLAIN_RECIPE), bench.net(name, bench.precision)

    def scored(model: torch.nn.Module, loader: DataLoader[Any]) -> None:
        for row in predict_rows(model, loader, draw=lambda batch: None, device=bench.device):
            score(row.logits, np.zeros((IMAGE_SIDE, IMAGE_SIDE), bool) | (row.index % 2 == 0))

    single = build_loader(dataset, batch_size=1, shuffle=False, seed=0, workers=0)
    batched = build_loader(dataset, batch_size=size, shuffle=False, seed=0, workers=2)
    cached = build_loader(
        _cached(bench, dataset, net), collate_fn=collate_cached, batch_size=size, shuffle=False, seed=0, workers=0
    )
    variants = {
        "package's encoder, one by one, fp32": lambda: scored(_Upstream(bench, name), single),
        f"fused, batched, {bench.precision}": lambda: scored(net, batched),
        f"features cached, batched, {bench.precision}": lambda: scored(net, cached),
    }
    per, repeats = len(dataset), max(1, bench.settings.repeats // 2)
    return time_interleaved(f"evaluation, {name}", "image", variants, repeats=repeats, per=per)


def _cached(bench: Bench, dataset: SegmentationDataset, net: Promise) -> CachedDataset:
    """Return the dataset with cached features."""
    options = CacheOptions("all", bench.folder / "features", batch_size=bench.settings.batch_size, quiet=True)
    cached, _ = cached_or_raw(dataset, net, options, recipe=PLAIN_RECIPE, training=bench.training, device=bench.device)
    assert isinstance(cached, CachedDataset)
    return cached


def loader(bench: Bench) -> Comparison:
    """Reading and augmenting, by number of loader processes."""
    dataset = bench.dataset(RANDOM_RECIPE)
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
    return time_interleaved(
        f"loader, {RANDOM_RECIPE}", "image", variants, repeats=bench.settings.repeats, per=len(dataset)
    )


def metrics(bench: Bench) -> Comparison:
    """All metrics of one image of 256 × 256 pixels."""
    rng = np.random.default_rng(0)
    probability = rng.random((256, 256), np.float32)
    target = np.zeros((256, 256), bool)
    target[60:170, 80:200] = True
    many = 10
    work = {"evaluate_pair": lambda: [evaluate_pair(probability, target) for _ in range(many)]}
    return time_interleaved("metrics, 256 × 256", "image", work, repeats=bench.settings.repeats, per=many)


def start_up(bench: Bench) -> Comparison:
    """Start of the Python interpreter, and of ``promise-train --help``."""
    variants = {
        "python -c pass": lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
        "promise-train --help": lambda: subprocess.run(
            [sys.executable, "-m", "promise.cli.train", "--help"], check=True, stdout=subprocess.DEVNULL
        ),
    }
    return time_interleaved("start-up", "call", variants, repeats=max(3, bench.settings.repeats))


class _Upstream(torch.nn.Module):
    """The baseline as a net for :func:`promise.inference.loop.predict_rows`."""

    def __init__(self, bench: Bench, name: str) -> None:
        super().__init__()
        self.bench, self.name = bench, name

    def forward(self, image: Tensor, prompts: None, *, mask_index: None, fuse: None) -> Prediction:
        return self.bench.upstream_predict(self.name, image)
