"""The entry of one image in a prompts file: its JSON form, and the checks on entries that users may have edited.

An image with one prompt set is written as ``{"size", "points", "labels", "box"}``, optionally with ``mask`` and
``mask_index`` (version 2 of the file). Any other number of sets is written as ``{"size", "lesions": [{"points",
"labels", "box"}, …]}``, optionally with ``mask_index`` and ``fuse`` (version 3); an empty list means no lesion.
``suggested`` has the ``points`` and ``labels`` that a net placed on a lesion but does not decode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from promise.prompts.packed_mask import pack_mask, unpack_mask
from promise.prompts.sets import ImagePrompts, PromptSet, Size
from promise.runtime.errors import UserError
from promise.runtime.settings import MAX_IMAGE_POINTS, MAX_POINTS

MASKS = 3  # SAM's multimask output
MAX_LESIONS = 1024  # of one image
LARGEST = 1e9  # coordinate that is a number; images are smaller. Not true of NaN and infinity either


def entry_version(prompts: ImagePrompts) -> int:
    """The first version of the file format that holds these prompts."""
    if len(prompts.sets) != 1 or prompts.fuse or (prompts.label < 0).any():
        return 3
    return 1 if prompts.sets[0].mask is None and prompts.mask_index is None else 2


def prompts_to_dict(prompts: ImagePrompts) -> dict[str, Any]:
    """The entry of one image in a prompts file."""
    sets = [_set_to_dict(one) for one in prompts.sets]
    entry: dict[str, Any] = {"size": list(prompts.size)}
    entry |= {"lesions": sets} if entry_version(prompts) == 3 else sets[0]
    if prompts.mask_index is not None:
        entry["mask_index"] = prompts.mask_index
    if prompts.fuse:
        entry["fuse"] = True
    return entry


def _set_to_dict(one: PromptSet) -> dict[str, Any]:
    entry = {
        "points": one.xy.tolist(),
        "labels": one.label.tolist(),
        "box": None if one.box is None else one.box.tolist(),
    }
    if len(one.suggested_xy):
        entry["suggested"] = {"points": one.suggested_xy.tolist(), "labels": one.suggested_label.tolist()}
    return entry if one.mask is None else {**entry, "mask": pack_mask(one.mask)}


def prompts_from_dict(entry: Mapping[str, Any]) -> ImagePrompts:
    """The prompts of an entry that :func:`prompts_to_dict` wrote; entries that users may edit need
    :func:`parse_prompts`."""
    width, height = entry["size"]
    sets = tuple(map(_set_from_dict, entry.get("lesions", [entry])))
    return ImagePrompts((width, height), sets, entry.get("mask_index"), entry.get("fuse", False))


def _set_from_dict(entry: Mapping[str, Any]) -> PromptSet:
    suggested = entry.get("suggested", {"points": [], "labels": []})
    return PromptSet(
        np.array(entry["points"], np.float64).reshape(-1, 2),
        np.array(entry["labels"], np.int64),
        None if entry["box"] is None else np.array(entry["box"], np.float64),
        None if entry.get("mask") is None else unpack_mask(entry["mask"]),
        np.array(suggested["points"], np.float64).reshape(-1, 2),
        np.array(suggested["labels"], np.int64),
    )


def parse_prompts(
    entry: Any, size: Size, side: int, mask_side: int | None = None
) -> tuple[ImagePrompts | None, list[UserError]]:
    """Check the prompts of one image.

    Args:
        entry: a mapping with ``size``, with ``lesions``, or ``points``, ``labels`` and ``box`` (and optionally
            ``mask``) of a single lesion, and optionally with ``mask_index`` and ``fuse``, as in a prompts file. Other
            keys are ignored. A lesion may omit what it does not have.
        size: (width, height) of the image.
        side: side of the net's input. Points may be up to one of its pixels outside the image, as the points that a net
            places may be.
        mask_side: side of the net's mask prompts; ``None``: a mask may have any shape.

    Returns:
        The prompts, or ``None`` if there are faults; and all faults, each with a code.
    """
    if not isinstance(entry, dict):
        message = "an object with size and lesions, or with size, points, labels and box, is required"
        return None, [UserError(message, code="invalid-entry")]
    errors: list[UserError] = []
    if entry.get("size") != list(size):
        message = f"its size is {entry.get('size')}, the image's [{size[0]}, {size[1]}]"
        errors.append(UserError(message, code="image-size-mismatch"))
    if "lesions" in entry:
        sets, faults = _parse_lesions(entry, size, side, mask_side)
    else:
        one, faults = parse_set(entry, size, side, mask_side)
        sets = [one]
    errors += faults
    index, fuse = entry.get("mask_index"), entry.get("fuse", False)
    if index is not None and (type(index) is not int or index not in range(MASKS)):
        errors.append(UserError(f"mask_index must be 0, 1 or 2, not {index!r}", code="invalid-mask-index"))
    if not isinstance(fuse, bool):
        errors.append(UserError(f"fuse must be true or false, not {fuse!r}", code="invalid-fuse"))
    return (None, errors) if errors else (ImagePrompts(size, tuple(sets), index, fuse), [])


def _parse_lesions(
    entry: Mapping[str, Any], size: Size, side: int, mask_side: int | None
) -> tuple[list[PromptSet], list[UserError]]:
    """The prompt sets of ``lesions``, and all faults; each names its lesion, counted from 1."""
    errors: list[UserError] = []
    beside = [name for name in ("points", "labels", "box", "mask") if entry.get(name)]
    if beside:
        message = f"lesions and {', '.join(beside)} are mutually exclusive: prompts belong to a lesion"
        errors.append(UserError(message, code="prompts-beside-lesions"))
    lesions = entry["lesions"]
    if not isinstance(lesions, list) or not all(isinstance(lesion, dict) for lesion in lesions):
        message = "lesions must be a list of objects with points, labels and box; without a lesion, an empty list"
        return [], [*errors, UserError(message, code="invalid-lesions")]
    if len(lesions) > MAX_LESIONS:
        message = f"{len(lesions)} lesions; at most {MAX_LESIONS} are accepted. Delete some"
        return [], [*errors, UserError(message, code="too-many-lesions")]
    count = sum(len(one["points"]) for one in lesions if isinstance(one.get("points"), list))
    if count > MAX_IMAGE_POINTS:
        message = (
            f"{count} points on {len(lesions)} lesions; at most {MAX_IMAGE_POINTS} are accepted per image. Delete some"
        )
        return [], [*errors, UserError(message, code="too-many-points")]
    sets = []
    for number, lesion in enumerate(lesions, start=1):
        one, faults = parse_set({"points": [], "labels": [], **lesion}, size, side, mask_side)
        sets.append(one)
        where = f"lesion {number} of {len(lesions)}: " if len(lesions) > 1 else ""
        errors += [UserError(f"{where}{fault}", code=fault.code) for fault in faults]
    return sets, errors


def parse_set(
    entry: Mapping[str, Any], size: Size, side: int, mask_side: int | None = None
) -> tuple[PromptSet, list[UserError]]:
    """One prompt set, without its invalid parts, and all faults. Arguments as in :func:`parse_prompts`."""
    errors: list[UserError] = []
    xy, label = _parse_points(entry.get("points"), entry.get("labels"), errors)
    box = _parse_box(entry.get("box"), errors)
    errors += _find_outside("point", xy, size, side)
    errors += [] if box is None else _find_outside("box corner", box.reshape(2, 2), size, side)
    mask = None
    try:
        mask = None if entry.get("mask") is None else unpack_mask(entry["mask"], mask_side)
    except UserError as error:
        errors.append(error)
    suggested = entry.get("suggested", {"points": [], "labels": []})
    if not isinstance(suggested, dict):
        suggested = {}  # reported as invalid points
    hints = _parse_points(suggested.get("points"), suggested.get("labels"), errors)
    return PromptSet(xy, label, box, mask, *hints), errors


def _parse_points(points: Any, labels: Any, errors: list[UserError]) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) float64 and (P,) int64; faults are appended to ``errors``, and invalid parts become empty arrays."""
    if isinstance(points, list) and len(points) > MAX_POINTS:
        message = f"{len(points)} points; at most {MAX_POINTS} are accepted per lesion. Delete some"
        errors.append(UserError(message, code="too-many-points"))
        return np.zeros((0, 2)), np.zeros(0, np.int64)
    xy = _numbers(points, 2)
    label = np.zeros(0, np.int64)
    if xy is None:
        errors.append(UserError("points must be a list of [x, y]", code="invalid-points"))
    # -1: a padding point, which a net places where a lesion has no background.
    if not isinstance(labels, list) or not all(one in (0, 1, -1) for one in labels):
        message = "labels must be a list of 1 (foreground) and 0 (background)"
        errors.append(UserError(message, code="invalid-labels"))
    elif xy is not None and len(labels) != len(xy):
        errors.append(UserError(f"{len(xy)} points and {len(labels)} labels", code="label-count-mismatch"))
    else:
        label = np.array(labels, np.int64)
    return np.zeros((0, 2)) if xy is None else xy, label


