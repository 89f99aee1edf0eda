"""Optimisers and learning rate schedules by name; knows no models, no data and no configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from promise.runtime.errors import UserError, unknown_name

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULERS = ("constant", "cosine", "restarts")
_SPELLINGS = {
    "lr": "constant",
    "cos": "cosine",
    "cosineannealing": "cosine",
    "cosinewarmrestarts": "restarts",
}
_REFERENCE_SPELLING = re.compile(
    r"(?P<kind>[A-Za-z]+)(_(?P<epochs>\d+))?(_(?P<least>\d*\.?\d+(e-?\d+)?))?", re.IGNORECASE
)


def check_optimizer(name: str) -> None:
    """Raise ``UserError`` (code ``unknown-optimizer``) for an unknown optimiser; lists the known ones."""
    if name.lower() not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)


FACTOR = "lr_factor"  # of a parameter group: its learning rate is that of the schedule times this number
SLOW = 0.25  # learning rate of pretrained parameters, as a fraction of that of the others


def build_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    slow: Iterable[nn.Parameter] = (),
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Build an optimiser of the trainable parameters; parameters without gradients are left out.

    Args:
        name: adam, adamw or sgd.
        parameters: of the net.
        slow: those of them that have :data:`SLOW` times the learning rate.
        lr: initial learning rate.
        weight_decay: of all parameters.
        momentum: of sgd.
        fused: use PyTorch's fused implementation; the device must have it.

    Raises:
        UserError: unknown name, code ``unknown-optimizer``; no trainable parameter, code ``nothing-to-train``.
    """
    check_optimizer(name)
    pretrained = {id(p) for p in slow}
    learning = [p for p in parameters if p.requires_grad]
    if not learning:
        raise UserError(
            "nothing in this net can be trained: choose another --net or --freeze.", code="nothing-to-train"
        )
    groups: list[dict[str, Any]] = [{"params": [p for p in learning if id(p) not in pretrained]}]
    if pretrained:
        groups.append({"params": [p for p in learning if id(p) in pretrained], FACTOR: SLOW})
    match name.lower():
        case "adam":
            return torch.optim.Adam(groups, lr=lr, weight_decay=weight_decay, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=fused)
        case _:
            return torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay, momentum=momentum, fused=fused)


@dataclass(frozen=True)
class Schedule:
    """A learning rate as a function of time in epochs.

    A closed form: PyTorch's ``CosineAnnealingLR`` computes each value from the one before, so that a resumed run would
    differ in the last bits, and rises again after its end. ``CosineAnnealingWarmRestarts`` takes whole epochs only and
    no warm-up before it.
    """

    kind: str  # constant, cosine, restarts
    lr: float  # initial learning rate
    epochs: float  # end of cosine; from then on, the learning rate is min_lr
    min_lr: float = 0.0
    cycle: float = 10.0  # epochs per cycle of restarts
    warmup: float = 0.0  # epochs of linear warm-up, which precede the schedule

    def __call__(self, epoch: float) -> float:
        """The learning rate at a time, in epochs from 0, with fractions."""
        if epoch < self.warmup:
            # The offset keeps the first step above 0. LinearLR has a start factor instead: other values.
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
    """Parse ``constant``, ``cosine``, ``restarts`` or the reference implementation's spelling, such as ``LR_200_1e-7``.

    In that spelling the first number is the length of a cosine in epochs and the second its final value; ``LR`` is
    constant and uses neither. Other arguments are those of :class:`Schedule`.

    Raises:
        UserError: unknown name, code ``unknown-scheduler``; lists the known ones and the nearest.
    """
    match = _REFERENCE_SPELLING.fullmatch(text)
    kind = match["kind"].lower() if match else text
    kind = _SPELLINGS.get(kind, kind)
    if match is None or kind not in SCHEDULERS:
        raise unknown_name("scheduler", text, (*SCHEDULERS, "LR_200_1e-7"))
    length, least = match["epochs"], match["least"]
    if not all(math.isfinite(float(number)) for number in (length, least) if number):
        raise unknown_name("scheduler", text, (*SCHEDULERS, "LR_200_1e-7"))
    return Schedule(
        kind,
        lr,
        float(length) if length and kind == "cosine" else epochs,
        float(least) if least else min_lr,
        float(length) if length else cycle,
        warmup,
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[float], float],
    *,
    steps_per_epoch: int,
    steps_done: int = 0,
) -> LambdaLR:
    """Build a scheduler that is stepped after each step of the optimiser, and set the first learning rate.

    Args:
        optimizer: a parameter group with an entry :data:`FACTOR` has the learning rate of the schedule times its value.
        schedule: time in epochs, with fractions → learning rate.
        steps_per_epoch: optimiser steps per epoch.
        steps_done: optimiser steps before this one, in a resumed run.
    """

    def learning_rate(step: int) -> float:
        epoch, of_epoch = divmod(step, steps_per_epoch)
        return schedule(epoch + of_epoch / steps_per_epoch)

    for group in optimizer.param_groups:
        # LambdaLR multiplies by it: with 1, the learning rate is the value of the schedule, exactly.
        group["initial_lr"] = group.get(FACTOR, 1.0)
    return LambdaLR(optimizer, learning_rate, last_epoch=steps_done - 1)
