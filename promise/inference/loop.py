"""The inference loop: from a net and batches to one prediction per image. Does not read the ground truth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from promise.models.promise import Promise
from promise.prompts.sets import PromptSet, SetArrays
from promise.prompts.source import PromptGroup, PromptSource
from promise.types import Batch, Encoded, Prediction, Prompts


@dataclass(frozen=True)
class RowPrediction(SetArrays):
    """The prediction of a net for one image."""

    index: int  # number of the image in the rows of the loader
    name: str
    logits: np.ndarray  # (4E, 4E) float32
    iou: float  # SAM's own estimate; of several lesions the mean, 0 without a lesion
    sets: tuple[PromptSet, ...]  # the prompts that were used, in input pixels; (): no lesion
    draw: int = 0  # number of the draw of prompts
    ious: np.ndarray | None = None  # (3,) float32, SAM's own estimates of all three multimask masks
    seconds: float = 0.0  # time of prompting and decoding the batch, divided by its size
    mask_index: int | None = None  # which of the three multimask masks; None: the net's own output
    fuse: bool = False  # whether the net's map of lesions was added
    quality: float | None = (
        None  # learned estimate of the IoU; None: not of automatic prompts, no lesion, or none fitted
    )


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
        encoded = encode_batch(net, batch, device)
        for draw, source in enumerate(sources):
            for group in source(batch):
                yield from predict_batch(net, encoded.take(group.indices), group, device, draw=draw)


@torch.inference_mode()
def encode_batch(net: Promise, batch: Batch, device: torch.device) -> Batch:
    """A batch of pixels or features with its features on the device of the net."""
    image = batch.image.to(device, non_blocking=True)
    return replace(batch, image=image if isinstance(image, Encoded) else net.encode(image))


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
    """Predict a batch, pixels or features, that is the images of a group."""
    started = time.perf_counter()
    image = batch.image.to(device, non_blocking=True)
    parts = [None if one is None else one.to(device) for one in (group.prompts, *group.others)]
    predictions: list[Prediction] = [
        net(image, prompts, mask_index=group.mask_index, fuse=group.fuse) for prompts in parts
    ]
    logits, iou, ious = _unite(predictions)
    mask_logits = logits[:, 0].float().cpu().numpy()
    seconds = (time.perf_counter() - started) / len(batch)
    quality = predictions[0].quality  # only of the net's own prompts, which are in one part
    learned = [math.nan] * len(batch) if quality is None else quality.float().cpu().tolist()
    estimates, all_estimates = iou[:, 0].float().cpu().tolist(), None if ious is None else ious.float().cpu().numpy()
    sets = [prompt_sets(prediction.prompts, len(batch)) for prediction in predictions]
    return [
        RowPrediction(
            int(batch.index[i]),
            name,
            mask_logits[i],
            estimates[i],
            tuple(one for of_part in sets for one in of_part[i]),
            draw,
            None if all_estimates is None else all_estimates[i],
            seconds,
            group.mask_index,
            predictions[0].fused,
            None if math.isnan(learned[i]) else learned[i],
        )
        for i, name in enumerate(batch.name)
    ]


def _unite(predictions: Sequence[Prediction]) -> tuple[Tensor, Tensor, Tensor | None]:
    """The union of the masks of the same images, and the means of their estimated IoUs over all prompt sets.

    Exact for fused masks too: the largest of ``(1 - w) · SAM + w · map`` is at the largest of SAM's logits.
    """
    first = predictions[0]
    if len(predictions) == 1:
        return first.mask_logits, first.iou, first.ious
    counts = [len(prediction.prompts) for prediction in predictions]

    def mean(estimates: Sequence[Tensor]) -> Tensor:
        weighted = [count * one for count, one in zip(counts, estimates, strict=True)]
        return torch.stack(weighted).sum(0) / sum(counts)

    logits = torch.stack([prediction.mask_logits for prediction in predictions]).amax(0)
    ious = [prediction.ious for prediction in predictions if prediction.ious is not None]
    return logits, mean([prediction.iou for prediction in predictions]), mean(ious) if ious else None


def prompt_sets(prompts: Prompts, images: int) -> list[tuple[PromptSet, ...]]:
    """The prompt sets of each image of a batch, in NumPy."""

    def array(x: Tensor | None) -> np.ndarray | None:
        return None if x is None else x.cpu().numpy()

    xy, label = (None, None) if prompts.points is None else (prompts.points.xy.float(), prompts.points.label)
    hints = prompts.suggested
    hint_xy, hint_label = (None, None) if hints is None else (hints.xy.float(), hints.label)
    boxes = None if prompts.boxes is None else prompts.boxes.float()
    masks = None if prompts.masks is None else prompts.masks[:, 0].float()
    owner = np.arange(len(prompts)) if prompts.image is None else prompts.image.cpu().numpy()
    named = {"xy": xy, "label": label, "box": boxes, "mask": masks}
    named |= {"suggested_xy": hint_xy, "suggested_label": hint_label}
    values = {name: array(x) for name, x in named.items()}
    found: list[list[PromptSet]] = [[] for _ in range(images)]
    for number, image in enumerate(owner.tolist()):
        found[image].append(PromptSet(**{name: x[number] for name, x in values.items() if x is not None}))
    return [tuple(one) for one in found]
