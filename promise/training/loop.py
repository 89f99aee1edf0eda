"""One training epoch and one validation; knows no files, no configuration, no net names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from promise.models.quality import has_lesion, quality_features
from promise.training.losses import Criterion, LossTerms
from promise.training.noisy_prompts import NoisyDraw
from promise.types import Batch, Prediction, Prompts

# Returns the prompts of a batch; None: the net makes its own.
DrawPrompts: TypeAlias = Callable[[Batch], Prompts | NoisyDraw | None]


@dataclass
class EpochSums:
    """What this process has done in the current epoch."""

    batches: int = 0
    steps: int = 0  # of the optimiser
    images: int = 0  # without those of skipped batches
    losses: dict[str, Tensor] = field(default_factory=dict)  # sums over the images, on the device
    recent: list[tuple[tuple[str, ...], Tensor]] = field(default_factory=list)  # names and loss of the last batches

    def add(self, batch: Batch, loss: LossTerms) -> None:
        """Add a batch. The sums stay on the device: reading them here would make the host wait in every step."""
        self.images += len(batch)
        self.recent.append((batch.name, loss.total.detach()))
        for name, value in loss.named().items():
            self.losses[name] = self.losses.get(name, 0) + value.detach() * len(batch)

    def find_infinite(self) -> tuple[str, ...] | None:
        """Names of the first batch since the last call whose loss is infinite or NaN; ``None``: there is none."""
        recent, self.recent = self.recent, []
        finite = torch.stack([loss for _, loss in recent]).isfinite().tolist() if recent else []
        return next((names for (names, _), good in zip(recent, finite, strict=True) if not good), None)

    def state_dict(self) -> dict[str, Any]:
        """What is needed to resume; tensors are on the CPU."""
        losses = {name: value.cpu() for name, value in self.losses.items()}
        return {"batches": self.batches, "steps": self.steps, "images": self.images, "losses": losses}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> EpochSums:
        """What :meth:`state_dict` returned."""
        losses = {name: value.to(device) for name, value in state["losses"].items()}
        return cls(state["batches"], state["steps"], state["images"], losses)


def train_epoch(  # noqa: PLR0913
    net: nn.Module,
    batches: Iterable[Batch],
    *,
    draw: DrawPrompts,
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    after_step: Callable[[int, LossTerms | None], None] = lambda step, loss: None,
    clip_norm: float = 0.0,
    sums: EpochSums | None = None,
    skip: Callable[[Batch, LossTerms], None] | None = None,
) -> dict[str, float]:
    """Train one epoch.

    Args:
        net: prepared by ``accelerator``, as is ``optimizer``.
        batches: on the CPU.
        draw: returns the prompts of a batch.
        criterion: the loss of a prediction.
        optimizer: of the learned parameters.
        accelerator: devices, gradient accumulation, gradient scaling.
        after_step: called after each update of the weights, with the number of steps of this epoch so far and the loss
            of the last batch, or ``None`` for a skipped step; sets the next learning rate.
        clip_norm: largest gradient norm; 0: no clipping.
        sums: what has been done of the epoch, if ``batches`` are the rest of it; changed in place, before
            ``after_step`` is called.
        skip: called with a batch whose loss is infinite or NaN in any process, and its loss in this one; raises, or
            lets the step be skipped. ``None``: losses are not checked.

    Returns:
        ``loss`` and, if it has several terms, ``loss_<term>``: means over the images of all processes; NaN if training
        has diverged.
    """
    net.train()
    sums = EpochSums() if sums is None else sums
    skipped = False  # whether the current step is
    for batch in batches:
        with accelerator.accumulate(net):
            prediction, moved = predict(net, batch, draw, accelerator.device, decode=criterion.decodes)
            loss = criterion(prediction, moved)
            if skip is not None and _is_infinite(loss.total, accelerator):
                skip(batch, loss)
                skipped = True
            if not skipped:
                _learn(net, loss.total, optimizer, accelerator, clip_norm)
            optimizer.zero_grad(set_to_none=True)  # of accelerate: it does nothing between accumulated batches
        sums.batches += 1
        if not skipped:
            sums.add(batch, loss)
        if accelerator.sync_gradients:
            sums.steps += 1
            after_step(sums.steps, None if skipped else loss)
            skipped = False
    count = torch.tensor(float(sums.images), device=accelerator.device)
    reduced = accelerator.reduce(torch.stack((*sums.losses.values(), count)))
    return {name: float(total / reduced[-1]) for name, total in zip(sums.losses, reduced[:-1], strict=True)}


def _learn(
    net: nn.Module, loss: Tensor, optimizer: torch.optim.Optimizer, accelerator: Accelerator, clip_norm: float
) -> None:
    accelerator.backward(loss)
    if accelerator.sync_gradients and clip_norm > 0:
        accelerator.clip_grad_norm_(net.parameters(), clip_norm)
    optimizer.step()


def _is_infinite(loss: Tensor, accelerator: Accelerator) -> bool:
    """Whether the loss is infinite or NaN in any process."""
    return bool(accelerator.reduce((~loss.detach().isfinite()).float()) > 0)


@torch.inference_mode()
def validate(
    net: nn.Module,
    batches: Iterable[Batch],
    *,
    draw: DrawPrompts,
    criterion: Criterion,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Compute validation scores, without gradients; arguments as in :func:`train_epoch`.

    Returns:
        ``loss``, ``dice``, ``iou`` and, if the loss has several terms, ``loss_<term>``: means over the images of all
        processes; Dice and IoU at input resolution. If the ground truth has no foreground, Dice and IoU are 1 for an
        empty prediction and 0 otherwise.
    """
    net.eval()
    rows, names = [], [""]
    for batch in batches:
        prediction, moved = predict(net, batch, draw, accelerator.device)
        # Image by image, so that the mean does not depend on the batch size.
        light = replace(moved, image=moved.mask)  # a criterion reads no pixels, so they need not be copied
        losses = [criterion(prediction.take([i]), light.take([i])).named() for i in range(len(batch))]
        dice, iou = overlap(prediction.mask_logits, moved.mask)
        scores = {name: torch.stack([one[name] for one in losses]) for name in losses[0]} | {"dice": dice, "iou": iou}
        names = list(scores)
        rows.append(torch.stack((batch.index.to(accelerator.device), *scores.values()), dim=1).double())
    mean = _gather(rows, accelerator).mean(dim=0)
    return dict(zip(names, mean.tolist(), strict=True))


