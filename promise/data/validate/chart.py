"""Draw the chart of a validation: rows, image sizes and foreground fractions, one colour per split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from promise.runtime.files import atomic_path

COLOURS = {"train": "#4477aa", "val": "#ccbb44", "test": "#ee6677"}


@dataclass
class SplitFigures:
    """The data of one split."""

    sizes: list[tuple[int, int]] = field(default_factory=list)  # height, width of each image
    foreground: list[float] = field(default_factory=list)  # fraction of each mask
    rows: dict[str, int] = field(default_factory=dict)  # CSV → rows


def draw_chart(path: Path, splits: Mapping[str, SplitFigures], csvs: Sequence[str]) -> None:
    """Draw three panels and write them to an image file; the file is replaced atomically.

    Args:
        path: the image file; its suffix selects one of matplotlib's formats.
        splits: split → data.
        csvs: names of the CSVs, one bar each.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(13, 4), layout="constrained")
    balance, sizes, fractions = figure.subplots(1, 3)
    starts = np.zeros(len(csvs))
    for name, data in splits.items():
        counts = np.array([data.rows.get(csv, 0) for csv in csvs], float)
        balance.barh(list(csvs), counts, left=starts, color=COLOURS[name], label=f"{name}, {int(counts.sum())} rows")
        starts += counts
        if data.sizes:
            heights, widths = zip(*data.sizes, strict=True)
            sizes.scatter(widths, heights, s=12, alpha=0.4, color=COLOURS[name], linewidths=0)
        if data.foreground:
            edges = np.linspace(0, 1, 41)
            weights = np.full(len(data.foreground), 1 / len(data.foreground))
            fractions.hist(data.foreground, edges, weights=weights, histtype="step", color=COLOURS[name], linewidth=1.5)
    balance.set(title="rows", xlabel="rows")
    balance.invert_yaxis()
    if splits:
        balance.legend(fontsize="small")
    sizes.set(title="image sizes", xlabel="width, pixels", ylabel="height, pixels")
    fractions.set(title="foreground", xlabel="fraction of the pixels", ylabel="fraction of the rows", xlim=(0, 1))
    for axis in (sizes, fractions):
        axis.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
