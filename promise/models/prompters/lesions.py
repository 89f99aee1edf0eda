"""From a map of lesions to prompts: connected components, their boxes and their points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from promise.runtime.errors import UserError, raise_all

Float32s: TypeAlias = npt.NDArray[np.float32]
PROMPT_PARTS = ("box", "points", "box+points")
OUTPUTS = ("single", "multimask")
CORE = 0.9  # positive points are placed where the probability is at least this, if it is so anywhere in the lesion
BACKGROUND = 0.1  # negative points are placed where the probability is lower
NEAR, FAR = 0.03, 0.15  # distance of negative points from the lesion, as fractions of the side of the map


@dataclass(frozen=True)
class LesionSettings:
    """How a map of lesions becomes prompts, and how masks are decoded from them. Stored in the checkpoint.

    Attributes:
        max_lesions: largest number of lesions in an image.
        threshold: pixels of the map with at least this probability belong to a lesion; in (0, 1).
        min_score: components with a lower score are dropped. The score is the mean probability of the component times
            its area as a fraction of the image. If all are dropped, the image has no lesion and its mask is empty.
        min_probability: components with a lower mean probability are dropped; in [0, 1].
        min_share: components whose score is lower than this fraction of the best one are dropped; in [0, 1].
        prompts: prompts of a lesion: ``box``, ``points`` or ``box+points``.
        mask_prompt: whether the logits of the map are SAM's mask prompt, in addition.
        output: ``single``: SAM's single mask; ``multimask``: the first of its three multimask masks.
        fuse: weight of the map in the mask of automatic prompts, in [0, 1): the logits are
            ``(1 - fuse) · SAM + fuse · map``.
        flips: whether the logits of the map are the mean over the four mirror images of the features, except in
            training.

    Raises:
        UserError: values out of range or unknown, all in one error (``invalid-lesion-settings``).
    """

    max_lesions: int = 4
    threshold: float = 0.5
    min_score: float = 0.001
    min_probability: float = 0.6
    min_share: float = 0.0
    prompts: str = "box"
    mask_prompt: bool = False
    output: str = "single"
    fuse: float = 0.5
    flips: bool = True

    def __post_init__(self) -> None:
        checks = (
            (self.max_lesions >= 1, f"max_lesions must be at least 1, got {self.max_lesions}"),
            (0 < self.threshold < 1, f"threshold must be above 0 and below 1, got {self.threshold}"),
            (0 <= self.min_score <= 1, f"min_score must be between 0 and 1, got {self.min_score}"),
            (
                0 <= self.min_probability <= 1,
                f"min_probability must be between 0 and 1, got {self.min_probability}",
            ),
            (0 <= self.min_share <= 1, f"min_share must be between 0 and 1, got {self.min_share}"),
            (self.prompts in PROMPT_PARTS, f"prompts must be {_either(PROMPT_PARTS)}, got {self.prompts!r}"),
            (self.output in OUTPUTS, f"output must be {_either(OUTPUTS)}, got {self.output!r}"),
            (0 <= self.fuse < 1, f"fuse must be at least 0 and below 1, got {self.fuse}"),
        )
        raise_all([UserError(fault, code="invalid-lesion-settings") for passed, fault in checks if not passed])


def parse_settings(text: str) -> dict[str, Any]:
    """Read ``NAME=VALUE,…``, such as ``threshold=0.4,prompts=box+points``.

    Values are converted to the type of the setting where that is possible; :func:`change_settings` reports the others.
    """
    defaults = {one.name: one.default for one in fields(LesionSettings)}
    pairs = (part.partition("=") for part in text.split(","))
    return {name.strip(): _convert(value.strip(), defaults.get(name.strip())) for name, _, value in pairs}


def check_settings(values: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings in a text, see :func:`parse_settings`, or a mapping.

    Raises:
        UserError: as :func:`change_settings`.
    """
    found = parse_settings(values) if isinstance(values, str) else dict(values or {})
    change_settings(LesionSettings(), found)
    return found


def _convert(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return text if default is None else type(default)(text)
    except ValueError:
        return text


def change_settings(settings: LesionSettings, values: Mapping[str, Any]) -> LesionSettings:
    """Replace settings by name.

    Raises:
        UserError: unknown names (``unknown-lesion-setting``), and values of the wrong type or out of range
            (``invalid-lesion-settings``), all in one error.
    """
    known = {one.name: one.default for one in fields(LesionSettings)}
    errors: list[UserError] = []
    valid: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            text = f"unknown lesion setting {name} (known: {', '.join(known)})"
            errors.append(UserError(text, code="unknown-lesion-setting"))
        elif type(value) is not type(known[name]) and not (type(known[name]) is float and type(value) is int):
            kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(known[name]), "a text")
            errors.append(UserError(f"{name}: {value!r} is not {kind}", code="invalid-lesion-settings"))
        else:
            valid[name] = value
    changed = settings
    try:
        changed = replace(settings, **valid)
    except UserError as error:
        errors += error.errors or [error]
    raise_all(errors)
    return changed


@dataclass(frozen=True)
class Lesion:
    """A component of a map, with its prompts. Coordinates are pixels of the map."""

    score: float  # mean probability × area as a fraction of the map
    box: Float32s  # (4,) x0, y0, x1, y1: its first and last columns and rows
    xy: Float32s  # (P, 2)
    label: npt.NDArray[np.int64]  # (P,) 1 inside, 0 outside, -1 where the map has no background for a negative point


