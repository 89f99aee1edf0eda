"""Correct a mask with clicks: a positive click marks a missed region, a negative click a false one.

A click is more than a point prompt: it was placed in an error of the mask that the user sees, near the centre of that
error. Each click therefore proposes several corrected masks, and the one that explains the click best is kept:

- SAM decodes other boxes: grown to a positive click, cut at a negative one, or of a new lesion. The answer is taken
  only in the region of change that contains the click, or is averaged with the mask before.
- The logits are lifted, or lowered, around the click. The distance from the click to the outline is the radius; where
  it is large, the outline is that of another lesion, and nothing is lifted.
- The component that contains a negative click is erased.

A mask explains a click if the largest change is of the kind of the click and the click is at its centre; SAM's estimate
of the IoU decides between masks that do. The logits outside of the change are those before the click. Points are not
passed to SAM: models that were trained with boxes alone, such as LiteMedSAM, do not read them.

The ground truth is not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import torch

from promise.inference.postprocess import Bools, Float32s
from promise.models.promise import NO_LESION, Promise
from promise.models.prompters.lesions import border_distance, largest_error
from promise.types import Encoded, Prompts

Box: TypeAlias = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the logits
# Boxes (N, 4) in input pixels → logits (N, h, w) and estimated IoUs (N,)
DecodeBoxes: TypeAlias = Callable[[Float32s], tuple[Float32s, Float32s]]

DECODED = 4  # boxes per step of the decoder: more are slower on a CPU
MAX_BOXES = 8  # components of the mask that have a box
MIN_AREA = 0.02  # of a component with a box, as a fraction of the largest one
GROW = (1.0, 2.0)  # a box reaches this many radii beyond a positive click
NEW = (0.04, 0.08, 0.125, 0.19, 0.25, 0.375)  # half the side of a new box, as fractions of the side
MARGIN = 0.03  # a positive click this far from all boxes, as a fraction of the side, may start a new one
KEEP = 0.3  # a cut keeps at least this fraction of a box
FAR = 0.25  # radius where there is no outline, and the largest one, as a fraction of the side
NEAR = 0.15  # logits are lifted where the outline is nearer than this fraction of the side
SPREAD = 1.3  # standard deviation of a lift, in radii
MIN_LIFT = 2.0  # logits
# The score of a mask is IOU · (estimated IoU) − (distance of the click from the centre, in radii) − MISSED · (clicks
# that it does not satisfy).
IOU, MISSED = 3.0, 2.0
OFF_CENTRE = 5.0  # the largest distance, and that of a mask whose largest change is of the other kind
UNDECODED_IOU = 0.85  # estimate of a mask that SAM did not decode


@dataclass(frozen=True)
class Click:
    """A click of a user, in input pixels."""

    x: float
    y: float
    positive: bool  # whether the clicked pixel belongs to a lesion

    @staticmethod
    def on_image(xy: npt.ArrayLike, positive: bool, *, size: tuple[int, int], side: int) -> Click:
        """The click at a point x, y of an image of ``size`` (width, height), for a net input of ``side`` pixels."""
        x, y = ((np.asarray(xy, np.float64) + 0.5) * side / np.asarray(size) - 0.5).tolist()
        return Click(x, y, positive)


@dataclass(frozen=True)
class Corrected:
    """A mask with the clicks that it takes account of."""

    logits: Float32s  # (h, w)
    clicks: tuple[Click, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    logits: Float32s
    iou: float


def empty_logits(height: int, width: int) -> Float32s:
    """The logits of an empty mask, to start from nothing."""
    return np.full((height, width), NO_LESION, np.float32)


def box_decoder(net: Promise, encoded: Encoded) -> DecodeBoxes:
    """A function that decodes boxes of one image with SAM's single mask, without prompter and token shift.

    Args:
        net: the net whose SAM decodes.
        encoded: features of one image.
    """

    @torch.inference_mode()
    def decode(boxes: Float32s) -> tuple[Float32s, Float32s]:
        logits, ious = [], []
        for part in torch.split(torch.from_numpy(boxes).to(encoded.embedding.device), DECODED):
            features = Encoded(encoded.embedding.expand(len(part), -1, -1, -1))
            one, iou = net.decode_single(features, Prompts(boxes=part))
            logits.append(one[:, 0].cpu().numpy())
            ious.append(iou[:, 0].cpu().numpy())
        return np.concatenate(logits), np.concatenate(ious)

    return decode


def apply_click(before: Corrected, click: Click, decode: DecodeBoxes, *, side: int) -> Corrected:
    """Correct a mask with one more click.

    Args:
        before: the mask that the user saw, from any source, with the clicks until then.
        click: the click.
        decode: decodes boxes of the image; see :func:`box_decoder`.
        side: side S of the net's input, pixels.
    """
    clicks = (*before.clicks, click)
    height, width = before.logits.shape
    scale = np.array((width, height)) / side
    cells = [_cell(one, scale, before.logits.shape) for one in clicks]
    candidates = _candidates(before.logits, cells[-1], decode, scale)
    labels = np.array([one.positive for one in clicks])
    best = max(candidates, key=lambda one: _score(one, before.logits > 0, cells, labels))  # the first of equals
    return Corrected(best.logits, clicks)


def _candidates(
    logits: Float32s, cell: tuple[int, int, bool], decode: DecodeBoxes, scale: npt.NDArray[Any]
) -> Iterator[_Candidate]:
    """The corrected masks that a click proposes; at least one."""
    x, y, positive = cell
    mask = logits > 0
    side = max(mask.shape)
    boxes = _component_boxes(mask)
    radius = _radius(mask, cell)
    proposed = _proposed_boxes(boxes, cell, radius, side)
    for united, iou in _decode_all(proposed, decode, scale, mask.shape):
        yield _Candidate(np.asarray((united + logits) / 2, np.float32), iou)
        changed = (united > 0) != mask
        if changed[y, x]:
            local = np.where(_component_at(changed, x, y), united, logits)
            yield _Candidate(np.asarray(local, np.float32), iou)
    if radius < NEAR * side:
        yield _Candidate(_lift(logits, cell, SPREAD * radius), UNDECODED_IOU)
    else:  # the size of the lesion is unknown: the last resort
        yield _Candidate(_lift(logits, cell, SPREAD * NEW[0] * side), 0.0)
    if not positive and mask[y, x]:
        erased = np.where(_component_at(mask, x, y), -np.abs(logits) - 1e-3, logits)
        yield _Candidate(np.asarray(erased, np.float32), UNDECODED_IOU)


def _score(
    candidate: _Candidate, mask: Bools, cells: list[tuple[int, int, bool]], labels: npt.NDArray[np.bool_]
) -> float:
    """How well a candidate explains the last click, see :data:`IOU`."""
    after = candidate.logits > 0
    x, y, positive = cells[-1]
    distance = OFF_CENTRE
    change = largest_error(mask, after)
    if change is not None and change.missed == positive:
        # Around a click on an empty mask there is no outline: the unit is the radius of the new lesion.
        radius = _radius(mask, cells[-1]) if mask.any() else change.radius
        distance = min(math.hypot(change.x - x, change.y - y) / max(radius, 3.0), OFF_CENTRE)
    found = np.array([after[row, column] for column, row, _ in cells])
    return IOU * candidate.iou - distance - MISSED * int(np.count_nonzero(found != labels))


def _proposed_boxes(boxes: list[Box], cell: tuple[int, int, bool], radius: float, side: int) -> list[list[Box]]:
    """The sets of boxes that are decoded after a click: each has one box of the mask changed, or is the mask's own."""
    x, y, positive = cell
    proposed = [boxes] if boxes else []
    gaps = [math.hypot(max(b[0] - x, 0, x - b[2]), max(b[1] - y, 0, y - b[3])) for b in boxes]
    nearest = int(np.argmin(gaps)) if boxes else None
    changed: list[Box] = []
    if nearest is not None:
        x0, y0, x1, y1 = boxes[nearest]
        if positive:
            reaches = [max(factor * radius, 1.0) for factor in GROW]
            changed = [(min(x0, x - r), min(y0, y - r), max(x1, x + r), max(y1, y + r)) for r in reaches]
        else:
            least = KEEP * (x1 - x0 + 1) * (y1 - y0 + 1)
            cuts = ((x + radius, y0, x1, y1), (x0, y + radius, x1, y1), (x0, y0, x - radius, y1))
            changed = [
                b
                for b in (*cuts, (x0, y0, x1, y - radius))
                if min(b[2] - b[0], b[3] - b[1]) >= 3 and (b[2] - b[0] + 1) * (b[3] - b[1] + 1) >= least
            ]
        proposed += [[*boxes[:nearest], box, *boxes[nearest + 1 :]] for box in changed]
    if positive and min(gaps, default=np.inf) > MARGIN * side:
        proposed += [[*boxes, (x - h, y - h, x + h, y + h)] for h in (fraction * side for fraction in NEW)]
    return proposed


