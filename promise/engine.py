"""One training epoch, one validation, predictions row by row; knows no files, no configuration, no net names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from promise.losses import Loss, resize_target
from promise.models.promise import Promise
from promise.types import Batch, Encoded, Prediction, Prompts

Prompter = Callable[[Batch], Prompts]
# Prompts of a batch in shares, (places in the batch, their prompts): images of one share have as many prompts each.
SharePrompter = Callable[[Batch], Sequence[tuple[Sequence[int], Prompts]]]


@dataclass(frozen=True)
class RowPrediction:
    """What a net says of one row."""

    index: int  # row number in the loader's rows
    name: str
    logits: np.ndarray  # (4E, 4E) float32
    iou: float  # SAM's own estimate
    xy: np.ndarray  # (P, 2) float32, input pixels; P = 0 without points
    label: np.ndarray  # (P,) int64
    box: np.ndarray | None  # (4,) float32
    draw: int = 0  # which of several draws of prompts
    ious: np.ndarray | None = None  # (3,) float32, SAM's own estimates of all three multimask masks
    seconds: float = 0.0  # prompting and decoding: its part of the batch's


def predict(net: nn.Module, batch: Batch, prompts: Prompts, device: torch.device) -> Prediction:
    """Run a net on a batch that lies on the CPU."""
    prompts = prompts.to(device)
    rarely: dict[str, Any] = {} if prompts.masks is None else {"masks": prompts.masks}
    if prompts.choice:
        rarely["choice"] = prompts.choice
    result: Prediction = net(batch.image.to(device, non_blocking=True), prompts.points, boxes=prompts.boxes, **rarely)
    return result


def train_epoch(
    net: nn.Module,
    batches: Iterable[Batch],
    *,
    prompter: Prompter,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    set_lr: Callable[[int], None],
    accelerator: Accelerator,
    clip_norm: float = 0.0,
) -> float:
    """Train once over the batches.

    Args:
        net: prepared by ``accelerator``, as is ``optimizer``.
        batches: on the CPU.
        prompter: gives a batch its prompts.
        loss: of logits and target.
        set_lr: called with the number of the step within the epoch, before the step.
        accelerator: devices, gradient accumulation, scaling.
        clip_norm: largest gradient norm; 0: no clipping.

    Returns:
        Mean loss over the images; not-a-number when training has diverged.
    """
    net.train()
    total, images, step = torch.zeros((), device=accelerator.device), 0, 0
    for batch in batches:
        with accelerator.accumulate(net):
            set_lr(step)
            prediction = predict(net, batch, prompter(batch), accelerator.device)
            target = batch.mask.to(accelerator.device, non_blocking=True)
            value = loss(prediction.mask_logits, resize_target(target, _side(prediction)))
            accelerator.backward(value)
            if accelerator.sync_gradients:
                step += 1
                if clip_norm > 0:
                    accelerator.clip_grad_norm_(net.parameters(), clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        # Summed on the device: reading it here would make the host wait at every step.
        total += value.detach() * len(batch)
        images += len(batch)
    sums = accelerator.reduce(torch.stack((total, total.new_tensor(float(images)))))
    return float(sums[0] / sums[1])


@torch.inference_mode()
def validate(
    net: nn.Module,
    batches: Iterable[Batch],
    *,
    prompter: Prompter,
    loss: Loss,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Mean loss, Dice and IoU over the batches' images, at input resolution, without gradients.

    A truth without foreground scores 1 for an empty prediction and 0 otherwise.
    """
    net.eval()
    rows = []
    for batch in batches:
        prediction = predict(net, batch, prompter(batch), accelerator.device)
        target = batch.mask.to(accelerator.device, non_blocking=True)
        small = resize_target(target, _side(prediction))
        # Image by image, so that the mean does not depend on how images share batches.
        pairs = zip(torch.split(prediction.mask_logits, 1), torch.split(small, 1), strict=True)
        losses = torch.stack([loss(logits, truth) for logits, truth in pairs])
        scores = overlap(prediction.mask_logits, target)
        index = batch.index.to(accelerator.device)
        rows.append(torch.stack((index, losses, *scores), dim=1).double())
    table = accelerator.gather(torch.cat(rows)).cpu()
    # Several processes pad their last batch with rows that another has: count each row once.
    _, first = np.unique(table[:, 0].numpy(), return_index=True)
    mean = table[torch.from_numpy(first)].mean(dim=0)
    return {"loss": float(mean[1]), "dice": float(mean[2]), "iou": float(mean[3])}


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


@torch.inference_mode()
def predict_rows(
    net: nn.Module, batches: Iterable[Batch], *, prompter: Prompter, device: torch.device
) -> Iterator[RowPrediction]:
    """Predict batch by batch and yield row by row, in the batches' order."""
    net.eval()
    for batch in batches:
        yield from predict_batch(net, batch, prompter(batch), device)


@torch.inference_mode()
def predict_draws(
    net: Promise, batches: Iterable[Batch], *, prompters: Sequence[SharePrompter], device: torch.device
) -> Iterator[RowPrediction]:
    """Predict the same images under several draws of prompts; each image is encoded once.

    Args:
        net: encodes, and decodes once a draw.
        batches: on the CPU, pixels or features.
        prompters: one a draw.
        device: where the net is.

    Yields:
        Rows batch by batch; in a batch draw by draw, in a draw share by share.
    """
    net.eval()
    for batch in batches:
        image = batch.image.to(device, non_blocking=True)
        encoded = replace(batch, image=image if isinstance(image, Encoded) else net.encode(image))
        for draw, prompter in enumerate(prompters):
            for places, prompts in prompter(batch):
                yield from predict_batch(net, encoded.take(places), prompts, device, draw=draw)


@torch.inference_mode()
def predict_batch(
    net: nn.Module, batch: Batch, prompts: Prompts, device: torch.device, *, draw: int = 0
) -> list[RowPrediction]:
    """Predict one batch, which lies on the CPU or holds features."""
    started = time.perf_counter()
    prediction = predict(net, batch, prompts, device)
    points, boxes = prediction.points, prediction.boxes
    logits = prediction.mask_logits[:, 0].float().cpu().numpy()
    seconds = (time.perf_counter() - started) / len(batch)
    iou = prediction.iou[:, 0].float().cpu().tolist()
    xy = points.xy.float().cpu().numpy() if points else np.zeros((len(batch), 0, 2), np.float32)
    label = points.label.cpu().numpy() if points else np.zeros((len(batch), 0), np.int64)
    box = None if boxes is None else boxes.float().cpu().numpy()
    ious = None if prediction.ious is None else prediction.ious.float().cpu().numpy()
    return [
        RowPrediction(
            int(batch.index[i]),
            name,
            logits[i],
            iou[i],
            xy[i],
            label[i],
            None if box is None else box[i],
            draw,
            None if ious is None else ious[i],
            seconds,
        )
        for i, name in enumerate(batch.name)
    ]


def _side(prediction: Prediction) -> tuple[int, int]:
    height, width = prediction.mask_logits.shape[-2:]
    return int(height), int(width)
