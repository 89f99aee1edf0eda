"""The same picture under another name is found; another picture is not."""

from __future__ import annotations

import shutil
from pathlib import Path

from promise.data.leaks import count_seen, describe_seen, describe_shared, hash_data, hash_images
from promise.data.table import Row, read_table


def test_a_copy_is_found_by_its_content(phantoms: Path, tmp_path: Path) -> None:
    rows = read_table(phantoms).rows
    copy = tmp_path / "other.png"
    shutil.copy(rows[0].image, copy)
    scored = hash_images([Row("other", copy, rows[0].mask, "test", 2), rows[5]])
    seen = {"train": hash_images(rows[:3]), "val": hash_images(rows[3:5]), "tune": hash_images(rows[5:6])}
    counts = count_seen(scored, seen)
    assert counts == {"train": 1, "val": 0, "tune": 1}
    assert describe_seen("set", counts, 2) == [
        "set: the net was trained on 1 of the 2 scored images; these scores are no test of it.",
        "set: the postprocessing was chosen on 1 of the 2 scored images; these scores are no test of it.",
    ]


def test_splits_that_share_pictures_are_told(phantoms: Path) -> None:
    hashes = hash_images(read_table(phantoms).rows)
    assert describe_shared(hashes[:6], hashes[6:]) == []
    assert describe_shared(hashes[:6], hashes[4:7])[0].startswith("2 of the 3 validation images are also trained on")
    assert describe_shared(hashes[:6], hashes[5:7])[0].startswith("1 of the 2 validation images is also trained on")


def test_the_data_hash_hangs_on_every_file(phantoms: Path, tmp_path: Path) -> None:
    rows = read_table(phantoms).rows[:3]
    images = hash_images(rows)
    first = hash_data(rows, images)
    assert first == hash_data(rows, images)
    assert len(first) == 16
    swapped = Row(rows[0].name, rows[0].image, rows[1].mask, "test", 2)
    assert hash_data([swapped, *rows[1:]], images) != first
    assert hash_data(rows[:2], images[:2]) != first