def _decode_all(
    proposed: list[list[Box]], decode: DecodeBoxes, scale: npt.NDArray[Any], shape: tuple[int, ...]
) -> Iterator[tuple[Float32s, float]]:
    """The united logits (h, w) and the mean IoU estimate of each set of boxes; a box is decoded once."""
    distinct = list(dict.fromkeys(box for boxes in proposed for box in boxes))
    if not distinct:
        return
    top = np.array((shape[1], shape[0]) * 2, np.float64) - 1
    corners = np.clip(np.array(distinct, np.float64), 0, top)
    logits, ious = decode(((corners + 0.5) / np.tile(scale, 2) - 0.5).astype(np.float32))
    for boxes in proposed:
        used = [distinct.index(box) for box in boxes]
        yield logits[used].max(axis=0), float(ious[used].mean())


def _component_boxes(mask: Bools) -> list[Box]:
    """Boxes of the components of a mask, the largest first; specks have none."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count == 1:
        return []
    areas = stats[1:, cv2.CC_STAT_AREA]
    order = [int(i) for i in np.argsort(-areas, kind="stable") if areas[i] >= MIN_AREA * areas.max()][:MAX_BOXES]
    corners = stats[[i + 1 for i in order], :4].tolist()
    return [(x, y, x + width - 1, y + height - 1) for x, y, width, height in corners]


def _radius(mask: Bools, cell: tuple[int, int, bool]) -> float:
    """Distance of a click to the outline of the mask, at least 1 pixel."""
    x, y, positive = cell
    far = float(FAR * max(mask.shape))
    if not mask.any():
        return far
    depth = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) if positive else border_distance(mask)
    return max(min(float(depth[y, x]), far), 1.0)


def _lift(logits: Float32s, cell: tuple[int, int, bool], spread: float) -> Float32s:
    """Logits moved towards the label of a click: by twice their value at the click, less with the distance to it."""
    x, y, positive = cell
    rows, columns = np.ogrid[: logits.shape[0], : logits.shape[1]]
    near = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * spread**2)).astype(np.float32)
    amount = max(2 * abs(float(logits[y, x])), MIN_LIFT)
    return np.asarray(logits + (amount if positive else -amount) * near, np.float32)


def _component_at(mask: Bools, x: int, y: int) -> Bools:
    """The 8-connected component of a mask that contains a foreground pixel."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return np.asarray(labels == labels[y, x])


def _cell(click: Click, scale: npt.NDArray[Any], shape: tuple[int, ...]) -> tuple[int, int, bool]:
    """The pixel of the logits that contains a click: x, y and the label."""
    x, y = np.floor((np.array((click.x, click.y)) + 0.5) * scale)
    return int(np.clip(x, 0, shape[1] - 1)), int(np.clip(y, 0, shape[0] - 1)), click.positive
