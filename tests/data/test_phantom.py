from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promise.data.check import check_files
from promise.data.images import read_image
from promise.data.masks import read_mask
from promise.data.phantom import make_phantom, make_phantoms
from promise.data.table import read_table


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_set_is_a_valid_table(tmp_path: Path) -> None:
    path = make_phantoms(tmp_path / "set", count=10, size=64, seed=0)
    assert path == tmp_path / "set/split.csv"
    table = read_table(path)
    assert table.counts == {"train": 7, "val": 1, "test": 2}
    assert table.notes == ()
    assert check_files(table.rows, csv_path=path, level="full", progress=False) == []
    assert read_image(table.rows[0].image).shape == (64, 64, 3)


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b", "b"):  # the second run of b writes over the first
        make_phantoms(tmp_path / name, count=3, size=48, seed=4)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert len(tree(tmp_path / "a")) == 7
    make_phantoms(tmp_path / "c", count=3, size=48, seed=5)
    first = "images/phantom_0000.png"
    assert tree(tmp_path / "c")[first] != tree(tmp_path / "a")[first]


def test_an_image_does_not_depend_on_the_count(tmp_path: Path) -> None:
    make_phantoms(tmp_path / "few", count=2, size=48, seed=4)
    make_phantoms(tmp_path / "more", count=5, size=48, seed=4)
    few, more = tree(tmp_path / "few"), tree(tmp_path / "more")
    assert all(more[name] == few[name] for name in few if name.endswith(".png"))


def test_images_differ_and_files_contain_the_generated_arrays(tmp_path: Path) -> None:
    make_phantoms(tmp_path, count=2, size=48, seed=4)
    images = []
    for index in range(2):
        image, mask = make_phantom(seed=4, index=index, size=(48, 48))
        np.testing.assert_array_equal(read_image(tmp_path / f"images/phantom_000{index}.png"), image)
        np.testing.assert_array_equal(read_mask(tmp_path / f"masks/phantom_000{index}.png"), mask == 1)
        images.append(image)
    assert np.abs(images[0].astype(int) - images[1]).mean() > 5


def test_lesions_have_varied_sizes() -> None:
    fractions = np.array([make_phantom(seed=2, index=i, size=(64, 64))[1].mean() for i in range(60)])
    assert fractions.min() > 0.004
    assert fractions.max() < 0.42
    assert (fractions < 0.04).sum() >= 5
    assert (fractions > 0.12).sum() >= 5


def test_lesions_differ_from_the_wall_but_no_threshold_segments_them() -> None:
    differences, best = [], []
    for index in range(20):
        image, mask = make_phantom(seed=1, index=index, size=(96, 96))
        inside = mask == 1
        grey = image.mean(axis=2)
        around = ~inside & (grey > 20)
        colours = image.astype(float)
        differences.append(np.abs(colours[inside].mean(axis=0) - colours[around].mean(axis=0)).max())
        candidates = [p for t in np.percentile(grey, range(5, 100, 5)) for p in (grey > t, grey < t)]
        best.append(max((p & inside).sum() / (p | inside).sum() for p in candidates))
    assert np.median(differences) > 8  # grey levels
    assert np.mean(best) < 0.5  # IoU, although each threshold is the best one in hindsight


def test_a_range_of_sizes_and_odd_shapes(tmp_path: Path) -> None:
    table = read_table(make_phantoms(tmp_path, count=6, size=(40, 80), seed=0))
    shapes = {read_image(row.image).shape[:2] for row in table.rows}
    assert len(shapes) >= 5
    assert all(40 <= side <= 80 for shape in shapes for side in shape)


@pytest.mark.parametrize(
    ("count", "splits", "expected"),
    [
        (3, (0.7, 0.1, 0.2), {"train": 1, "val": 1, "test": 1}),
        (20, (0.7, 0.1, 0.2), {"train": 14, "val": 2, "test": 4}),
        (4, (1, 0, 1), {"train": 2, "test": 2}),
        (1, (0.7, 0.1, 0.2), {"train": 1}),
    ],
)
def test_splits(tmp_path: Path, count: int, splits: tuple[float, ...], expected: dict[str, int]) -> None:
    with make_phantoms(tmp_path, count=count, size=32, seed=0, splits=splits).open() as stream:
        assert Counter(row["train_type"] for row in csv.DictReader(stream)) == expected


def test_values_out_of_range(tmp_path: Path, user_error: Callable[..., Any]) -> None:
    for options in ({"count": 0}, {"size": 8}, {"size": (64, 32)}, {"seed": -1}):
        with user_error("invalid-phantom-settings"):
            make_phantoms(tmp_path / "x", **{"count": 1, "seed": 0, **options})
    for splits in ((1, 0), (1, -1, 1), (0, 0, 0), (float("nan"), 1, 1), (float("inf"), 1, 1)):
        with user_error("invalid-fractions"):
            make_phantoms(tmp_path / "x", count=1, seed=0, splits=splits)
    assert not (tmp_path / "x").exists()
