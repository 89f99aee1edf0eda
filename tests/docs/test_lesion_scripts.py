"""The scripts that make images without a lesion and with two, and that draw the images of the repository."""

from __future__ import annotations

import importlib
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from promise.data.images import read_image, write_png
from promise.data.masks import read_mask
from promise.data.prepare.layouts import find_sets
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


def test_skin_samples_are_those_of_the_seed_without_held_out_images(phantoms: Path, tmp_path: Path, script) -> None:
    source, options = f"folder={phantoms.parent}", ["--count", "3", "1", "2", "--seed", "3"]
    for out in (tmp_path / "a", tmp_path / "b"):
        script("skin_samples").main([source, str(out), *options])
    table = read_table(tmp_path / "a/split.csv")
    assert table.counts == {"train": 3, "val": 1, "test": 2}
    assert (tmp_path / "a/split.csv").read_bytes() == (tmp_path / "b/split.csv").read_bytes()
    held_out = [row.image.stem for row in table.rows[:2]]
    (tmp_path / "a/held_out.txt").write_text("\n".join(held_out))
    script("skin_samples").main([source, str(tmp_path / "a"), *options])
    rows = read_table(tmp_path / "a/split.csv").rows
    assert not {row.image.stem for row in rows} & set(held_out)
    for row in rows:
        assert read_image(row.image).shape == (256, 256, 3)
        expected = read_mask(phantoms.parent / "masks" / row.mask.name)
        assert abs(read_mask(row.mask).mean() - expected.mean()) < 0.01


def test_skin_samples_leave_out_images_that_look_alike_and_doubtful_masks(
    own_phantoms: Path, tmp_path: Path, script
) -> None:
    folder = own_phantoms.parent
    pairs = sorted(path.name for path in (folder / "images").iterdir())
    shutil.copyfile(folder / "images" / pairs[0], folder / "images/copy.png")
    shutil.copyfile(folder / "masks" / pairs[0], folder / "masks/copy.png")
    for name, size in ((pairs[1], 0), (pairs[2], 3)):  # an empty mask, and one with a component of nine pixels
        mask = read_mask(folder / "masks" / name).astype(np.uint8) * 255
        mask[:8, :8] = 0
        mask[:size, :size] = 255
        write_png(folder / "masks" / name, mask if size else np.zeros_like(mask))
    pairs_found = find_sets("folder", folder)[0].pairs
    found = [pair.name for pair in script("skin_samples").usable(pairs_found, set(), 0)]
    assert len({Path(pairs[0]).stem, "copy"} & set(found)) == 1
    assert not {Path(name).stem for name in pairs[1:3]} & set(found)
    assert len(found) >= 6


@pytest.mark.real_data
def test_the_images_of_the_repository_can_be_drawn_again(shared: Path, tmp_path: Path, script) -> None:
    source = shared / "data/isic2017_train_256"
    if not source.is_dir():
        pytest.skip(f"{source} does not exist")
    folder = Path(__file__).parents[2] / "data_format/skin"
    shutil.copyfile(folder / "held_out.txt", tmp_path / "held_out.txt")
    script("skin_samples").main([f"folder={source}", str(tmp_path)])
    for row in read_table(folder / "split.csv").rows:
        for path in (row.image, row.mask):
            assert path.read_bytes() == (tmp_path / path.parent.name / path.name).read_bytes()
    assert (folder / "split.csv").read_bytes() == (tmp_path / "split.csv").read_bytes()


@pytest.mark.parametrize("name", ["no_lesion_crops", "two_lesions", "linear_probe", "unet_baseline"])
def test_a_missing_csv_is_one_line(name: str, tmp_path: Path, script, monkeypatch, capsys) -> None:
    path = script(name).__file__
    monkeypatch.setattr("sys.argv", [path, str(tmp_path / "a.csv"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(path, run_name="__main__")
    assert left.value.code == 1
    assert capsys.readouterr().err.splitlines() == [f"{name}.py: {tmp_path / 'a.csv'}: no such file."]
