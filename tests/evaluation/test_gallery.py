"""The choice of rows for the gallery, and the masks in the overlays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from promise.data.images import read_image
from promise.data.table import read_table
from promise.evaluation.drawing import remove_overlays
from promise.evaluation.gallery import Gallery, choose_rows
from promise.inference.overlay import PREDICTED
from promise.prompts.sets import ImagePrompts, PromptSet


@pytest.mark.parametrize(
    ("dice", "count", "expected"),
    [
        ([0.1, 0.9, 0.5, 0.3, 0.7, 0.6], 2, {"best": [1, 4], "median": [5, 2], "worst": [0, 3]}),
        ([0.1, 0.9, 0.5, 0.3, 0.7, 0.6, 0.2], 1, {"best": [1], "median": [2], "worst": [0]}),
        ([0.1, 0.9, 0.5], 4, {"best": [1], "median": [2], "worst": [0]}),
        ([0.1, 0.9], 4, {"best": [1], "median": [], "worst": [0]}),
        ([0.5], 4, {"best": [0], "median": [], "worst": []}),
        ([np.nan, 0.9, np.nan, 0.2], 4, {"best": [1], "median": [], "worst": [3]}),
        ([np.nan], 4, {"best": [], "median": [], "worst": []}),
        ([0.1, 0.9], 0, {}),
    ],
)
def test_rows_are_chosen_by_dice_and_at_most_once(dice, count: int, expected) -> None:
    assert choose_rows(np.array(dice), count) == expected


def test_twelve_of_thirty_are_chosen() -> None:
    chosen = choose_rows(np.linspace(0, 1, 30), 4)
    assert chosen == {"best": [29, 28, 27, 26], "median": [16, 15, 14, 13], "worst": [0, 1, 2, 3]}


def test_overlays_show_the_stored_masks(phantoms: Path, tmp_path: Path) -> None:
    rows = read_table(phantoms).split("test")
    gallery = Gallery(rows, 1)
    prompts = {}
    for i, row in enumerate(rows):
        mask = np.zeros((64, 64), bool)
        mask[4 : 12 + i, 4:13] = True
        gallery.keep(i, mask)
        prompts[row.name] = ImagePrompts((64, 64), (PromptSet(np.array([[32.0, 32.0]]), np.array([1])),))
    dice = np.array([0.2, 0.9, 0.5])
    entries = gallery.draw(tmp_path, "set", dice=dice, iou=dice / 2, prompts=prompts, caption="net, auto")
    assert [(e["kind"], e["name"], e["dice"], e["iou"]) for e in entries] == [
        ("best", rows[1].name, 0.9, 0.45),
        ("median", rows[2].name, 0.5, 0.25),
        ("worst", rows[0].name, 0.2, 0.1),
    ]
    for entry, last in zip(entries, (12, 13, 11), strict=True):
        assert entry["picture"].startswith(f"gallery/set/{entry['kind']}-1-")
        overlay = read_image(tmp_path / entry["picture"])[22:].astype(int)
        assert overlay.shape == (512, 512, 3)
        # The lowest line of the outline, three pixels wide, is row `last` of the mask, scaled by eight.
        column = np.abs(overlay[:, 8 * 8] - np.array(PREDICTED)).sum(axis=1) < 90
        assert (np.flatnonzero(column).max() - 1) // 8 == last


def test_only_overlays_are_removed(tmp_path: Path) -> None:
    for name in ("gallery/a/best-1-x.png", "overlays/a/x.png", "gallery/mine.png", "gallery/a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_overlays(tmp_path)
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"mine.png", "notes.txt"}