@dataclass(frozen=True)
class ErrorRegion:
    """The centre of a connected region in which two masks differ, in pixels of the masks."""

    x: int
    y: int
    missed: bool  # foreground of the second mask only
    radius: float  # distance of the centre to the border of the region


def find_lesions(probability: Float32s, settings: LesionSettings, *, positive: int, negative: int) -> list[Lesion]:
    """Find the lesions of a map, best score first, with their prompts.

    Args:
        probability: (h, w) in [0, 1].
        settings: threshold, limits and scores; see :class:`LesionSettings`.
        positive: number of positive points of a lesion, at the peaks of the distance to the border of its core.
        negative: number of negative points, near the lesion, outside of all lesions.
    """
    mask = (probability >= settings.threshold).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count == 1:
        return []
    sums = np.bincount(labels.ravel(), weights=probability.ravel().astype(np.float64), minlength=count)
    scores, means = sums / probability.size, sums / np.maximum(stats[:, cv2.CC_STAT_AREA], 1)
    strong = (scores >= settings.min_score) & (means >= settings.min_probability)
    strong[0] = False  # the background
    order = [int(i) for i in np.argsort(-scores, kind="stable") if strong[i]]
    kept = [i for i in order if scores[i] >= settings.min_share * scores[order[0]]][: settings.max_lesions]
    lesions = []
    for index in kept:
        component = labels == index
        x, y, width, height = (int(v) for v in stats[index, :4])
        box = np.array([x, y, x + width - 1, y + height - 1], np.float32)
        core = component & (probability >= CORE)
        inside = positive_points(core if core.any() else component, positive)
        outside, found = negative_points(probability, component, mask > 0, negative)
        label = np.repeat(np.array([1, 0, -1], np.int64), [positive, found, negative - found])
        lesions.append(Lesion(float(scores[index]), box, np.concatenate([inside, outside]), label))
    return lesions


def positive_points(component: npt.NDArray[np.bool_], count: int) -> Float32s:
    """Points (count, 2) at the peaks of the distance to the border of a component (h, w), far from each other.

    The first is the point that is farthest from the border. Each other one maximises the smaller of its distances to
    the border and to the points before it.
    """
    return _spread(border_distance(component), count) if count else np.zeros((0, 2), np.float32)


def border_distance(region: npt.NDArray[np.bool_]) -> Float32s:
    """Distance (h, w) of the pixels of a region to its border; the border of the map is one. 0 outside."""
    padded = np.pad(region.astype(np.uint8), 1)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1], np.float32)


def largest_error(mask: npt.NDArray[np.bool_], target: npt.NDArray[np.bool_]) -> ErrorRegion | None:
    """The largest 8-connected region of missed or of false foreground, with its centre; ``None`` for equal masks.

    The centre is the maximum of the distance transform; the border of the image counts as border of the region.
    Missed regions win ties.
    """
    best, area, missed = None, 0, True
    for kind, error in ((True, target & ~mask), (False, mask & ~target)):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(error.astype(np.uint8), connectivity=8)
        if count == 1:
            continue
        index = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        if stats[index, cv2.CC_STAT_AREA] > area:
            best, area, missed = labels == index, int(stats[index, cv2.CC_STAT_AREA]), kind
    if best is None:
        return None
    depth = border_distance(best)
    y, x = divmod(int(np.argmax(depth)), depth.shape[1])
    return ErrorRegion(x, y, missed, float(depth[y, x]))


def negative_points(
    probability: Float32s, component: npt.NDArray[np.bool_], lesions: npt.NDArray[np.bool_], count: int
) -> tuple[Float32s, int]:
    """Points outside of all lesions, near one of them and far from each other.

    Args:
        probability: (h, w) map.
        component: (h, w) the lesion.
        lesions: (h, w) all pixels of lesions.
        count: number of points.

    Returns:
        Points (count, 2) and how many of them are outside: 0 if there is no background, else all.
    """
    if not count:
        return np.zeros((0, 2), np.float32), 0
    side = max(component.shape)
    distance = cv2.distanceTransform((~component).astype(np.uint8), cv2.DIST_L2, 5)
    outside = ~lesions & (distance > 1)
    if not outside.any():
        return np.zeros((count, 2), np.float32), 0
    ring = outside & (distance >= NEAR * side) & (distance <= FAR * side) & (probability < BACKGROUND)
    for candidates in (ring, outside & (probability < BACKGROUND), outside):
        if candidates.any():
            break
    margin = cv2.distanceTransform((~lesions).astype(np.uint8), cv2.DIST_L2, 5)
    return _spread(np.where(candidates, margin, 0).astype(np.float32), count), count


def _spread(weight: Float32s, count: int) -> Float32s:
    """Points (count, 2) x, y: each has the largest of the smaller of its weight and its distance to the others."""
    height, width = weight.shape
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    value = weight.astype(np.float32)
    chosen = np.zeros((count, 2), np.float32)
    for i in range(count):
        y, x = divmod(int(np.argmax(value)), width)
        if value[y, x] <= 0:  # more points than pixels: repeat them
            chosen[i:] = chosen[np.arange(count - i) % max(i, 1)]
            break
        chosen[i] = x, y
        value = np.minimum(value, np.sqrt((rows - y) ** 2 + (columns - x) ** 2, dtype=np.float32))
    return chosen


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
