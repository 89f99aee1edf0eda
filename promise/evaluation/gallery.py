"""Overlays of the best, median and worst rows of a data set.

The rows are chosen after all of them are scored. Until then the masks are stored compressed, a few kilobytes each.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promise.data.table import Row
from promise.evaluation.drawing import draw_row, file_name, warn_if_unwritten
from promise.prompts.sets import ImagePrompts

KINDS = ("best", "median", "worst")


def choose_rows(dice: np.ndarray, count: int) -> dict[str, list[int]]:
    """The best, median and worst rows by Dice (N,), up to ``count`` each, none of them twice.

    With fewer than 3 · count rows, each kind gets a third. Rows whose Dice is NaN are excluded.
    """
    # Stable: ties keep the order of the rows.
    order = [int(i) for i in np.argsort(-dice, kind="stable") if not np.isnan(dice[i])]
    each = min(count, max(1, len(order) // 3))
    best, rest = order[:each], order[each:]
    worst, rest = rest[len(rest) - min(each, len(rest)) :][::-1], rest[: max(0, len(rest) - each)]
    first = max(0, (len(rest) - each) // 2)
    return dict(zip(KINDS, (best, rest[first : first + each], worst), strict=True)) if count else {}


class Gallery:
    """The predicted masks of a data set, stored until the rows to draw are chosen."""

    def __init__(self, rows: Sequence[Row], count: int) -> None:
        self._rows = rows
        self._count = count
        self._masks: dict[int, tuple[tuple[int, int], bytes]] = {}

    def keep(self, index: int, mask: np.ndarray) -> None:
        """Store the predicted mask (H, W) of a row."""
        if self._count:
            self._masks[index] = (mask.shape[0], mask.shape[1]), zlib.compress(np.packbits(mask).tobytes(), 1)

    def draw(
        self,
        folder: Path,
        dataset: str,
        *,
        dice: np.ndarray,
        iou: np.ndarray,
        prompts: Mapping[str, ImagePrompts],
        caption: str,
    ) -> list[dict[str, Any]]:
        """Draw the best, median and worst rows.

        Args:
            folder: of the evaluation; the overlays are written to ``gallery/<dataset>`` in it.
            dataset: name of the data set.
            dice: (N,) scores that rank the rows.
            iou: (N,) scores for the caption.
            prompts: name of a row → its prompts.
            caption: text before the scores.

        Returns:
            The entries of summary.json, one per overlay.
        """
        entries = []
        for kind, chosen in choose_rows(dice, self._count).items():
            for rank, index in enumerate(chosen, start=1):
                row = self._rows[index]
                path = Path("gallery") / dataset / f"{kind}-{rank}-{file_name(row.name)}"
                text = f"{kind} {rank}  {caption}  Dice {dice[index]:.3f}  IoU {iou[index]:.3f}"
                with warn_if_unwritten():
                    draw_row(folder / path, row, self._mask(index), prompts[row.name], text)
                entries.append(
                    {
                        "dataset": dataset,
                        "kind": kind,
                        "name": row.name,
                        "dice": float(dice[index]),
                        "iou": float(iou[index]),
                        "picture": path.as_posix(),
                    }
                )
        return entries

    def _mask(self, index: int) -> np.ndarray:
        (height, width), packed = self._masks[index]
        bits = np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=height * width)
        return bits.reshape(height, width).astype(bool)
