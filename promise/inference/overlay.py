"""Outlines and prompts drawn on an image."""

from __future__ import annotations

import cv2
import numpy as np

GROUND_TRUTH, PREDICTED = (64, 220, 255), (255, 208, 32)  # RGB outlines
POSITIVE, NEGATIVE = (40, 200, 60), (230, 40, 40)  # RGB dots
SHORTEST, LONGEST = 512, 768  # limits of the longer side of the drawing, pixels


def draw_overlay(
    image: np.ndarray,
    target: np.ndarray,
    predicted: np.ndarray,
    *,
    xy: np.ndarray,
    label: np.ndarray,
    boxes: np.ndarray | None = None,
    caption: str = "",
) -> np.ndarray:
    """Draw the outlines of ground truth (cyan) and prediction (yellow), and the prompts (green and red dots).

    Args:
        image: (H, W, 3) uint8 RGB.
        target: (H, W) bool, the ground truth; without one, a mask without foreground.
        predicted: (H, W) bool, the prediction.
        xy: (P, 2) prompts in this image's pixels.
        label: (P,) 1 foreground, 0 background; points with other labels are not drawn.
        boxes: (L, 4) x0, y0, x1, y1 in this image's pixels.
        caption: one line of text above the image.

    Returns:
        (h, w, 3) uint8 RGB with a longer side of 512 to 768 pixels, below a strip with the caption if there is one.
    """
    longer = max(image.shape[:2])
    scale = min(max(longer, SHORTEST), LONGEST) / longer
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    width = max(1, max(size) // 256)
    for mask, colour in ((target, GROUND_TRUTH), (predicted, PREDICTED)):
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, colour, width, cv2.LINE_AA)
    for box in () if boxes is None else boxes:
        x0, y0, x1, y1 = (round(float(v) * scale) for v in box)
        cv2.rectangle(canvas, (x0, y0), (x1, y1), POSITIVE, width, cv2.LINE_AA)
    radius = max(2, max(size) // 96)
    for (x, y), kind in zip((xy + 0.5) * scale - 0.5, label, strict=True):
        if kind in (0, 1):
            centre = (round(float(x)), round(float(y)))
            cv2.circle(canvas, centre, radius + 1, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(canvas, centre, radius, POSITIVE if kind else NEGATIVE, -1, cv2.LINE_AA)
    return _with_caption(canvas, caption) if caption else canvas


def _with_caption(canvas: np.ndarray, caption: str) -> np.ndarray:
    strip = np.full((22, canvas.shape[1], 3), 24, np.uint8)
    cv2.putText(strip, caption, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (240, 240, 240), 1, cv2.LINE_AA)
    return np.vstack((strip, canvas))
