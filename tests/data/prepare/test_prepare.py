from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from promise.data.images import read_image, write_png
from promise.data.masks import read_mask
from promise.data.phantom import make_phantom
from promise.data.prepare.assignment import Splitting
from promise.data.prepare.frame import read_frames
from promise.data.prepare.layouts import ImageSet, find_sets
from promise.data.prepare.pairs import PrepareOptions
from promise.data.prepare.prepare import prepare
from promise.data.table import read_table
from promise.runtime.errors import ExistingRunError

BORDER = 24
Errors = Callable[..., Any]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of phantoms with a black border of 24 pixels on the left and 7 pixels at the top."""
    folder = tmp_path_factory.mktemp("raw")
    for number, (name, count) in enumerate((("kvasir_seg", 10), ("cvc_clinicdb", 12))):
        for kind in ("images", "masks"):
            (folder / name / kind).mkdir(parents=True)
        for index in range(count):
            image, mask = make_phantom(seed=number, index=index, size=(64, 90))
            image = np.maximum(image, 30)  # no dark corners: the content is the whole phantom
            stem = f"k{index}" if number == 0 else str(index + 1)
            edges = ((7, 0), (BORDER, 0))
            cv2.imwrite(str(folder / name / f"images/{stem}.png"), np.pad(image[:, :, ::-1], (*edges, (0, 0))))
            cv2.imwrite(str(folder / name / f"masks/{stem}.png"), np.pad(mask * 255, edges))
    (folder / "split.json").write_text(
        json.dumps(
            {
                "Kvasir-SEG": {"train": [f"k{i}" for i in range(8)], "test": ["k8", "k9"]},
                "cvc_clinicdb": {"train": [str(i) for i in range(1, 10)], "test": ["10", "11", "12"]},
            }
        )
    )
    (folder / "sequences.json").write_text(json.dumps({str(i): (i - 1) // 3 for i in range(1, 13)}))
    return folder


def sets(raw: Path) -> list[ImageSet]:
    kvasir, clinic = raw / "kvasir_seg", raw / "cvc_clinicdb"
    return [*find_sets("kvasir-seg", kvasir), *find_sets("cvc-clinicdb", clinic)]


def quick(**options: object) -> PrepareOptions:
    return PrepareOptions(**{"size": 48, "quiet": True, "workers": 2, **options})


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


# --- output ---


def test_one_set_becomes_images_masks_and_a_split_csv(raw: Path, tmp_path: Path) -> None:
    (kvasir, _) = sets(raw)
    result = prepare([kvasir], tmp_path / "out", options=quick(), splitting=Splitting(fractions=(0.6, 0.2, 0.2)))
    assert result.tables == {tmp_path / "out/split.csv": {"train": 6, "val": 2, "test": 2}}
    table = read_table(tmp_path / "out/split.csv")
    assert table.notes == ()
    assert {row.name for row in table.rows} == {f"k{i}" for i in range(10)}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["frames.csv", "images", "masks", "split.csv"]
    for row in table.rows:
        assert read_image(row.image).shape == (48, 48, 3)
        assert read_mask(row.mask).shape == (48, 48)


def test_pixels_are_cropped_padded_and_resized_as_recorded_in_the_frames(raw: Path, tmp_path: Path) -> None:
    (kvasir, _) = sets(raw)
    prepare([kvasir], tmp_path, options=quick(size=200), splitting=Splitting())
    frames = read_frames(tmp_path / "frames.csv")
    assert frames.keys() == {row["image_name"] for row in lines(tmp_path / "split.csv")}
    for pair in kvasir.pairs:
        frame = frames[f"images/{pair.name}.png"]
        image, mask = read_image(pair.image), read_mask(pair.mask)
        assert (frame.height, frame.width) == mask.shape
        assert (frame.left, frame.top, frame.right, frame.bottom) == (BORDER, 7, frame.width, frame.height)
        assert np.array_equal(read_image(tmp_path / f"images/{pair.name}.png"), frame.prepare(image))
        # Enlarged by more than 1.5: the original mask is restored exactly.
        assert np.array_equal(frame.restore(read_mask(tmp_path / f"masks/{pair.name}.png")), mask)


def test_without_the_crop_the_border_is_kept(raw: Path, tmp_path: Path) -> None:
    (kvasir, _) = sets(raw)
    prepare([kvasir], tmp_path, options=quick(crop_border=False), splitting=Splitting())
    for frame in read_frames(tmp_path / "frames.csv").values():
        assert (frame.left, frame.top, frame.right, frame.bottom) == (0, 0, frame.width, frame.height)


def test_the_polyp_split(raw: Path, tmp_path: Path) -> None:
    splitting = Splitting(
        split_file=raw / "split.json", val_share=0.1, groups=(f"clinicdb={raw / 'sequences.json'}",), seed=0
    )
    result = prepare(sets(raw), tmp_path / "out", options=quick(), splitting=splitting)
    assert {path.name: counts for path, counts in result.tables.items()} == {
        "train.csv": {"train": 7 + 6, "val": 1 + 3},
        "kvasir.csv": {"test": 2},
        "clinicdb.csv": {"test": 3},
    }
    rows = lines(tmp_path / "out/train.csv")
    held_out = {Path(r["image_name"]).stem for r in rows if r["train_type"] == "val" and "clinicdb" in r["image_name"]}
    assert held_out in ({"1", "2", "3"}, {"4", "5", "6"}, {"7", "8", "9"})  # a whole sequence
    assert {r["group"] for r in rows if Path(r["image_name"]).stem in held_out} == {str((int(min(held_out)) - 1) // 3)}
    read_table(tmp_path / "out/train.csv")


def test_in_place_writes_only_csvs_that_work_with_and_without_a_root(raw: Path, tmp_path: Path) -> None:
    splitting = Splitting(split_file=raw / "split.json", val_share=0.2, seed=3)
    result = prepare(sets(raw), tmp_path / "out", options=quick(in_place=True), splitting=splitting)
    assert sorted(content(tmp_path / "out")) == ["clinicdb.csv", "kvasir.csv", "train.csv"]
    assert result.made == 0
    for options in ({}, {"data_root": raw}):
        images = [row.image.resolve() for row in read_table(tmp_path / "out/train.csv", **options).rows]
        assert len(set(images)) == 17
        assert all(raw.resolve() in path.parents for path in images)


def test_in_place_refuses_all_files_that_cannot_be_used_before_anything_is_written(
    raw: Path, tmp_path: Path, user_error
) -> None:
    (kvasir,) = find_sets("kvasir-seg", Path(shutil.copytree(raw / "kvasir_seg", tmp_path / "kvasir_seg")))
    truncated, other_size, grey, empty = (pair for pair in kvasir.pairs[:4])
    truncated.image.write_bytes(truncated.image.read_bytes()[:200])
    write_png(other_size.mask, np.zeros((9, 9), np.uint8))
    write_png(grey.mask, np.full(read_mask(grey.mask).shape, 130, np.uint8))
    codes = ("corrupt-image", "image-size-mismatch", "mask-not-binary")
    with user_error(*codes) as caught:
        prepare([kvasir], tmp_path / "out", options=quick(in_place=True), splitting=Splitting())
    assert caught.value.code == "pairs-not-usable"
    text = str(caught.value)
    assert text.startswith("3 of 10 pairs cannot be used in place; nothing is written:")
    assert all(str(path) in text for path in (truncated.image, other_size.mask, grey.mask))
    assert "Without --in-place" in text
    assert not (tmp_path / "out").exists()
    for pair in (truncated, other_size, grey):
        write_png(pair.image, np.zeros((9, 9, 3), np.uint8))
        write_png(pair.mask, np.full((9, 9), 255, np.uint8))
    write_png(empty.mask, np.zeros_like(read_mask(empty.mask), np.uint8))
    result = prepare([kvasir], tmp_path / "out", options=quick(in_place=True), splitting=Splitting())
    assert "1 mask has no foreground" in result.notes


def test_fewer_training_rows_in_proportion(raw: Path, tmp_path: Path) -> None:
    splitting = Splitting(split_file=raw / "split.json", train_rows=8)
    result = prepare(sets(raw), tmp_path, options=quick(in_place=True), splitting=splitting)
    assert result.tables[tmp_path / "train.csv"] == {"train": 8}
    assert result.tables[tmp_path / "clinicdb.csv"] == {"test": 3}


def test_fewer_training_rows_are_drawn_at_random(raw: Path, tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 0, 1, 2):
        splitting = Splitting(split_file=raw / "split.json", train_rows=8, seed=seed)
        prepare(sets(raw), tmp_path, options=quick(in_place=True, overwrite=True), splitting=splitting)
        drawn.append([row["image_name"] for row in lines(tmp_path / "train.csv")])
    assert drawn[0] == drawn[1]
    assert len({frozenset(names) for names in drawn}) == 3


def test_a_published_split_that_divides_groups_is_noted(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"train": [str(i) for i in range(1, 12)], "test": ["12"]}))
    splitting = Splitting(split_file=tmp_path / "s.json", groups=(str(raw / "sequences.json"),))
    result = prepare(sets(raw)[1:], tmp_path / "o", options=quick(in_place=True), splitting=splitting)
    assert result.notes == ("clinicdb: the predefined split divides 1 group between splits: 3 (2 train, 1 test)",)


def test_random_splits_keep_groups_together(raw: Path, tmp_path: Path) -> None:
    splitting = Splitting(fractions=(0.5, 0.25, 0.25), groups=(str(raw / "sequences.json"),))
    prepare(sets(raw)[1:], tmp_path, options=quick(in_place=True), splitting=splitting)
    by_group: dict[str, set[str]] = {}
    for row in lines(tmp_path / "split.csv"):
        by_group.setdefault(row["group"], set()).add(row["train_type"])
    assert sorted(len(v) for v in by_group.values()) == [1, 1, 1, 1]


def test_a_csv_keeps_its_splits_and_groups_by_its_column(raw: Path, tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_text(
        "image_name,train_type,mask_name,patient\n"
        + "".join(f"images/k{i}.png,{'train' if i < 7 else 'test'},masks/k{i}.png,p{i // 2}\n" for i in range(10))
    )
    found = find_sets("csv", path, data_root=raw / "kvasir_seg")
    prepare(found, tmp_path / "a", options=quick(in_place=True), splitting=Splitting())
    assert [r["train_type"] for r in lines(tmp_path / "a/split.csv")] == ["train"] * 7 + ["test"] * 3
    splitting = Splitting(fractions=(0.6, 0.2, 0.2), groups=("patient",))
    prepare(found, tmp_path / "b", options=quick(in_place=True), splitting=splitting)
    rows = lines(tmp_path / "b/split.csv")
    assert {(r["group"], r["train_type"]) for r in rows} == {(r["group"], r["train_type"]) for r in rows[::2]}
    assert {r["group"] for r in rows} == {f"p{i}" for i in range(5)}


# --- formats ---


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".bmp", ".png", ".jpg"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    image, mask = make_phantom(seed=1, index=0, size=(64, 64))
    for kind, pixels in (("images", image), ("masks", mask * np.uint8(255))):
        (tmp_path / kind).mkdir()
        Image.fromarray(pixels).save(tmp_path / kind / f"a{suffix}", **({"quality": 95} if suffix == ".jpg" else {}))
    recipe = quick(size=64, crop_border=False)
    prepare(find_sets("folder", tmp_path), tmp_path / "o", options=recipe, splitting=Splitting(fractions=(1, 0, 0)))
    assert np.array_equal(read_mask(tmp_path / "o/masks/a.png"), mask > 0)
    error = np.abs(read_image(tmp_path / "o/images/a.png").astype(int) - image)
    assert error.max() <= (0 if suffix != ".jpg" else 40)


def test_sixteen_bits(tmp_path: Path) -> None:
    image, mask = make_phantom(seed=1, index=0, size=(64, 64))
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    grey = image[:, :, 0].astype(np.uint16)
    cv2.imwrite(str(tmp_path / "images/a.tif"), grey * 200)
    cv2.imwrite(str(tmp_path / "masks/a.png"), mask.astype(np.uint16) * 65535)
    recipe = quick(size=64, crop_border=False)
    prepare(find_sets("folder", tmp_path), tmp_path / "o", options=recipe, splitting=Splitting(fractions=(1, 0, 0)))
    assert np.array_equal(read_mask(tmp_path / "o/masks/a.png"), mask > 0)
    spread = (grey - grey.min()) * 255 / (grey.max() - grey.min())
    assert np.array_equal(read_image(tmp_path / "o/images/a.png")[:, :, 1], np.rint(spread))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image, mask = make_phantom(seed=1, index=0, size=(64, 64))
    image, mask = image[:40], mask[:40]
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # the pixels are rotated by 90° clockwise for display
    Image.fromarray(np.ascontiguousarray(np.rot90(image))).save(tmp_path / "images/a.png", exif=exif)
    Image.fromarray(mask * np.uint8(255)).save(tmp_path / "masks/a.png")
    recipe = quick(size=64, crop_border=False)
    prepare(find_sets("folder", tmp_path), tmp_path / "o", options=recipe, splitting=Splitting(fractions=(1, 0, 0)))
    assert np.array_equal(read_image(tmp_path / "o/images/a.png")[:40], image)


# --- interrupting, resuming, overwriting ---


def test_a_killed_run_resumes(raw: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    for kind in ("images", "masks"):
        (many / kind).mkdir(parents=True)
        for copy in range(4):
            for path in (raw / "kvasir_seg" / kind).iterdir():
                shutil.copy(path, many / kind / f"{copy}_{path.name}")
    out, flags = tmp_path / "out", ["--size", "400", "--workers", "1", "--quiet"]
    command = [sys.executable, "-m", "promise.cli.prepare", f"folder={many}", "--output", str(out), *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not ((out / "frames.part").exists() and (out / "frames.part").read_text().count("\n") > 4):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (out / "split.csv").exists()
    for path in out.rglob("*/[!.]*.png"):
        assert read_image(path).shape == (400, 400, 3)  # complete, or absent
    with (out / "frames.part").open("a") as journal:
        journal.write('{"image": "images/0_k')  # half a line
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*/[!.]*.png")}
    recipe = quick(size=400)
    result = prepare(find_sets("folder", many), out, options=recipe, splitting=Splitting())
    assert 4 <= result.kept < 40
    assert result.kept + result.made == 40
    untouched = sum(p.stat().st_mtime_ns == time_ns for p, time_ns in before.items())
    assert 2 * result.kept <= untouched <= len(before)
    assert not list(out.rglob(".promise-*"))
    whole = tmp_path / "whole"
    prepare(find_sets("folder", many), whole, options=recipe, splitting=Splitting())
    assert content(out) == content(whole)


def test_a_changed_source_is_prepared_again(raw: Path, tmp_path: Path, user_error: Errors) -> None:
    source = tmp_path / "source"
    shutil.copytree(raw / "kvasir_seg", source)
    broken = source / "masks/k3.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-40])
    with user_error("corrupt-image") as caught:
        prepare(find_sets("kvasir-seg", source), tmp_path / "o", options=quick(), splitting=Splitting())
    assert caught.value.code == "pairs-not-prepared"
    assert str(caught.value).startswith("1 of 10 pairs ")
    assert not (tmp_path / "o/split.csv").exists()
    broken.write_bytes(whole)
    shutil.copy(source / "images/k5.png", source / "images/k4.png")
    shutil.copy(source / "masks/k5.png", source / "masks/k4.png")
    result = prepare(find_sets("kvasir-seg", source), tmp_path / "o", options=quick(), splitting=Splitting())
    assert (result.made, result.kept) == (2, 8)


def test_results_are_not_replaced_by_default(raw: Path, tmp_path: Path) -> None:
    (kvasir, _) = sets(raw)
    prepare([kvasir], tmp_path / "o", options=quick(), splitting=Splitting())
    before = content(tmp_path / "o")
    for recipe in (quick(size=64), quick(in_place=True)):
        with pytest.raises(ExistingRunError) as caught:
            prepare([kvasir], tmp_path / "o", options=recipe, splitting=Splitting())
        assert caught.value.code == "existing-output"
        assert "split.csv, frames.csv" in str(caught.value)
        assert "--overwrite" in str(caught.value)
    assert content(tmp_path / "o") == before


def test_overwriting_removes_earlier_results_and_keeps_other_files(raw: Path, tmp_path: Path) -> None:
    kvasir, clinic = sets(raw)
    prepare([kvasir], tmp_path / "o", options=quick(), splitting=Splitting())
    (tmp_path / "o/images/mine.png").write_bytes(b"mine")
    (tmp_path / "o/images/mine.png").rename(tmp_path / "o/mine.png")
    prepare([clinic], tmp_path / "o", options=quick(overwrite=True), splitting=Splitting())
    prepare([clinic], tmp_path / "fresh", options=quick(), splitting=Splitting())
    assert content(tmp_path / "o") == {**content(tmp_path / "fresh"), "mine.png": b"mine"}


def test_an_unfinished_run_with_other_settings(raw: Path, tmp_path: Path) -> None:
    (kvasir, _) = sets(raw)
    (tmp_path / "frames.part").write_text('{"size": 64, "crop_border": true}\n')
    with pytest.raises(ExistingRunError) as caught:
        prepare([kvasir], tmp_path, options=quick(), splitting=Splitting())
    assert caught.value.code == "unfinished-run"
    assert "--overwrite" in str(caught.value)


def test_a_folder_with_other_images_is_not_written_to(raw: Path, tmp_path: Path) -> None:
    (kvasir, _) = sets(raw)
    (tmp_path / "images").mkdir()
    with pytest.raises(ExistingRunError) as caught:
        prepare([kvasir], tmp_path, options=quick(), splitting=Splitting())
    assert caught.value.code == "foreign-folder"
    assert f"{tmp_path} contains images" in str(caught.value)


# --- errors ---


def corrupt_four(folder: Path) -> None:
    (folder / "images/k1.png").write_bytes(b"")
    (folder / "masks/k2.png").write_text("not an image")
    cv2.imwrite(str(folder / "masks/k3.png"), np.zeros((5, 6), np.uint8))
    cv2.imwrite(str(folder / "masks/k4.png"), np.dstack([np.full((9, 9), v, np.uint8) for v in (0, 0, 255)]))


def test_the_errors_of_all_pairs_are_reported(raw: Path, tmp_path: Path, user_error: Errors) -> None:
    shutil.copytree(raw / "kvasir_seg", tmp_path / "k")
    corrupt_four(tmp_path / "k")
    codes = {
        "images/k1.png": "empty-file",
        "masks/k2.png": "not-an-image",
        "masks/k3.png": "image-size-mismatch",
        "masks/k4.png": "mask-channels-differ",
    }
    with user_error() as caught:
        prepare(find_sets("kvasir-seg", tmp_path / "k"), tmp_path / "o", options=quick(), splitting=Splitting())
    assert sorted(caught.value.codes) == sorted(codes.values())
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("4 of 10 pairs ")
    for file, code in codes.items():
        (error,) = (error for error in caught.value.errors if error.code == code)
        assert str(tmp_path / "k" / file) in str(error)
        assert f"  {error}" in lines
    assert sum("6×5" in line for line in lines) == 1


def test_images_and_masks_are_swapped(raw: Path, tmp_path: Path, user_error: Errors) -> None:
    shutil.copytree(raw / "kvasir_seg" / "images", tmp_path / "k" / "masks")
    shutil.copytree(raw / "kvasir_seg" / "masks", tmp_path / "k" / "images")
    with user_error() as caught:
        prepare(find_sets("kvasir-seg", tmp_path / "k"), tmp_path / "o", options=quick(), splitting=Splitting())
    assert set(caught.value.codes) == {"images-and-masks-swapped"}
    first = str(caught.value).splitlines()[1]
    assert "masks/k0.png: " in first
    assert "images/k0.png" in first


def test_options_out_of_range(raw: Path, tmp_path: Path, user_error: Errors) -> None:
    with user_error("invalid-size", "invalid-workers") as caught:
        prepare(sets(raw), tmp_path / "o", options=quick(size=8, workers=0), splitting=Splitting())
    assert "--size" in str(caught.value)
    assert "--workers" in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_sets_of_one_name_and_without_pairs(raw: Path, tmp_path: Path, user_error: Errors) -> None:
    kvasir, _ = sets(raw)
    with user_error("duplicate-set", "no-pairs") as caught:
        prepare([kvasir, kvasir, ImageSet("mine", (), ())], tmp_path, options=quick(), splitting=Splitting())
    assert "2 sets have the name kvasir" in str(caught.value)
    assert "mine: " in str(caught.value)


def unknown_names(raw: Path, tmp_path: Path) -> Splitting:
    (tmp_path / "s.json").write_text(json.dumps({"train": ["k1", "x1"], "test": ["x2"]}))
    return Splitting(split_file=tmp_path / "s.json")


def sets_without_list(raw: Path, tmp_path: Path) -> Splitting:
    (tmp_path / "s.json").write_text(json.dumps({"etis": {"train": ["k1"]}}))
    return Splitting(split_file=tmp_path / "s.json")


@pytest.mark.parametrize(
    ("splitting", "code", "facts"),
    [
        (unknown_names, "unknown-image-names", "s.json: 2 names are not in kvasir: x1, x2"),
        (sets_without_list, "set-not-listed", "kvasir; the file has lists for etis"),
        (lambda raw, tmp_path: Splitting(fractions=(1, 1, 1)), "invalid-fractions", "--fractions"),
        (lambda raw, tmp_path: Splitting(val_share=1), "invalid-val-share", "--val-share"),
        (lambda raw, tmp_path: Splitting(train_rows=-1), "invalid-train-rows", "--train-rows"),
        (lambda raw, tmp_path: Splitting(groups=("patient",)), "group-column-without-csv", "--group patient"),
        (lambda raw, tmp_path: Splitting(groups=("re:zzz",)), "no-group", "--group re:zzz"),
        (lambda raw, tmp_path: Splitting(groups=("re:k", "re:l")), "group-without-set", "--group re:k"),
    ],
)
def test_an_invalid_split(
    raw: Path,
    tmp_path: Path,
    splitting: Callable[[Path, Path], Splitting],
    code: str,
    facts: str,
    user_error: Errors,
) -> None:
    (kvasir, _) = sets(raw)
    with user_error(code) as caught:
        prepare([kvasir], tmp_path / "o", options=quick(), splitting=splitting(raw, tmp_path))
    assert facts in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_a_list_without_sets_for_several_sets(raw: Path, tmp_path: Path, user_error: Errors) -> None:
    with user_error("sets-not-named") as caught:
        prepare(sets(raw), tmp_path / "o", options=quick(), splitting=unknown_names(raw, tmp_path))
    assert "s.json: " in str(caught.value)


def test_unpaired_files_are_an_error_or_left_out(raw: Path, tmp_path: Path, user_error: Errors) -> None:
    shutil.copytree(raw / "kvasir_seg", tmp_path / "k")
    (tmp_path / "k/masks/k1.png").unlink()
    found = find_sets("kvasir-seg", tmp_path / "k")
    with user_error("unpaired-files") as caught:
        prepare(found, tmp_path / "o", options=quick(), splitting=Splitting())
    assert "(1): k1.png\n--skip-unpaired " in str(caught.value)
    result = prepare(found, tmp_path / "o", options=quick(skip_unpaired=True), splitting=Splitting())
    assert sum(sum(counts.values()) for counts in result.tables.values()) == 9
    assert result.notes[0].startswith("left out: ")


def test_two_images_with_one_base_name(raw: Path, tmp_path: Path, user_error: Errors) -> None:
    shutil.copytree(raw / "kvasir_seg", tmp_path / "k")
    shutil.copy(tmp_path / "k/images/k1.png", tmp_path / "k/images/K1.bmp")
    with user_error("duplicate-base-name") as caught:
        prepare(find_sets("kvasir-seg", tmp_path / "k"), tmp_path / "o", options=quick(), splitting=Splitting())
    assert re.match(r"kvasir: .* \(1\): .*K1\.bmp and .*k1\.png", str(caught.value))


def test_a_list_matches_names_with_extension(raw: Path, tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    shutil.copytree(raw / "kvasir_seg", tmp_path / "k")
    shutil.copy(tmp_path / "k/images/k2.png", tmp_path / "k/images/k1.jpg")
    shutil.copy(tmp_path / "k/masks/k2.png", tmp_path / "k/masks/k1.bmp")
    rows = ["k/images/k1.png,train,k/masks/k1.png", "k/images/k1.jpg,train,k/masks/k1.bmp"]
    path.write_text("\n".join(["image_name,train_type,mask_name", *rows]) + "\n")
    (tmp_path / "s.json").write_text(json.dumps({"test": ["k1"]}))
    splitting = Splitting(split_file=tmp_path / "s.json")
    result = prepare(find_sets("csv", path), tmp_path / "o", options=quick(in_place=True), splitting=splitting)
    assert result.tables == {tmp_path / "o/split.csv": {"test": 1}}


def test_foreground_outside_the_crop_is_noted(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "kvasir_seg", tmp_path / "k")
    path = str(tmp_path / "k/masks/k1.png")
    mask = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    mask[30:40, : BORDER - 4] = 255
    cv2.imwrite(path, mask)
    cv2.imwrite(str(tmp_path / "k/masks/k2.png"), np.zeros_like(cv2.imread(str(tmp_path / "k/masks/k2.png"), 0)))
    result = prepare(find_sets("kvasir-seg", tmp_path / "k"), tmp_path / "o", options=quick(), splitting=Splitting())
    assert {"1 mask has foreground outside the crop, which is lost", "1 mask has no foreground"} <= {*result.notes}


# --- the real sets ---


@pytest.mark.real_data
def test_the_polyp_split_of_the_real_sets(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    if not (data / "splits/pranet_split.json").is_file():
        pytest.skip(f"{data} does not contain the image sets")
    splitting = Splitting(
        split_file=data / "splits/pranet_split.json",
        val_share=0.1,
        groups=(str(data / "splits/cvc_clinicdb_sequence_of_frame.json"),),
    )
    result = prepare(sets(data), tmp_path, options=quick(in_place=True), splitting=splitting)
    assert {path.name: counts for path, counts in result.tables.items()} == {
        "train.csv": {"train": 1292, "val": 158},
        "kvasir.csv": {"test": 100},
        "clinicdb.csv": {"test": 62},
    }
    rows = [row for row in lines(tmp_path / "train.csv") if row["group"]]
    sides = {group: {r["train_type"] for r in rows if r["group"] == group} for group in {r["group"] for r in rows}}
    assert len(sides) == 29
    assert all(len(split) == 1 for split in sides.values())


def test_flags_for_names_of_masks_are_suggested_if_no_image_has_a_mask(
    raw: Path, tmp_path: Path, user_error: Errors
) -> None:
    unpaired = ImageSet("mine", ("mine",), (), ("raw: images without a mask in masks: a.png",))
    with user_error("no-pairs", "unpaired-files") as caught:
        prepare([unpaired], tmp_path, options=quick(), splitting=Splitting())
    assert "mine: " in str(caught.value)
    assert "--mask-suffix" in str(caught.value)
    assert "--skip-unpaired" not in str(caught.value)


# --- links, levels, orientations, other processes, full disks -------------------------------------


def small_set(folder: Path, **options: object) -> Any:
    (found,) = find_sets("folder", folder)
    return prepare([found], folder.parent / "out", options=quick(**options), splitting=Splitting())


@pytest.fixture
def few(tmp_path: Path) -> Path:
    for index in range(5):
        image, mask = make_phantom(seed=1, index=index, size=(64, 64))
        for kind, pixels in (("images", image[:, :, ::-1]), ("masks", mask * 255)):
            (tmp_path / "few" / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "few" / kind / f"{index}.png"), pixels)
    return tmp_path / "few"


def test_broken_links_are_faults(few: Path, user_error: Errors) -> None:
    for kind in ("images", "masks"):
        (few / kind / "2.png").unlink()
        (few / kind / "2.png").symlink_to("/nowhere/annex/2.png")
    with user_error("missing-file") as caught:
        small_set(few)
    assert "1 of 5 pairs" in str(caught.value)
    assert "a link to /nowhere/annex/2.png" in str(caught.value)


def test_a_mask_with_foreground_never_becomes_empty(few: Path, user_error: Errors) -> None:
    faint, tiny = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    faint[10:30, 10:30] = 100
    tiny[20, 20] = 255
    cv2.imwrite(str(few / "masks/1.png"), faint)
    cv2.imwrite(str(few / "masks/2.png"), tiny)
    with user_error("foreground-lost") as caught:
        small_set(few, size=16)
    assert "2 of 5 pairs" in str(caught.value)
    assert all(fact in str(caught.value) for fact in ("masks/1.png", "100 of 255", "masks/2.png"))


def test_other_exif_orientations_are_noted(few: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(few / "images/3.png") as image:
        image.save(few / "images/3.jpg", exif=exif)
    (few / "images/3.png").unlink()
    assert any(note.startswith("1 mask has another EXIF orientation") for note in small_set(few).notes)


def test_masks_in_another_unicode_form_are_found(few: Path) -> None:
    for kind, form in (("images", "NFC"), ("masks", "NFD")):
        (few / kind / "1.png").rename(few / kind / unicodedata.normalize(form, "Läsion.png"))
    assert small_set(few).made == 5


def test_a_second_preparation_of_one_folder_is_refused(few: Path, user_error: Errors, hold_folder) -> None:
    hold_folder(few.parent / "out")
    with user_error("folder-in-use"):
        small_set(few)
    assert not (few.parent / "out/images").exists()


def test_a_full_disk_ends_a_preparation_that_resumes(few: Path, user_error: Errors, limit_file_size) -> None:
    limit_file_size(1500)  # masks fit, images do not
    with user_error("output-not-writable") as caught:
        small_set(few)
    assert str(few.parent / "out/images") in str(caught.value)
    limit_file_size(10**6)
    assert small_set(few).made == 5