def _parse_box(box: Any, errors: list[UserError]) -> np.ndarray | None:
    """(4,) float64; a fault is appended to ``errors``."""
    corners = None if box is None else _numbers([box], 4)
    if box is not None and (corners is None or (corners[0, :2] > corners[0, 2:]).any()):
        message = "box must be [x0, y0, x1, y1] with x0 ≤ x1 and y0 ≤ y1, or null"
        errors.append(UserError(message, code="invalid-box"))
        return None
    return None if corners is None else corners[0]


def _numbers(rows: Any, width: int) -> np.ndarray | None:
    """(N, width) float64 of a list of lists of numbers; ``None`` for anything else, NaN and infinity included."""
    if not isinstance(rows, list):
        return None
    for row in rows:
        if not isinstance(row, list) or len(row) != width:
            return None
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < LARGEST for v in row):
            return None
    return np.array(rows, np.float64).reshape(len(rows), width)


def _find_outside(kind: str, xy: np.ndarray, size: Size, side: int) -> list[UserError]:
    edge = np.asarray(size, np.float64)
    slack = edge / side + 1e-6
    outside = ((xy < -0.5 - slack) | (xy > edge - 0.5 + slack)).any(axis=1)
    return [
        UserError(
            f"{kind} ({x:g}, {y:g}) is outside the image of {size[0]} × {size[1]} pixels",
            code="prompt-outside-image",
        )
        for x, y in xy[outside].tolist()
    ]
