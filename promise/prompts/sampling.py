"""Prompts of a batch: the table of their sources, and points and boxes drawn with an explicit generator."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from promise.runtime.errors import unknown_name
from promise.types import Batch, Points, Prompts

JITTER = 0.1  # standard deviation of the sides of a jittered box, as a fraction of its length
MAX_JITTER = 20 / 1024  # the farthest that a side moves, as a fraction of the side of the image


def generator_for(seed: int, name: str, epoch: int = 0) -> np.random.Generator:
    """A generator that depends only on the seed of the run, the name of the image and the epoch."""
    digest = hashlib.blake2b(f"{seed}|{epoch}|{name}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def points_from_mask(
    mask: np.ndarray, num_points: int, generator: np.random.Generator, *, positive: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ground-truth points with the rule of the reference implementation.

    Half of the points are drawn from the foreground and the others from the background, with replacement, and
    shuffled. A single point is drawn from the foreground. For a mask without foreground (or without background), all
    points are of the other kind.

    Args:
        mask: (S, S) bool at the resolution of the net's input.
        num_points: number of points.
        generator: random generator of the draw.
        positive: number of points in the foreground; default: half.

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
    """Draw ground-truth points for a batch; see :func:`points_from_mask`.

    Args:
        mask: (B, 1, S, S), foreground above 0.5, on the CPU.
        num_points: number of points per image.
        generators: one per image.
        positive: number of points in the foreground; default: half.
    """
    drawn = [
        points_from_mask(m, num_points, g, positive=positive)
        for m, g in zip((mask[:, 0] > 0.5).numpy(), generators, strict=True)
    ]
    xy, label = zip(*drawn, strict=True)
    return Points(torch.from_numpy(np.stack(xy)), torch.from_numpy(np.stack(label)))


def oracle_boxes(mask: Tensor) -> Tensor:
    """Tight boxes (B, 4) x0, y0, x1, y1 around the foreground of (B, 1, S, S); the whole image if it is empty."""
    boxes = []
    for m in (mask[:, 0] > 0.5).numpy():
        y, x = np.nonzero(m)
        side = m.shape[0] - 1
        boxes.append([x.min(), y.min(), x.max(), y.max()] if x.size else [0, 0, side, side])
    return torch.tensor(boxes, dtype=torch.float32)


def jitter_boxes(boxes: Tensor, generators: list[np.random.Generator], *, image_size: int) -> Tensor:
    """Move each side of boxes (B, 4) at random, as in the training of SAM (Kirillov et al., 2023, appendix A).

    The standard deviation is :data:`JITTER` of the length of the box along the axis. A side moves by at most
    :data:`MAX_JITTER` of the image, and stays in it.

    Args:
        boxes: x0, y0, x1, y1 in input pixels.
        generators: one per box.
        image_size: side of the input, pixels.
    """
    limit = MAX_JITTER * image_size
    moved = []
    for box, generator in zip(boxes.numpy(), generators, strict=True):
        deviation = JITTER * np.tile(box[2:] - box[:2] + 1, 2)
        corners = box + np.clip(generator.normal(0, deviation), -limit, limit)
        corners = np.sort(np.clip(corners, 0, image_size - 1).reshape(2, 2), axis=0)  # a box of one pixel may turn over
        moved.append(corners.reshape(4).astype(np.float32))
    return torch.from_numpy(np.stack(moved))


def centre_points(batch: int, image_size: int) -> Points:
    """One positive point (B, 1, 2) in the middle of each image: a prompt that does not depend on the image."""
    xy = torch.full((batch, 1, 2), (image_size - 1) / 2)
    return Points(xy, torch.ones(batch, 1, dtype=torch.int64))


@dataclass(frozen=True)
class DrawOptions:
    """How prompts are drawn from a batch."""

    num_points: int
    seed: int
    epoch: int = 0  # drawn points differ between epochs
    positive: int | None = None  # how many of the points are in the foreground; None: half
    box: bool = False  # the mask's box in addition to the points


@dataclass(frozen=True)
class Source:
    """A way to obtain prompts: a row of :data:`SOURCES`."""

    name: str  # as --prompts takes it
    origin: str  # as results name it
    reads_ground_truth: bool
    is_random: bool  # whether the prompts depend on the seed
    draw: Callable[[Batch, DrawOptions], Prompts | None] | None  # None: the prompts are read from a file

    @property
    def reads_file(self) -> bool:
        """Whether the prompts come from a file, whose path follows the name and a colon."""
        return self.draw is None

    @property
    def usage(self) -> str:
        """An example of the setting."""
        return f"{self.name}:prompts.json" if self.reads_file else self.name


def _from_net(_batch: Batch, _options: DrawOptions) -> None:
    """The net's prompter makes the prompts."""


def _points_of_mask(batch: Batch, options: DrawOptions) -> Prompts:
    generators = [generator_for(options.seed, name, options.epoch) for name in batch.name]
    points = oracle_points(batch.mask, options.num_points, generators, positive=options.positive)
    return Prompts(points=points, boxes=oracle_boxes(batch.mask) if options.box else None)


def _box_of_mask(batch: Batch, _options: DrawOptions) -> Prompts:
    return Prompts(boxes=oracle_boxes(batch.mask))


def _centre(batch: Batch, _options: DrawOptions) -> Prompts:
    return Prompts(points=centre_points(len(batch), batch.mask.shape[-1]))


def _no_prompt(batch: Batch, _options: DrawOptions) -> Prompts:
    return Prompts.none(len(batch))


# Rows of SOURCES that other modules name.
AUTO, GROUND_TRUTH, NONE, FILE = "auto", "gt", "none", "file"
SOURCES = {
    source.name: source
    for source in (
        Source(AUTO, "auto", reads_ground_truth=False, is_random=False, draw=_from_net),
        Source(GROUND_TRUTH, "oracle", reads_ground_truth=True, is_random=True, draw=_points_of_mask),
        Source("gt-box", "oracle", reads_ground_truth=True, is_random=False, draw=_box_of_mask),
        Source("centre", "centre", reads_ground_truth=False, is_random=False, draw=_centre),
        Source(NONE, "none", reads_ground_truth=False, is_random=False, draw=_no_prompt),
        Source(FILE, "file", reads_ground_truth=False, is_random=False, draw=None),
    )
}


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
    """Prompts of a batch. Those of an image do not depend on the order, the batch size or the worker.

    Args:
        source: a row of :data:`SOURCES` that does not read a file. ``auto``: the net's prompter makes the prompts;
            ``gt``: points drawn from the mask; ``gt-box``: the mask's box; ``centre``: one positive point in the
            middle; ``none``: no prompt.
        batch: images and masks, on the CPU.
        num_points: number of points that ``gt`` draws.
        seed: seed of the run.
        epoch: drawn points differ between epochs.
        positive: with ``gt``, the number of points in the foreground; default: half.
        box: with ``gt``, the mask's box in addition to the points.

    Returns:
        Prompts in pixels of the net's input; ``None`` for ``auto``.

    Raises:
        UserError: unknown source (``unknown-prompt-source``).
    """
    row = SOURCES.get(source)
    if row is None or row.draw is None:
        raise unknown_name("prompt source", source, [one.name for one in SOURCES.values() if one.draw is not None])
    return row.draw(batch, DrawOptions(num_points, seed, epoch, positive, box))
