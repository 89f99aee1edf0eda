"""Copies of images are detected by their content, whatever their names."""

from __future__ import annotations

import shutil
from pathlib import Path

from promise.data.leaks import (
    count_seen,
    find_seen,
    find_shared,
    hash_data,
    hash_images,
)
from promise.data.table import Row, read_table
from promise.runtime.notices import Notice, describe


def test_a_copy_is_found_by_its_content(phantoms: Path, tmp_path: Path) -> None:
    rows = read_table(phantoms).rows
    copy = tmp_path / "other.png"
    shutil.copy(rows[0].image, copy)
    scored = hash_images([Row("other", copy, rows[0].mask, "test", 2), rows[5]])
    seen = {"train": hash_images(rows[:3]), "val": hash_images(rows[3:5]), "tune": hash_images(rows[5:6])}
    counts = count_seen(scored, seen)
    assert counts == {"train": 1, "val": 0, "tune": 1}
    warnings = find_seen("set", counts, 2)
    assert warnings == [
        Notice(f"scored-images-{use}-on", {"dataset": "set", "split": split, "images": 1, "of": 2})
        for use, split in (("trained", "train"), ("tuned", "tune"))
    ]
    assert [describe(warning).split(";")[0] for warning in warnings] == [
        "set: the net was trained on 1 of the 2 scored images",
        "set: the postprocessing was chosen on 1 of the 2 scored images",
    ]


def test_every_use_has_a_text() -> None:
    counts = {"train": 3, "val": 4, "tune": 5}
    texts = [describe(notice) for notice in find_seen("set", counts, 6)]
    assert [warning.code for warning in find_seen("set", counts, 6)] == [
        "scored-images-trained-on",
        "scored-images-selected-on",
        "scored-images-tuned-on",
    ]
    assert all(f"{number} of the 6 scored images" in text for number, text in zip((3, 4, 5), texts, strict=True))


def test_images_that_splits_share_are_reported(phantoms: Path) -> None:
    hashes = hash_images(read_table(phantoms).rows)
    assert find_shared(hashes[:6], hashes[6:]) == []
    assert find_shared(hashes[:6], hashes[4:7]) == [Notice("validation-images-trained-on", {"images": 2, "of": 3})]
    (shared,) = find_shared(hashes[:6], hashes[4:7])
    assert describe(shared).startswith("2 of the 3 validation images are also in ")


def test_the_data_hash_depends_on_every_file(phantoms: Path, tmp_path: Path) -> None:
    rows = read_table(phantoms).rows[:3]
    images = hash_images(rows)
    first = hash_data(rows, images)
    assert first == hash_data(rows, images)
    assert len(first) == 16
    swapped = Row(rows[0].name, rows[0].image, rows[1].mask, "test", 2)
    assert hash_data([swapped, *rows[1:]], images) != first
    assert hash_data(rows[:2], images[:2]) != first
