"""One fault is added to a clean data set at a time; each must be reported as one finding of its kind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from promise.data.phantom import make_phantoms
from promise.data.splits import read_grouping
from promise.data.table import read_table
from promise.data.validate.validate import Validation, summarise, validate

HEADER = "image_name,train_type,mask_name"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    make_phantoms(folder, count=12, size=(96, 112), seed=5, splits=(0.5, 0.25, 0.25))
    return folder


@pytest.fixture
def data(clean: Path, tmp_path: Path) -> Path:
    """A copy that tests change: 6 train rows (lines 2–7), 3 val (8–10), 3 test (11–13)."""
    shutil.copytree(clean, tmp_path / "data")
    return tmp_path / "data"


def found(*csvs: Path, **options: object) -> Validation:
    return validate(csvs, progress=False, workers=2, **options)


def the_finding(result: Validation) -> tuple[str, str, int, str]:
    """The only finding."""
    assert [str(f) for f in result.findings][1:] == []
    (finding,) = result.findings
    return finding.level, finding.kind, finding.line, finding.text


def name(number: int) -> str:
    return f"phantom_{number:04d}.png"


def write_lines(data: Path, change: Callable[[list[str]], list[str]]) -> Path:
    path = data / "split.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n", encoding="utf-8")
    return path


def edit_mask(data: Path, number: int, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    path = data / "masks" / name(number)
    cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))
    return data / "split.csv"


def test_a_clean_set_has_no_findings(data: Path) -> None:
    result = found(data / "split.csv")
    assert result.findings == []
    assert len(result.entries) == 12


# --- images in two splits ---


def test_an_image_copied_into_the_test_split(data: Path) -> None:
    for kind in ("images", "masks"):
        shutil.copy(data / kind / name(2), data / kind / "copied.png")
    path = write_lines(data, lambda lines: [*lines, "images/copied.png,test,masks/copied.png"])
    level, kind, line, text = the_finding(found(path))
    assert (level, kind, line) == ("fault", "copy", 14)
    assert text == f"leak: copied.png (test) has the same content as split.csv line 4 (train, {name(2)})."


def test_the_same_image_as_jpeg_70_and_half_as_large(data: Path) -> None:
    image, mask = (cv2.imread(str(data / kind / name(2))) for kind in ("images", "masks"))
    half = (image.shape[1] // 2, image.shape[0] // 2)
    small = cv2.resize(image, half, interpolation=cv2.INTER_LINEAR)
    cv2.imwrite(str(data / "images/small.jpg"), small, [cv2.IMWRITE_JPEG_QUALITY, 70])
    cv2.imwrite(str(data / "masks/small.png"), cv2.resize(mask, half, interpolation=cv2.INTER_NEAREST))
    path = write_lines(data, lambda lines: [*lines, "images/small.jpg,test,masks/small.png"])
    level, kind, line, text = the_finding(found(path))
    assert (level, kind, line) == ("fault", "copy", 14)
    assert text.startswith("leak: small.jpg (test) ")
    assert f" split.csv line 4 (train, {name(2)}) " in text
    assert re.search(r"difference \d+\.\d of 255", text)


def test_copies_are_found_across_csvs(data: Path) -> None:
    test = data / "other.csv"
    test.write_text(f"{HEADER}\nimages/{name(3)},test,masks/{name(3)}\n")
    level, kind, line, text = the_finding(found(data / "split.csv", test))
    assert (level, kind, line) == ("fault", "copy", 2)
    assert text == f"leak: {name(3)} (test) is the same file as split.csv line 5 (train, {name(3)})."
    assert found(test).findings == []


def test_a_row_of_the_same_split_in_two_csvs_is_no_leak(data: Path) -> None:
    again = data / "again.csv"
    again.write_text(f"{HEADER}\nimages/{name(3)},train,masks/{name(3)}\n")
    assert found(data / "split.csv", again).findings == []


def test_a_copy_within_a_split_is_a_warning(data: Path) -> None:
    for kind in ("images", "masks"):
        shutil.copy(data / kind / name(2), data / kind / "copied.png")
    path = write_lines(data, lambda lines: [*lines, "images/copied.png,train,masks/copied.png"])
    level, kind, line, text = the_finding(found(path))
    assert (level, kind, line) == ("warning", "copy", 14)
    assert text.startswith("copied.png (train) ")
    assert f" split.csv line 4 (train, {name(2)})" in text


def test_a_neighbouring_frame_looks_alike(data: Path) -> None:
    image, mask = (cv2.imread(str(data / kind / name(2))) for kind in ("images", "masks"))
    moved = [np.roll(pixels, 2, axis=1) for pixels in (image, mask)]
    cv2.imwrite(str(data / "images/next.png"), moved[0])
    cv2.imwrite(str(data / "masks/next.png"), moved[1])
    path = write_lines(data, lambda lines: [*lines, "images/next.png,test,masks/next.png"])
    level, kind, line, text = the_finding(found(path))
    assert (level, kind, line) == ("warning", "alike", 14)
    assert text.startswith(f"next.png (test) looks like split.csv line 4 (train, {name(2)}); difference ")


# --- masks ---


def test_the_mask_of_another_image_by_its_name(data: Path) -> None:
    path = write_lines(data, lambda lines: [line.replace(f"masks/{name(2)}", f"masks/{name(3)}") for line in lines])
    image = cv2.imread(str(data / "images" / name(2)))
    other = data / "masks" / name(3)
    cv2.imwrite(str(other), cv2.resize(cv2.imread(str(other), 0), image.shape[1::-1], interpolation=cv2.INTER_NEAREST))
    faults = [f for f in found(path).findings if f.line == 4]
    assert [(f.level, f.kind) for f in faults] == [("fault", "row")]
    assert faults[0].text == f"image and mask have different base names: images/{name(2)} and masks/{name(3)}"


def test_the_mask_of_another_image_by_its_content(tmp_path: Path) -> None:
    path = make_phantoms(tmp_path, count=6, size=96, seed=5)
    shutil.copy(tmp_path / "masks" / name(1), tmp_path / "masks" / name(4))
    level, kind, line, text = the_finding(found(path))
    assert (level, kind, line) == ("warning", "mask", 6)
    assert str(tmp_path / "masks" / name(4)) in text
    assert f" split.csv line 3 (train, {name(1)})" in text


def test_a_mask_of_another_size(data: Path) -> None:
    path = edit_mask(data, 2, lambda mask: mask[:-1])
    level, kind, line, text = the_finding(found(path))
    assert (level, kind, line) == ("fault", "size", 4)
    assert re.search(r"images/phantom_0002\.png has \d+×\d+ pixels, .*masks/phantom_0002\.png has \d+×\d+\.$", text)


def test_an_inverted_mask(data: Path) -> None:
    path = edit_mask(data, 2, lambda mask: 255 - mask)
    level, kind, line, text = the_finding(found(path))
    assert (level, kind, line) == ("warning", "inverted", 4)
    assert str(data / "masks" / name(2)) in text


@pytest.mark.parametrize(("factor", "kind"), [(0, "empty"), (1, "full")])
def test_an_empty_and_a_full_mask(data: Path, factor: int, kind: str) -> None:
    path = edit_mask(data, 2, lambda mask: np.full_like(mask, 255 * factor))
    level, found_kind, line, text = the_finding(found(path))
    assert (level, found_kind, line) == ("warning", kind, 4)
    assert f"mask {data / 'masks' / name(2)} is {kind}" in text


def test_a_mask_with_other_values(data: Path) -> None:
    path = edit_mask(data, 2, lambda mask: mask // 255 * 128)
    level, kind, line, text = the_finding(found(path))
    assert (level, kind, line) == ("fault", "file", 4)
    assert f"mask {data / 'masks' / name(2)}: " in text
    assert "2 values (0, 128)" in text


def test_one_mask_with_different_values(data: Path) -> None:
    path = edit_mask(data, 2, lambda mask: mask // 255)
    level, kind, line, text = the_finding(found(path))
    assert (level, kind, line) == ("warning", "values", 4)
    assert re.match(r"1 mask .*0 and 1, .*11 .*0 and 255", text)


def test_a_jpeg_mask_is_noted(data: Path) -> None:
    path = data / "masks" / name(2)
    cv2.imwrite(str(path.with_suffix(".jpg")), cv2.imread(str(path)), [cv2.IMWRITE_JPEG_QUALITY, 95])
    path.unlink()
    split = write_lines(
        data, lambda lines: [line.replace("masks/" + name(2), "masks/phantom_0002.jpg") for line in lines]
    )
    level, kind, line, text = the_finding(found(split))
    assert (level, kind, line) == ("note", "jpeg", 0)
    assert text.startswith("1 mask is a JPEG")
    assert "> 127 (line 4)" in text


def test_specks_are_noted(data: Path) -> None:
    def spot(mask: np.ndarray) -> np.ndarray:
        mask[0, 0] = 255
        return mask

    level, kind, line, text = the_finding(found(edit_mask(data, 2, spot)))
    assert (level, kind, line) == ("note", "specks", 0)
    assert text == "1 mask has components of fewer than 10 pixels (line 4)"


# --- files ---


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_truncated_png(data: Path, folder: str) -> None:
    path = data / folder / name(2)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    level, kind, line, text = the_finding(found(data / "split.csv"))
    assert (level, kind, line) == ("fault", "file", 4)
    assert text.startswith(f"{folder[:-1]} {path}: truncated")


def test_missing_files_do_not_hide_other_faults(data: Path) -> None:
    (data / "images" / name(2)).unlink()
    path = edit_mask(data, 5, np.zeros_like)
    findings = found(path).findings
    assert [(f.level, f.kind, f.line) for f in findings] == [("fault", "row", 4), ("warning", "empty", 7)]
    assert findings[0].text == f"no such file: image images/{name(2)}"


# --- the CSV ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "\ufeff" + text, "the file starts with a byte-order mark, which is skipped"),
        (lambda text: text.replace(",", ";"), "the columns are separated by semicolons"),
        (lambda text: text + "\n", "1 blank line is skipped (line 14)"),
        (
            lambda text: text.replace("images/", "images\\").replace("masks/", "masks\\"),
            r"24 paths have backslashes, read as slashes (images\phantom_0000.png)",
        ),
    ],
    ids=["byte-order mark", "semicolons", "trailing blank line", "Windows paths"],
)
def test_variations_of_spreadsheets_are_notes(data: Path, change: Callable[[str], str], words: str) -> None:
    path = data / "split.csv"
    path.write_text(change(path.read_text()), encoding="utf-8")
    assert the_finding(found(path)) == ("note", "tolerance", 0, words)
    assert len(read_table(path).rows) == 12


def test_a_missing_column(data: Path) -> None:
    path = write_lines(data, lambda lines: [line.rsplit(",", 1)[0] for line in lines])
    level, kind, _, text = the_finding(found(path))
    assert (level, kind) == ("fault", "csv")
    assert text.startswith(f"{path}: ")
    assert "'mask_name'" in text
    assert "image_name, train_type." in text


def test_a_duplicate_row(data: Path) -> None:
    path = write_lines(data, lambda lines: [*lines, lines[1]])
    level, kind, line, text = the_finding(found(path))
    assert (level, kind, line) == ("fault", "row", 14)
    assert text.startswith("images/phantom_0000.png ")
    assert "line 2" in text


def test_a_bad_csv_does_not_hide_the_others(data: Path) -> None:
    edit_mask(data, 2, np.zeros_like)
    findings = found(data / "absent.csv", data / "split.csv").findings
    assert [(f.level, f.kind, f.csv) for f in findings] == [
        ("fault", "csv", "absent.csv"),
        ("warning", "empty", "split.csv"),
    ]


# --- groups ---


@pytest.mark.parametrize("how", ["column", "pattern", "json"])
def test_a_group_in_two_splits_is_a_leak(data: Path, how: str) -> None:
    groups = ["group", *(str(i if i not in (1, 10) else 0) for i in range(12))]  # image 10 is a test row
    path = write_lines(data, lambda lines: [f"{line},{g}" for line, g in zip(lines, groups, strict=True)])
    spec = "group"
    if how == "pattern":
        assert found(path, grouping=read_grouping("re:phantom_00(0[01]|10)")).findings == []  # three groups
        spec = "re:phantom_00(?=0[01]|10)"  # one group
    if how == "json":
        spec = str(data / "groups.json")
        Path(spec).write_text('{"polyp": ["phantom_0000.png", "phantom_0001.png", "phantom_0010.png"]}')
    level, kind, line, text = the_finding(found(path, grouping=read_grouping(spec)))
    assert (level, kind, line) == ("fault", "group", 12)
    assert text.startswith("leak: group ")
    assert "2 splits (2 train, 1 test rows)" in text


def test_a_group_is_found_across_csvs(data: Path) -> None:
    first = write_lines(data, lambda lines: [line for line in lines if ",test," not in line])
    second = data / "test.csv"
    second.write_text(f"{HEADER}\nimages/{name(10)},test,masks/{name(10)}\n")
    grouping = read_grouping("re:phantom_00(?=0[01]|10)")
    assert found(first, grouping=grouping).findings == []
    finding = the_finding(found(first, second, grouping=grouping))
    assert finding[:3] == ("fault", "group", 2)


def test_a_grouping_that_matches_nothing(data: Path, user_error: Callable[..., Any]) -> None:
    with user_error("no-group") as caught:
        found(data / "split.csv", grouping=read_grouping("re:xyz"))
    assert "--group re:xyz" in str(caught.value)
    assert " 12 names " in str(caught.value)
    with user_error("unknown-column") as caught:
        found(data / "split.csv", grouping=read_grouping("patient"))
    assert "split.csv" in str(caught.value)
    assert "'patient'" in str(caught.value)
    with user_error("missing-data-root") as caught:
        found(data / "split.csv", data_root=data / "nowhere")
    assert f"--data-root {data / 'nowhere'}" in str(caught.value)


# --- statistics ---


def test_statistics_of_each_split(data: Path) -> None:
    def half(mask: np.ndarray) -> np.ndarray:
        mask[...] = 0
        mask[: mask.shape[0] // 2, : mask.shape[1] // 2] = 255
        mask[-20:, -20:] = 255
        return mask

    for number in range(9, 12):
        edit_mask(data, number, half)
    statistics = {row["split"]: row for row in summarise(found(data / "split.csv"))}
    assert {split: row["rows"] for split, row in statistics.items()} == {"train": 6, "val": 3, "test": 3}
    assert (statistics["test"]["one_component"], statistics["test"]["more_components"]) == (0, 3)
    masks = [cv2.imread(str(data / "masks" / name(n)), 0) for n in range(9, 12)]
    fractions = sorted(float((mask > 0).mean()) for mask in masks)
    assert statistics["test"]["foreground_5_50_95"][1] == pytest.approx(fractions[1])
    assert statistics["test"]["foreground_mean"] == pytest.approx(sum(fractions) / 3)
    areas = sorted(masks, key=lambda mask: mask.size)
    assert statistics["test"]["largest"] == [areas[-1].shape[1], areas[-1].shape[0]]


def test_an_image_turned_by_exif_without_its_mask_is_a_warning(data: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    path = data / "images/phantom_0000.png"
    with Image.open(path) as image:
        image.save(path.with_suffix(".jpg"), quality=95, exif=exif)
    path.unlink()
    warnings = [f for f in found(data / "split.csv").findings if f.kind == "orientation"]
    assert [(f.level, f.line) for f in warnings] == [("warning", 2)]
    assert "orientation 3" in warnings[0].text