@torch.inference_mode()
def measure_quality(
    net: nn.Module, batches: Iterable[Batch], *, draw: DrawPrompts, accelerator: Accelerator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features (R, F) and measured IoU (R,) of the automatic masks with a lesion; arguments as in :func:`validate`.

    The rows are those of all processes, in the order of the table.
    """
    net.eval()
    rows = []
    for batch in batches:
        prediction, moved = predict(net, batch, draw, accelerator.device)
        _, iou = overlap(prediction.mask_logits, moved.mask)
        parts = (has_lesion(prediction)[:, None], iou[:, None], quality_features(prediction))
        rows.append(torch.cat((batch.index.to(accelerator.device)[:, None], *parts), dim=1).double())
    table = _gather(rows, accelerator)
    found, iou, features = table[:, 0] > 0, table[:, 1], table[:, 2:]
    return features[found].numpy(), iou[found].numpy()


def _gather(rows: Sequence[Tensor], accelerator: Accelerator) -> Tensor:
    """The rows (R, 1 + K) of all processes on the CPU, sorted by their first column, without that column."""
    table: Tensor = accelerator.gather(torch.cat(tuple(rows))).cpu()
    # Several processes pad their last batch with rows of another process: count each row once.
    _, first = np.unique(table[:, 0].numpy(), return_index=True)
    return table[torch.from_numpy(first), 1:]


def has_finite_weights(net: nn.Module) -> bool:
    """Whether all trainable parameters are finite."""
    return all(bool(p.isfinite().all()) for p in net.parameters() if p.requires_grad)


def predict(
    net: nn.Module, batch: Batch, draw: DrawPrompts, device: torch.device, *, decode: bool = True
) -> tuple[Prediction, Batch]:
    """The prediction for a batch, and the batch on the device; prompts are drawn on the CPU."""
    prompts = draw(batch)
    batch = replace(
        batch, image=batch.image.to(device, non_blocking=True), mask=batch.mask.to(device, non_blocking=True)
    )
    given = None if prompts is None else prompts.to(device)
    # Nets of other people's classes need not know the argument.
    prediction: Prediction = net(batch.image, given) if decode else net(batch.image, given, decode=False)
    return prediction, batch


def overlap(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Dice and IoU (B,) of logits (B, 1, h, w), resized to the target (B, 1, S, S) and thresholded at 0."""
    if logits.shape[-2:] != target.shape[-2:]:
        logits = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
    predicted, expected = (logits >= 0).flatten(1), (target > 0.5).flatten(1)
    both = (predicted & expected).sum(1)
    either = (predicted | expected).sum(1)
    empty = either == 0
    iou = torch.where(empty, 1.0, both / either.clamp(min=1))
    return torch.where(empty, 1.0, 2 * both / (both + either).clamp(min=1)), iou
