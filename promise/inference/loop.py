"""The inference loop: from a net and batches to one prediction per image. Does not read the ground truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from promise.models.promise import Promise
from promise.prompts.source import PromptGroup, PromptSource
from promise.types import Batch, Encoded, Prediction, Prompts


@dataclass(frozen=True)
class RowPrediction:
    """The prediction of a net for one image."""

    index: int  # number of the image in the rows of the loader
    name: str
    logits: np.ndarray  # (4E, 4E) float32
    iou: float  # SAM's own estimate
    xy: np.ndarray  # (P, 2) float32, input pixels; P = 0 without points
    label: np.ndarray  # (P,) int64
    box: np.ndarray | None  # (4,) float32
    draw: int = 0  # number of the draw of prompts
    ious: np.ndarray | None = None  # (3,) float32, SAM's own estimates of all three multimask masks
    seconds: float = 0.0  # time of prompting and decoding the batch, divided by its size
    mask_prompt: np.ndarray | None = None  # (4E, 4E) float32, SAM's mask prompt, if one was used
    mask_index: int = 0  # which of the three multimask masks


@torch.inference_mode()
def predict_draws(
    net: Promise, batches: Iterable[Batch], *, sources: Sequence[PromptSource], device: torch.device
) -> Iterator[RowPrediction]:
    """Predict the same images with several draws of prompts. Each image is encoded once.

    Args:
        net: the net; decodes once per draw.
        batches: pixels or features, on the CPU.
        sources: the prompt source of each draw.
        device: the device of the net.

    Yields:
        One prediction per image and draw, ordered by batch, draw and group.
    """
    net.eval()
    for batch in batches:
        image = batch.image.to(device, non_blocking=True)
        encoded = replace(batch, image=image if isinstance(image, Encoded) else net.encode(image))
        for draw, source in enumerate(sources):
            for group in source(batch):
                yield from predict_batch(net, encoded.take(group.indices), group, device, draw=draw)


@torch.inference_mode()
def predict_rows(
    net: nn.Module, batches: Iterable[Batch], *, draw: Callable[[Batch], Prompts | None], device: torch.device
) -> Iterator[RowPrediction]:
    """Predict with one draw of prompts. Yields one prediction per image, in the order of the batches.

    Args:
        net: the net.
        batches: pixels or features, on the CPU.
        draw: supplies the prompts of a batch; ``None``: the net's own.
        device: the device of the net.
    """
    net.eval()
    for batch in batches:
        yield from predict_batch(net, batch, PromptGroup(range(len(batch)), draw(batch)), device)


@torch.inference_mode()
def predict_batch(
    net: nn.Module, batch: Batch, group: PromptGroup, device: torch.device, *, draw: int = 0
) -> list[RowPrediction]:
    """Predict a batch, pixels or features, whose prompts have the same shape."""
    started = time.perf_counter()
    prompts = None if group.prompts is None else group.prompts.to(device)
    prediction: Prediction = net(batch.image.to(device, non_blocking=True), prompts, mask_index=group.mask_index)
    points, boxes, masks = prediction.prompts.points, prediction.prompts.boxes, prediction.prompts.masks
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
            None if masks is None else masks[i, 0].float().cpu().numpy(),
            group.mask_index,
        )
        for i, name in enumerate(batch.name)
    ]
