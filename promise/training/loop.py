"""One training epoch and one validation; knows no files, no configuration, no net names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from promise.training.losses import Criterion, LossTerms
from promise.types import Batch, Prediction, Prompts

# Supplies the prompts of a batch; None leaves them to the net.
DrawPrompts: TypeAlias = Callable[[Batch], Prompts | None]


def train_epoch(
    net: nn.Module,
    batches: Iterable[Batch],
    *,
    draw: DrawPrompts,
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    before_step: Callable[[int], None] = lambda step: None,
    after_step: Callable[[int, LossTerms], None] = lambda step, loss: None,
    clip_norm: float = 0.0,
) -> dict[str, float]:
    """Train once over the batches.

    Args:
        net: prepared by ``accelerator``, as is ``optimizer``.
        batches: on the CPU.
        draw: supplies the prompts of a batch.
        criterion: the loss of a prediction.
        optimizer: of the learned parameters.
        accelerator: devices, gradient accumulation, scaling.
        before_step: called with the number of the step within the epoch; sets the learning rate.
        after_step: called when the weights have been updated, with the number of steps done in this epoch and the
            loss of the last batch.
        clip_norm: largest gradient norm; 0: no clipping.

    Returns:
        ``loss`` and, where it has several terms, ``loss_<term>``: means over the images; not-a-number when training
        has diverged.
    """
    net.train()
    step, images = 0, 0
    sums: dict[str, Tensor] = {}
    for batch in batches:
        with accelerator.accumulate(net):
            before_step(step)
            prediction, moved = _predict(net, batch, draw, accelerator.device)
            loss = criterion(prediction, moved)
            accelerator.backward(loss.total)
            if accelerator.sync_gradients:
                step += 1
                if clip_norm > 0:
                    accelerator.clip_grad_norm_(net.parameters(), clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if accelerator.sync_gradients:
            after_step(step, loss)
        # Summed on the device: reading it here would make the host wait at every step.
        for name, value in loss.named().items():
            sums[name] = sums.get(name, 0) + value.detach() * len(batch)
        images += len(batch)
    count = torch.tensor(float(images), device=accelerator.device)
    reduced = accelerator.reduce(torch.stack((*sums.values(), count)))
    return {name: float(total / reduced[-1]) for name, total in zip(sums, reduced[:-1], strict=True)}


@torch.inference_mode()
def validate(
    net: nn.Module,
    batches: Iterable[Batch],
    *,
    draw: DrawPrompts,
    criterion: Criterion,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Named scores, means over the batches' images at input resolution, without gradients.

    Returns:
        ``loss``, ``dice``, ``iou`` and, where the loss has several terms, ``loss_<term>``. A ground truth without
        foreground scores 1 for an empty prediction and 0 otherwise.
    """
    net.eval()
    rows, names = [], [""]
    for batch in batches:
        prediction, moved = _predict(net, batch, draw, accelerator.device)
        # Image by image, so that the mean does not depend on how images share batches.
        light = replace(moved, image=moved.mask)  # a criterion reads no pixels: they need not be copied
        losses = [criterion(prediction.take([i]), light.take([i])).named() for i in range(len(batch))]
        dice, iou = overlap(prediction.mask_logits, moved.mask)
        scores = {name: torch.stack([one[name] for one in losses]) for name in losses[0]} | {"dice": dice, "iou": iou}
        names = list(scores)
        rows.append(torch.stack((batch.index.to(accelerator.device), *scores.values()), dim=1).double())
    table = accelerator.gather(torch.cat(rows)).cpu()
    # Several processes pad their last batch with rows that another has: count each row once.
    _, first = np.unique(table[:, 0].numpy(), return_index=True)
    mean = table[torch.from_numpy(first), 1:].mean(dim=0)
    return dict(zip(names, mean.tolist(), strict=True))


def _predict(net: nn.Module, batch: Batch, draw: DrawPrompts, device: torch.device) -> tuple[Prediction, Batch]:
    """The prediction for a batch on the CPU, where its prompts are drawn, and the batch on the device."""
    prompts = draw(batch)
    batch = replace(
        batch, image=batch.image.to(device, non_blocking=True), mask=batch.mask.to(device, non_blocking=True)
    )
    prediction: Prediction = net(batch.image, None if prompts is None else prompts.to(device))
    return prediction, batch


def overlap(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Dice and IoU (B,) of logits (B, 1, h, w), brought to the size of the target (B, 1, S, S) and cut at 0."""
    if logits.shape[-2:] != target.shape[-2:]:
        logits = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
    predicted, truth = (logits >= 0).flatten(1), (target > 0.5).flatten(1)
    both = (predicted & truth).sum(1)
    either = (predicted | truth).sum(1)
    empty = either == 0
    iou = torch.where(empty, 1.0, both / either.clamp(min=1))
    return torch.where(empty, 1.0, 2 * both / (both + either).clamp(min=1)), iou
