"""Responses: segmentations as JSON, PNG files and prompts files."""

from __future__ import annotations

import base64
import math
from pathlib import PurePath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from promise.app.open_images import OpenImage
from promise.inference.overlay import NEGATIVE, POSITIVE, PREDICTED
from promise.inference.segmentation import Segmentation
from promise.models.quality import describe_quality
from promise.prompts.file import Draw, prompts_text
from promise.prompts.sets import ImagePrompts


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """A mask (H, W) as a PNG of 0 and 255, 8 bits per pixel, as ``promise-predict`` writes it."""
    return _encode(".png", mask.astype(np.uint8) * np.uint8(255), cv2.IMWRITE_PNG_COMPRESSION, 3)


def encode_bits(mask: NDArray[np.bool_]) -> bytes:
    """A mask (H, W) as a PNG with one bit per pixel: nine times as fast as 8 bits for a large mask."""
    return _encode(".png", mask.astype(np.uint8) * np.uint8(255), cv2.IMWRITE_PNG_BILEVEL, 1)


def encode_image(pixels: NDArray[np.uint8]) -> bytes:
    """An image (H, W, 3) RGB as a JPEG for display."""
    return _encode(".jpg", pixels[:, :, ::-1], cv2.IMWRITE_JPEG_QUALITY, 95)


def encode_thumbnail(pixels: NDArray[np.uint8], side: int = 192) -> bytes:
    """The central square of an image (H, W, 3) RGB as a JPEG of ``side`` × ``side`` pixels."""
    height, width = pixels.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = pixels[top : top + edge, left : left + edge, ::-1]
    return _encode(".jpg", cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA), cv2.IMWRITE_JPEG_QUALITY, 88)


def _encode(suffix: str, pixels: NDArray[Any], setting: int, value: int) -> bytes:
    done, data = cv2.imencode(suffix, np.ascontiguousarray(pixels), [setting, value])
    assert done
    return np.asarray(data).tobytes()


def segmentation_to_dict(found: Segmentation) -> dict[str, Any]:
    """A segmentation as JSON.

    The mask is a PNG with one bit per pixel in base64; an outline is a flat list x, y, x, y, … with two decimals.
    ``lesions`` has the prompts of each lesion; ``points`` and ``labels`` are those of all lesions, and ``box`` is the
    only box.
    ``iou`` and ``ious`` are ``None`` for a mask that was corrected with clicks.
    ``estimated_iou`` and ``estimate``, the same in words, are ``None`` without a learned estimate.
    """
    lesions = [
        {"points": one.xy.tolist(), "labels": one.label.tolist(), "box": None if one.box is None else one.box.tolist()}
        for one in found.prompts.sets
    ]
    return {
        "mask": base64.b64encode(encode_bits(found.mask)).decode("ascii"),
        "outlines": [np.round(outline, 2).reshape(-1).tolist() for outline in found.smooth_contours()],
        "iou": _finite(found.iou),
        "estimated_iou": found.quality,
        "estimate": None if found.quality is None else describe_quality(found.quality),
        "ious": [_finite(iou) for iou in found.ious],
        "mask_index": found.mask_index,
        "area": found.area,
        "fraction": float(found.fraction),
        "seconds": float(found.seconds),
        "lesions": lesions,
        "fuse": found.prompts.fuse,
        "points": found.points.tolist(),
        "labels": found.labels.tolist(),
        "box": None if found.box is None else np.asarray(found.box).tolist(),
    }


def _finite(value: float) -> float | None:
    """A number as JSON, ``null`` where a corrected mask has none."""
    return float(value) if math.isfinite(value) else None


def draw_result(pixels: NDArray[np.uint8], found: Segmentation, opacity: float) -> bytes:
    """Draw mask, outlines and prompts on an image at its own size.

    Args:
        pixels: (H, W, 3) RGB.
        found: segmentation of the image.
        opacity: opacity of the mask, in [0, 1].

    Returns:
        A PNG file.
    """
    canvas = pixels.copy()
    tint = np.asarray(PREDICTED, np.float64) * opacity
    canvas[found.mask] = np.rint(canvas[found.mask] * (1 - opacity) + tint).astype(np.uint8)
    longer = max(pixels.shape[:2])
    width, radius = max(1, longer // 400), max(2, longer // 110)
    sixteenths = [np.rint(outline * 16).astype(np.int32) for outline in found.smooth_contours()]
    cv2.polylines(canvas, sixteenths, True, PREDICTED, width, cv2.LINE_AA, shift=4)
    for box in found.boxes:
        x0, y0, x1, y1 = (round(float(v)) for v in box)
        cv2.rectangle(canvas, (x0, y0), (x1, y1), POSITIVE, width, cv2.LINE_AA)
    for (x, y), label in zip(found.points, found.labels, strict=True):
        if label < 0:  # padding
            continue
        centre = (round(float(x)), round(float(y)))
        cv2.circle(canvas, centre, radius + max(1, radius // 4), (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(canvas, centre, radius, POSITIVE if label else NEGATIVE, -1, cv2.LINE_AA)
    return _encode(".png", canvas[:, :, ::-1], cv2.IMWRITE_PNG_COMPRESSION, 3)


def prompts_file(image: OpenImage, prompts: ImagePrompts, *, automatic: bool) -> str:
    """The content of a prompts file, which ``promise-eval`` and ``promise-predict`` read."""
    images = {PurePath(image.name).stem: prompts}
    return prompts_text("auto" if automatic else "clicks", [Draw(None, {"images": images})])
