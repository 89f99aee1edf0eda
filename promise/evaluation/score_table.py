"""The scores of all images of a data set, under one or several draws of prompts: their summary and their CSV lines.

Scores are stored in arrays, so that ten thousand images take a few megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from promise.evaluation.metrics import PROTOCOLS
from promise.evaluation.scoring import Scored
from promise.evaluation.statistics import (
    bootstrap,
    calibration,
    column_means,
    count_misses,
    deviation,
    pooled_overlap,
    size_class,
    stratify,
)
from promise.inference.loop import RowPrediction

Nested = dict[str, dict[str, Any]]  # protocol → metric → value


class ScoreTable:
    """K scores of N images under D draws."""

    def __init__(self, images: int, draws: int) -> None:
        self.names = [""] * images
        self.columns: list[tuple[str, str]] = []  # K pairs (protocol, metric), set by the first row
        self._values = np.zeros((images, draws, 0))
        self._predicted_iou = np.full((images, draws), np.nan)
        self._estimated_iou = np.full((images, draws), np.nan)
        self._has_lesion = np.ones((images, draws), bool)
        self._intersection = np.zeros((images, draws), np.int64)
        self._predicted = np.zeros((images, draws), np.int64)
        self._target = np.zeros(images, np.int64)
        self._pixels = np.ones(images, np.int64)

    def add(self, row: RowPrediction, scored: Scored) -> None:
        """Store the scores of a row under one draw."""
        if not self.columns:
            self.columns = [(protocol, name) for protocol in PROTOCOLS for name in scored.scores[protocol]]
            self._values = np.full((*self._predicted_iou.shape, len(self.columns)), np.nan)
        at = row.index, row.draw
        self.names[row.index] = row.name
        self._values[at] = [scored.scores[protocol][name] for protocol, name in self.columns]
        self._predicted_iou[at] = row.iou
        self._estimated_iou[at] = np.nan if row.quality is None else row.quality
        self._has_lesion[at] = len(row.sets) > 0
        self._intersection[at], self._predicted[at] = scored.intersection, scored.predicted_pixels
        self._target[row.index], self._pixels[row.index] = scored.target_pixels, scored.mask.size

    def column(self, protocol: str, name: str) -> np.ndarray:
        """The values (N, D) of one score; NaN where an image has none."""
        return np.asarray(self._values[:, :, self.columns.index((protocol, name))])

    def lines(self, dataset: str, origin: str) -> Iterator[dict[str, Any]]:
        """The lines of per_image.csv, one per image and draw; the draws of an image are adjacent.

        Args:
            dataset: name of the data set.
            origin: of the prompts: ``auto``, ``oracle``, …
        """
        fractions = self._target / self._pixels
        for i, name in enumerate(self.names):
            for draw in range(self._predicted_iou.shape[1]):
                yield {
                    "dataset": dataset,
                    "name": name,
                    "prompts": origin,
                    "draw": draw,
                    "empty_truth": int(self._target[i] == 0),
                    "foreground_share": float(fractions[i]),
                    "size_class": size_class(fractions[i]),
                    "truth_pixels": int(self._target[i]),
                    "native_intersection": int(self._intersection[i, draw]),
                    "native_predicted_pixels": int(self._predicted[i, draw]),
                    "predicted_iou": float(self._predicted_iou[i, draw]),
                    "estimated_iou": float(self._estimated_iou[i, draw]),
                    **{f"{p}_{n}": float(v) for (p, n), v in zip(self.columns, self._values[i, draw], strict=True)},
                }

    def summarise(self, seeds: Sequence[int | None]) -> dict[str, Any]:
        """The entry of a data set in summary.json.

        Scores are averaged over the draws of an image, then over images; NaN is excluded.

        Args:
            seeds: of the D draws.
        """
        images = column_means(self._values, axis=1)  # (N, K)
        between = column_means(self._values, axis=0)  # (D, K)
        dice, iou = (images[:, self.columns.index(("native", name))] for name in ("dice", "iou"))
        return {
            "images": len(self.names),
            "empty_truths": int((self._target == 0).sum()),
            "mean_predicted_iou": float(self._predicted_iou.mean()),
            "means": self._nested(column_means(images).tolist()),
            "intervals": self._nested(bootstrap(images).tolist()),
            "pooled": pooled_overlap(self._intersection[:, 0], self._predicted[:, 0], self._target),
            "misses": count_misses(dice),
            "by_size": stratify(self._target / self._pixels, dice, iou),
            **self._calibrations(),
            "draws": {
                "count": len(seeds),
                "seeds": list(seeds),
                "deviation": self._nested(deviation(between).tolist()) if len(seeds) > 1 else None,
            },
        }

    def _calibrations(self) -> dict[str, Any]:
        """Calibration of SAM's estimate and of the learned one, over the images with a lesion in the first draw."""
        true = np.where(self._has_lesion[:, 0], self.column("native", "iou")[:, 0], np.nan)
        learned = self._estimated_iou[:, 0]
        return {
            "calibration": calibration(self._predicted_iou[:, 0], true),
            **({} if np.isnan(learned).all() else {"estimated_calibration": calibration(learned, true)}),
            "without_lesion": int((~self._has_lesion[:, 0]).sum()),
        }

    def _nested(self, values: Sequence[Any]) -> Nested:
        nested: Nested = {protocol: {} for protocol in PROTOCOLS}
        for (protocol, name), value in zip(self.columns, values, strict=True):
            nested[protocol][name] = value
        return nested
