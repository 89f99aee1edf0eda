"""What a page and its downloads are told of a segmentation; knows no HTTP and no nets."""

from __future__ import annotations

import base64
from pathlib import PurePath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from promise.app.open_images import OpenImage
from promise.inference.overlay import NEGATIVE, POSITIVE, PREDICTED
from promise.inference.segmenter import Segmentation
from promise.prompts.file import Draw, ImagePrompts, prompts_text


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """A mask (H, W) as a PNG of 0 and 255, 8 bits a pixel as ``promise-predict`` writes it."""
    return _encode(".png", mask.astype(np.uint8) * np.uint8(255), cv2.IMWRITE_PNG_COMPRESSION, 3)


def encode_bits(mask: NDArray[np.bool_]) -> bytes:
    """A mask (H, W) as a PNG of one bit a pixel, black and white: nine times as fast for a large one."""
    return _encode(".png", mask.astype(np.uint8) * np.uint8(255), cv2.IMWRITE_PNG_BILEVEL, 1)


def encode_picture(picture: NDArray[np.uint8]) -> bytes:
    """A picture (H, W, 3) RGB as a JPEG to look at."""
    return _encode(".jpg", picture[:, :, ::-1], cv2.IMWRITE_JPEG_QUALITY, 95)


def encode_thumbnail(picture: NDArray[np.uint8], side: int = 192) -> bytes:
    """A small square of a picture's middle as a JPEG."""
    height, width = picture.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = picture[top : top + edge, left : left + edge, ::-1]
    return _encode(".jpg", cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA), cv2.IMWRITE_JPEG_QUALITY, 88)


def _encode(suffix: str, pixels: NDArray[Any], setting: int, value: int) -> bytes:
    done, data = cv2.imencode(suffix, np.ascontiguousarray(pixels), [setting, value])
    assert done
    return np.asarray(data).tobytes()


def tell(found: Segmentation) -> dict[str, Any]:
    """A segmentation as JSON: the mask as a PNG of bits in base 64, outlines as flat lists x, y, x, y, …"""
    return {
        "mask": base64.b64encode(encode_bits(found.mask)).decode("ascii"),
        "outlines": [outline.reshape(-1).tolist() for outline in found.contours()],
        "iou": float(found.iou),
        "ious": [float(iou) for iou in found.ious],
        "choice": found.choice,
        "area": found.area,
        "share": float(found.share),
        "seconds": float(found.seconds),
        "points": found.points.tolist(),
        "labels": found.labels.tolist(),
        "box": None if found.box is None else np.asarray(found.box).tolist(),
    }


def draw_result(picture: NDArray[np.uint8], found: Segmentation, opacity: float) -> bytes:
    """The picture in its own size with mask, outline and prompts drawn on it, as a PNG.

    Args:
        picture: (H, W, 3) RGB.
        found: what is drawn.
        opacity: of the mask, in [0, 1].
    """
    canvas = picture.copy()
    tint = np.asarray(PREDICTED, np.float64) * opacity
    canvas[found.mask] = np.rint(canvas[found.mask] * (1 - opacity) + tint).astype(np.uint8)
    longer = max(picture.shape[:2])
    width, radius = max(1, longer // 400), max(2, longer // 110)
    cv2.drawContours(canvas, [o.reshape(-1, 1, 2).astype(np.int32) for o in found.contours()], -1, PREDICTED, width)
    if found.box is not None:
        x0, y0, x1, y1 = (round(float(v)) for v in found.box)
        cv2.rectangle(canvas, (x0, y0), (x1, y1), POSITIVE, width, cv2.LINE_AA)
    for (x, y), label in zip(found.points, found.labels, strict=True):
        centre = (round(float(x)), round(float(y)))
        cv2.circle(canvas, centre, radius + max(1, radius // 4), (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(canvas, centre, radius, POSITIVE if label else NEGATIVE, -1, cv2.LINE_AA)
    return _encode(".png", canvas[:, :, ::-1], cv2.IMWRITE_PNG_COMPRESSION, 3)


def write_out(image: OpenImage, prompts: ImagePrompts, *, automatic: bool) -> str:
    """The prompts as a prompts file, which ``promise-eval`` and ``promise-predict`` read."""
    images = {PurePath(image.name).stem: prompts}
    return prompts_text("auto" if automatic else "clicks", [Draw(None, {"images": images})])
