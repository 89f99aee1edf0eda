"""Train one linear layer on the cached features of a frozen SAM: what the features tell without a decoder.

    python docs/notebook/linear_probe.py runs/pranet/train.csv runs/probe --test runs/pranet/kvasir.csv

Not part of the package; imports unet_baseline.py from its own folder. Embedding and taps are concatenated, standardised
per channel with the mean and the deviation over all training images, and mapped to one logit per position by a 1 × 1
convolution. AdamW with a cosine schedule and warm-up, BCE + Dice at the size of the input. Flips and transpositions
would not change the loss of a 1 × 1 convolution on the same features, so nothing is augmented. The best epoch is
selected by the Dice of the validation rows.

Writes result.json, best.pt and, for each test CSV, the scores of its images to OUT, as unet_baseline.py does.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from unet_baseline import (
    Trained,
    add_common_arguments,
    count_parameters,
    finish,
    learning_rate_factor,
    mean_dice,
    read_splits,
    report,
    require_batch,
    score_tests,
    train_step,
)

from promise import build_net
from promise.cli.common import run
from promise.data.table import Row
from promise.features.loader import CacheOptions, LoaderOptions, row_loader
from promise.features.store import cache_folder
from promise.models.cpu import optimize_for_cpu
from promise.runtime.memory import keep_freed_memory
from promise.types import Batch, Encoded

NET = "APM_resnet"  # any net that requests the taps of the encoder; its learned parts are not used
Loader = Callable[[Sequence[Row], bool], Any]  # rows, whether they are shuffled → loader of batches


class Probe(nn.Module):
    """A linear layer on standardised features."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor, *, side: int) -> None:
        """Create a probe whose logits are all 0.

        Args:
            mean: (C,) of each channel.
            deviation: (C,) of each channel.
            side: S, pixels of the logits.
        """
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.side = side
        self.layer = nn.Linear(len(mean), 1)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, E, E) → logits (B, 1, S, S) float32."""
        # The standardisation is part of the layer, so that the features are read once and in their own type.
        weight = self.layer.weight / self.deviation
        bias = self.layer.bias - weight @ self.mean
        logits = F.conv2d(features.float(), weight[:, :, None, None], bias)
        return F.interpolate(logits, size=(self.side, self.side), mode="bilinear", align_corners=False)


def features_of(batch: Batch) -> Tensor:
    """Embedding and taps (B, C, E, E) of a batch of cached features."""
    assert isinstance(batch.image, Encoded), "the features are not cached"
    return torch.cat((batch.image.embedding, *batch.image.taps), dim=1)


def channel_statistics(loader: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of each channel over all images and positions."""
    total, squares, count = torch.zeros(()), torch.zeros(()), 0
    for batch in loader:
        features = features_of(batch).float()
        total = total + features.sum((0, 2, 3)).double()
        squares = squares + features.square().sum((0, 2, 3)).double()
        count += features.numel() // features.shape[1]
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=1e-12).sqrt().float()


@torch.inference_mode()
def predict(probe: Probe, loader: Any) -> Tensor:
    """Logits (N, 1, S, S) of the rows of a loader, in order."""
    return torch.cat([probe(features_of(batch)) for batch in loader])


def validate(probe: Probe, loader: Any) -> float:
    """Mean Dice at the size of the input; NaN without rows."""
    if loader is None:
        return math.nan
    return mean_dice(predict(probe, loader), torch.cat([batch.mask for batch in loader]))


def train(probe: Probe, loader: Any, val: Any, args: argparse.Namespace) -> Trained:
    """Train the layer, validate after each epoch and return the best one."""
    optimizer = torch.optim.AdamW(probe.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    trained = Trained(state={}, epochs=args.epochs)
    steps, step = args.epochs * len(loader), 0
    for epoch in range(1, args.epochs + 1):
        started, losses = time.perf_counter(), []
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * learning_rate_factor(step, steps)
            losses.append(train_step(probe, optimizer, features_of(batch), batch.mask))
            step += 1
        dice = validate(probe, val)
        seconds = time.perf_counter() - started
        trained.add(epoch, loss=float(np.mean(losses)), val_dice=dice, seconds=seconds, net=probe)
    trained.seconds_per_epoch = float(np.mean([entry["seconds"] for entry in trained.history]))
    return trained


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The settings of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    add_common_arguments(parser)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--sam", default="lite_medsam", help="backbone, as in promise-train")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="type of the encoder")
    parser.add_argument("--cache-dir", help="folder of the features, as in promise-train")
    return parser.parse_args(arguments)


def build_loaders(args: argparse.Namespace) -> tuple[Loader, int]:
    """A function that loads rows from cached features, which it computes if they are missing; the side of the input."""
    net = optimize_for_cpu(build_net(NET, sam=args.sam, precision=args.precision, seed=args.seed)).eval()
    cache = CacheOptions("all", cache_folder(args.cache_dir), workers=0)

    def load(rows: Sequence[Row], shuffle: bool) -> Any:
        options = LoaderOptions(args.batch_size, workers=0, shuffle=shuffle)
        device = torch.device("cpu")
        return row_loader(rows, net, options, cache, recipe="none", seed=args.seed, device=device, training=True)

    return load, net.sam.backbone.image_size


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, select an epoch, score the test sets and write the results."""
    started = time.perf_counter()
    args = parse_arguments(arguments)
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    train_rows, val_rows, tests = read_splits(args)
    require_batch(train_rows, args)
    load, side = build_loaders(args)
    loader, val = load(train_rows, True), load(val_rows, False) if val_rows else None
    probe = Probe(*channel_statistics(loader), side=side)
    report(f"{len(train_rows)} train and {len(val_rows)} val images, {count_parameters(probe):,} parameters")
    prepared = time.perf_counter()
    trained = train(probe, loader, val, args)
    trained_at = time.perf_counter()
    probe.load_state_dict(trained.state)
    torch.save(trained.state, args.out / "best.pt")
    scores = score_tests(tests, lambda rows: {"plain": predict(probe, load(rows, False))}, args.out)
    finish(
        args,
        trained,
        scores,
        clock=(started, prepared, trained_at),
        parameters=count_parameters(probe),
        train_images=len(train_rows),
        val_images=len(val_rows),
    )
    return 0


if __name__ == "__main__":
    sys.exit(run("linear_probe.py", main))
