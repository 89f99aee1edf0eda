"""Learning curves as an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from promise.runtime.files import atomic_path


def draw_curves(path: Path, history: Sequence[Mapping[str, float | None]]) -> None:
    """Draw loss and validation scores over the epochs, all or nothing."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for axis, names, title in (
        (losses, ("train_loss", "val_loss"), "loss"),
        (scores, ("val_dice", "val_iou"), "validation"),
    ):
        for name in names:
            at = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
            if at:
                axis.plot(*zip(*at, strict=True), marker="o", markersize=3, label=name.replace("_", " "))
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend()
    scores.set_ylim(0, 1)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
