"""Prompts drawn from a mask or a rule, with an explicit generator; knows no networks."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from promise.runtime.errors import unknown_name
from promise.types import Batch, Points, Prompts


def generator_for(seed: int, name: str, epoch: int = 0) -> np.random.Generator:
    """A generator that depends on the run's seed, the image's name and the epoch, and on nothing else."""
    digest = hashlib.blake2b(f"{seed}|{epoch}|{name}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def points_from_mask(
    mask: np.ndarray, num_points: int, generator: np.random.Generator, *, positive: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ground-truth points, as the original does, from an explicit generator.

    Half of the points from the foreground and the rest from the background, with replacement, shuffled;
    one point alone is drawn from the foreground. A mask without foreground (or without background) gives
    points of the other kind only.

    Args:
        mask: (S, S) bool at input resolution.
        num_points: how many.
        generator: where the draw comes from.
        positive: how many of them from the foreground; default: half.

    Returns:
        xy (P, 2) float32, x before y, and label (P,) int64.
    """
    flat = np.flatnonzero(mask), np.flatnonzero(~mask)
    positive = max(1, num_points // 2) if positive is None else positive
    if flat[0].size == 0:
        positive = 0
    elif flat[1].size == 0:
        positive = num_points
    label = np.repeat([1, 0], [positive, num_points - positive])
    pick = np.concatenate(
        [generator.choice(f, n) for f, n in zip(flat, (positive, num_points - positive), strict=True) if n]
    )
    order = generator.permutation(num_points)
    y, x = np.unravel_index(pick[order], mask.shape)
    return np.stack((x, y), axis=1).astype(np.float32), label[order]


def oracle_points(
    mask: Tensor, num_points: int, generators: list[np.random.Generator], *, positive: int | None = None
) -> Points:
    """Ground-truth points of a batch.

    Args:
        mask: (B, 1, S, S), foreground above 0.5, on the CPU.
        num_points: how many a picture.
        generators: one an image.
        positive: how many of them from the foreground; default: half.
    """
    drawn = [
        points_from_mask(m, num_points, g, positive=positive)
        for m, g in zip((mask[:, 0] > 0.5).numpy(), generators, strict=True)
    ]
    xy, label = zip(*drawn, strict=True)
    return Points(torch.from_numpy(np.stack(xy)), torch.from_numpy(np.stack(label)))


def oracle_boxes(mask: Tensor) -> Tensor:
    """Tight boxes (B, 4) x0, y0, x1, y1 around the foreground of (B, 1, S, S); the whole image where there is none."""
    boxes = []
    for m in (mask[:, 0] > 0.5).numpy():
        y, x = np.nonzero(m)
        side = m.shape[0] - 1
        boxes.append([x.min(), y.min(), x.max(), y.max()] if x.size else [0, 0, side, side])
    return torch.tensor(boxes, dtype=torch.float32)


def centre_points(batch: int, image_size: int) -> Points:
    """One positive point (B, 1, 2) in the middle of each image: the prompt of someone who has not looked."""
    xy = torch.full((batch, 1, 2), (image_size - 1) / 2)
    return Points(xy, torch.ones(batch, 1, dtype=torch.int64))


# Where prompts come from, and what results call it.
ORIGINS = {"auto": "auto", "gt": "oracle", "gt-box": "oracle", "centre": "centre", "none": "none"}


def prompt_batch(
    source: str,
    batch: Batch,
    *,
    num_points: int,
    seed: int,
    epoch: int = 0,
    positive: int | None = None,
    box: bool = False,
) -> Prompts | None:
    """Prompts of a batch, the same whatever its order, size or worker.

    Args:
        source: ``auto`` (``None``: the net's prompter places them), ``gt`` draws points from the mask, ``gt-box`` takes the mask's
            box, ``centre`` one positive point in the middle, ``none`` nothing.
        batch: images and masks, on the CPU.
        num_points: how many points are drawn.
        seed: of the run.
        epoch: drawn points differ from epoch to epoch.
        positive: how many of the drawn points lie in the foreground; default: half.
        box: with ``gt``, the mask's box beside the points.

    Raises:
        UserError: unknown source.
    """
    match source:
        case "auto":
            return None
        case "gt":
            generators = [generator_for(seed, name, epoch) for name in batch.name]
            points = oracle_points(batch.mask, num_points, generators, positive=positive)
            return Prompts(points=points, boxes=oracle_boxes(batch.mask) if box else None)
        case "gt-box":
            return Prompts(boxes=oracle_boxes(batch.mask))
        case "centre":
            return Prompts(points=centre_points(len(batch), batch.mask.shape[-1]))
        case "none":
            return Prompts.none(len(batch))
    raise unknown_name("prompt source", source, ORIGINS)
