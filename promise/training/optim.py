"""Optimisers and learning-rate schedules by name; knows no models, no data and no configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from promise.runtime.errors import UserError, unknown_name

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULERS = ("constant", "cosine", "restarts")
_SPELLINGS = {
    "lr": "constant",
    "cos": "cosine",
    "cosineannealing": "cosine",
    "cosinewarmrestarts": "restarts",
}
_ORIGINAL = re.compile(r"(?P<kind>[A-Za-z]+)(_(?P<epochs>\d+))?(_(?P<least>\d*\.?\d+(e-?\d+)?))?", re.IGNORECASE)


def check_optimizer(name: str) -> None:
    """Raise ``UserError`` for an optimiser that is not known; lists the known ones and the nearest."""
    if name.lower() not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)


def build_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Build an optimiser over the parameters that learn; parameters without gradients are left out.

    Args:
        name: adam, adamw or sgd.
        parameters: of the net.
        lr: first learning rate.
        weight_decay: of all parameters.
        momentum: of sgd.
        fused: PyTorch's one-kernel step, where the device has it.

    Raises:
        UserError: unknown name, or nothing that learns.
    """
    check_optimizer(name)
    learning = [p for p in parameters if p.requires_grad]
    if not learning:
        raise UserError("nothing in this net can be trained: choose another --net or --freeze.")
    match name.lower():
        case "adam":
            return torch.optim.Adam(learning, lr=lr, weight_decay=weight_decay, fused=fused)
        case "adamw":
            return torch.optim.AdamW(learning, lr=lr, weight_decay=weight_decay, fused=fused)
        case _:
            return torch.optim.SGD(learning, lr=lr, weight_decay=weight_decay, momentum=momentum, fused=fused)


@dataclass(frozen=True)
class Schedule:
    """A learning rate as a function of the epoch, fractions included; lasts ``epochs``."""

    kind: str
    lr: float
    epochs: float
    min_lr: float = 0.0
    cycle: float = 10.0
    warmup: float = 0.0

    def __call__(self, epoch: float) -> float:
        """Learning rate at a time, counted in epochs from 0."""
        if epoch < self.warmup:
            return self.lr * (epoch + 1e-3) / self.warmup
        if self.kind == "constant":
            return self.lr
        span = self.epochs - self.warmup if self.kind == "cosine" else self.cycle
        at = (epoch - self.warmup) / max(span, 1e-9)
        at = min(at, 1.0) if self.kind == "cosine" else at % 1.0
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * at)) / 2


def parse_schedule(
    text: str, *, lr: float, epochs: float, min_lr: float = 0.0, cycle: float = 10.0, warmup: float = 0.0
) -> Schedule:
    """Understand ``constant``, ``cosine``, ``restarts`` and the original's ``LR_200_1e-7``.

    In the original's spelling the first number is the length of a cosine in epochs and the second its end;
    ``LR`` is constant and uses neither.

    Raises:
        UserError: unknown name; lists the known ones and the nearest.
    """
    match = _ORIGINAL.fullmatch(text)
    kind = match["kind"].lower() if match else text
    kind = _SPELLINGS.get(kind, kind)
    if match is None or kind not in SCHEDULERS:
        raise unknown_name("scheduler", text, (*SCHEDULERS, "LR_200_1e-7"))
    length, least = match["epochs"], match["least"]
    return Schedule(
        kind,
        lr,
        float(length) if length and kind == "cosine" else epochs,
        float(least) if least else min_lr,
        float(length) if length else cycle,
        warmup,
    )
