"""The picture of a validation: rows, image sizes and foreground shares, a colour a split; knows no rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from promise.runtime.files import atomic_path

COLOURS = {"train": "#4477aa", "val": "#ccbb44", "test": "#ee6677"}


@dataclass
class SplitFigures:
    """What is drawn of one split."""

    sizes: list[tuple[int, int]] = field(default_factory=list)  # height, width of each image
    foreground: list[float] = field(default_factory=list)  # share of each mask
    rows: dict[str, int] = field(default_factory=dict)  # CSV → rows


def draw_chart(path: Path, splits: Mapping[str, SplitFigures], csvs: Sequence[str]) -> None:
    """Draw three panels into a picture of any format that matplotlib writes, all or nothing."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(13, 4), layout="constrained")
    balance, sizes, shares = figure.subplots(1, 3)
    left = np.zeros(len(csvs))
    for name, drawn in splits.items():
        counts = np.array([drawn.rows.get(csv, 0) for csv in csvs], float)
        balance.barh(list(csvs), counts, left=left, color=COLOURS[name], label=f"{name}, {int(counts.sum())} rows")
        left += counts
        if drawn.sizes:
            heights, widths = zip(*drawn.sizes, strict=True)
            sizes.scatter(widths, heights, s=12, alpha=0.4, color=COLOURS[name], linewidths=0)
        if drawn.foreground:
            edges = np.linspace(0, 1, 41)
            weights = np.full(len(drawn.foreground), 1 / len(drawn.foreground))
            shares.hist(drawn.foreground, edges, weights=weights, histtype="step", color=COLOURS[name], linewidth=1.5)
    balance.set(title="rows", xlabel="rows")
    balance.invert_yaxis()
    if splits:
        balance.legend(fontsize="small")
    sizes.set(title="image sizes", xlabel="width, pixels", ylabel="height, pixels")
    shares.set(title="foreground", xlabel="share of the mask's pixels", ylabel="share of the rows", xlim=(0, 1))
    for axis in (sizes, shares):
        axis.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
