"""The scores of a data set's images under one draw of prompts or several: rows in, figures and CSV lines out.

Held as arrays, so that ten thousand images are a few megabytes; knows no files, models or pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from promise.evaluation.scoring import PROTOCOLS, Scored
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

Figures = dict[str, dict[str, Any]]  # protocol → metric → figure


class ScoreTable:
    """N images under D draws, K scores each."""

    def __init__(self, images: int, draws: int) -> None:
        self.names = [""] * images
        self.columns: list[tuple[str, str]] = []  # (protocol, metric), K of them, known with the first row
        self._values = np.zeros((images, draws, 0))
        self._predicted_iou = np.full((images, draws), np.nan)
        self._intersection = np.zeros((images, draws), np.int64)
        self._predicted = np.zeros((images, draws), np.int64)
        self._truth = np.zeros(images, np.int64)
        self._pixels = np.ones(images, np.int64)

    def add(self, row: RowPrediction, scored: Scored) -> None:
        """Take in a row under one draw."""
        if not self.columns:
            self.columns = [(protocol, name) for protocol in PROTOCOLS for name in scored.scores[protocol]]
            self._values = np.full((*self._predicted_iou.shape, len(self.columns)), np.nan)
        at = row.index, row.draw
        self.names[row.index] = row.name
        self._values[at] = [scored.scores[protocol][name] for protocol, name in self.columns]
        self._predicted_iou[at] = row.iou
        self._intersection[at], self._predicted[at] = scored.intersection, scored.predicted_pixels
        self._truth[row.index], self._pixels[row.index] = scored.truth_pixels, scored.mask.size

    def column(self, protocol: str, name: str) -> np.ndarray:
        """One score (N, D)."""
        return np.asarray(self._values[:, :, self.columns.index((protocol, name))])

    def lines(self, dataset: str, origin: str) -> Iterator[dict[str, Any]]:
        """The lines of per_image.csv: image by image, draw by draw."""
        shares = self._truth / self._pixels
        for i, name in enumerate(self.names):
            for draw in range(self._predicted_iou.shape[1]):
                yield {
                    "dataset": dataset,
                    "name": name,
                    "prompts": origin,
                    "draw": draw,
                    "empty_truth": int(self._truth[i] == 0),
                    "foreground_share": float(shares[i]),
                    "size_class": size_class(shares[i]),
                    "truth_pixels": int(self._truth[i]),
                    "native_intersection": int(self._intersection[i, draw]),
                    "native_predicted_pixels": int(self._predicted[i, draw]),
                    "predicted_iou": float(self._predicted_iou[i, draw]),
                    **{f"{p}_{n}": float(v) for (p, n), v in zip(self.columns, self._values[i, draw], strict=True)},
                }

    def summarise(self, seeds: Sequence[int | None]) -> dict[str, Any]:
        """The figures of a data set.

        Means are over images, of each image's mean over the draws; what is not a number is left out.

        Args:
            seeds: of the D draws.
        """
        images = column_means(self._values, axis=1)  # (N, K)
        between = column_means(self._values, axis=0)  # (D, K)
        dice, iou = (images[:, self.columns.index(("native", name))] for name in ("dice", "iou"))
        return {
            "images": len(self.names),
            "empty_truths": int((self._truth == 0).sum()),
            "mean_predicted_iou": float(self._predicted_iou.mean()),
            "means": self._nested(column_means(images).tolist()),
            "intervals": self._nested(bootstrap(images).tolist()),
            "pooled": pooled_overlap(self._intersection[:, 0], self._predicted[:, 0], self._truth),
            "misses": count_misses(dice),
            "by_size": stratify(self._truth / self._pixels, dice, iou),
            "calibration": calibration(self._predicted_iou[:, 0], self.column("native", "iou")[:, 0]),
            "draws": {
                "count": len(seeds),
                "seeds": list(seeds),
                "deviation": self._nested(deviation(between).tolist()) if len(seeds) > 1 else None,
            },
        }

    def _nested(self, figures: Sequence[Any]) -> Figures:
        nested: Figures = {protocol: {} for protocol in PROTOCOLS}
        for (protocol, name), figure in zip(self.columns, figures, strict=True):
            nested[protocol][name] = figure
        return nested
