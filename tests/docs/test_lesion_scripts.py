"""The scripts that make images without a lesion and images with two."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from promise.data.images import read_image, read_mask
from promise.data.table import read_table


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A function that imports a script of the notebook."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs/notebook"))
    return importlib.import_module


def test_crops_show_a_part_of_an_image_without_lesion(phantoms: Path, tmp_path: Path, script) -> None:
    script("no_lesion_crops").main([str(phantoms), str(tmp_path), "--split", "train", "--count", "3", "--append"])
    before, after = read_table(phantoms), read_table(tmp_path / "split.csv")
    kept, crops = after.rows[: len(before.rows)], after.rows[len(before.rows) :]
    assert [(r.image.resolve(), r.split) for r in kept] == [(r.image.resolve(), r.split) for r in before.rows]
    assert [row.split for row in crops] == ["train"] * 3
    sources = [(read_image(row.image), read_mask(row.mask)) for row in before.split("train")]
    for row in crops:
        crop, mask = read_image(row.image), read_mask(row.mask)
        assert mask.shape == crop.shape[:2]
        assert not mask.any()
        places = []
        for image, lesion in sources:
            difference = cv2.matchTemplate(image, crop, cv2.TM_SQDIFF)
            y, x = np.unravel_index(difference.argmin(), difference.shape)
            region = slice(y, y + crop.shape[0]), slice(x, x + crop.shape[1])
            if np.array_equal(image[region], crop):
                places.append(lesion[region].any())
        assert places
        assert not any(places)


def test_pairs_have_two_lesions(phantoms: Path, tmp_path: Path, script) -> None:
    script("two_lesions").main([str(phantoms), str(tmp_path), "--split", "train", "--append"])
    before, after = read_table(phantoms), read_table(tmp_path / "split.csv")
    kept, composed = after.rows[: len(before.rows)], after.rows[len(before.rows) :]
    assert [(r.image.resolve(), r.split) for r in kept] == [(r.image.resolve(), r.split) for r in before.rows]
    assert composed
    for row in composed:
        assert row.split == "train"
        assert cv2.connectedComponents(read_mask(row.mask).astype(np.uint8))[0] == 3
        assert read_image(row.image).shape[:2] == read_mask(row.mask).shape
