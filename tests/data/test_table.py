from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from promise.data.table import examine_table, read_table
from promise.runtime.errors import MissingFileError, UserError

MakeTable = Callable[..., Path]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def failure(path: Path, **options: object) -> UserError:
    with pytest.raises(UserError) as caught:
        read_table(path, **options)
    return caught.value


# --- rows ---


def test_relative_paths_start_at_the_csv(pairs: Path, make_table: MakeTable) -> None:
    table = read_table(make_table(["images/a.png,train,masks/a.png", "images/b.png,val,masks/b.png"]))
    first, second = table.rows
    assert (first.name, first.split, first.line) == ("a", "train", 2)
    assert (first.image, first.mask) == (pairs / "images/a.png", pairs / "masks/a.png")
    assert table.split("val") == (second,)
    assert table.split("test") == ()
    assert table.counts == {"train": 1, "val": 1}
    assert table.notes == ()


def test_absolute_paths_are_used_as_they_are(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("elsewhere") / "s.csv"
    path.write_text(f"image_name,train_type,mask_name\n{pairs}/images/a.png,test,{pairs}/masks/a.png\n")
    assert read_table(path).rows[0].image == pairs / "images/a.png"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_delimiters_bom_order_blank_lines_and_case(pairs: Path, tmp_path: Path, delimiter: str, encoding: str) -> None:
    lines = ["Mask_Name,note, image_name ,train_type", "", "masks\\a.png,x,images\\a.png, Train ", ",,,", ""]
    path = tmp_path / "s.csv"
    path.write_text("\r\n".join(lines).replace(",", delimiter), encoding=encoding)
    (row,) = read_table(path).rows
    assert (row.split, row.line) == ("train", 3)
    assert (row.image, row.mask) == (pairs / "images/a.png", pairs / "masks/a.png")


def test_names_are_the_shortest_common_tail_that_is_unique(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "x/images/1.png", "x/masks/1.png", "y/images/1.png", "y/masks/1.png")
    table = read_table(make_table(["x/images/1.png,train,x/masks/1.png", "y/images/1.png,val,y/masks/1.png"]))
    assert [row.name for row in table.rows] == ["x/images/1", "y/images/1"]


def test_names_contain_the_extension_only_if_ambiguous_without_it(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "i/1.png", "i/1.jpg", "m/1.png", "m/1.bmp")
    table = read_table(make_table(["i/1.png,train,m/1.png", "i/1.jpg,train,m/1.bmp"]))
    assert [row.name for row in table.rows] == ["1.png", "1.jpg"]


def test_names_do_not_depend_on_the_data_root(tmp_path: Path, make_table: MakeTable) -> None:
    path = make_table(["/old/images_1024/a.png,train,/old/masks_1024/a.png"])
    touch(tmp_path, "one/images/a.jpg", "one/masks/a.png", "two/old/images_1024/a.png")
    touch(tmp_path, "two/old/masks_1024/a.png")
    names = {read_table(path, data_root=tmp_path / root).rows[0].name for root in ("one", "two")}
    assert names == {"a"}


# --- re-rooting and tolerances ---


def test_the_longest_suffix_that_exists_is_used(tmp_path: Path, make_table: MakeTable) -> None:
    root = tmp_path / "root"
    touch(root, "set/images/a.png", "images/a.png", "set/masks/a.png", "masks/a.png", "a.png")
    path = make_table(["/home/x/set/images/a.png,train,/home/x/set/masks/a.png"])
    (row,) = read_table(path, data_root=root).rows
    assert (row.image, row.mask) == (root / "set/images/a.png", root / "set/masks/a.png")


@pytest.mark.parametrize("prefix", ["/home/x/", "C:\\data\\", "", "./"])
def test_every_kind_of_path_is_rerooted(tmp_path: Path, make_table: MakeTable, prefix: str) -> None:
    root = tmp_path / "root"
    touch(root, "images/a.png", "masks/a.png")
    (row,) = read_table(make_table([f"{prefix}images/a.png,train,{prefix}masks/a.png"]), data_root=root).rows
    assert (row.image, row.mask) == (root / "images/a.png", root / "masks/a.png")


def test_data_root_has_precedence_over_an_existing_absolute_path(pairs: Path, make_table: MakeTable) -> None:
    root = pairs / "root"
    touch(root, "images/a.png", "masks/a.png")
    path = make_table([f"{pairs}/images/a.png,train,{pairs}/masks/a.png"])
    assert read_table(path, data_root=root).rows[0].image == root / "images/a.png"


def test_size_suffix_and_extension_are_tolerated_and_noted(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "images/a.jpg", "masks/a.png", "images/b.png", "masks/b.png")
    lines = [f"images_1024/{s}.png,train,masks_1024/{s}.png" for s in "ab"]
    table = read_table(make_table(lines))
    assert table.rows[0].image == tmp_path / "images/a.jpg"
    assert set(table.notes) == {
        "1 image found with a different extension (.png → .jpg)",
        "2 images found under a folder without the size suffix (images_1024 → images)",
        "2 masks found under a folder without the size suffix (masks_1024 → masks)",
    }


def test_a_folder_with_the_suffix_has_precedence(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "images/a.png", "images_1024/a.png", "masks/a.png")
    table = read_table(make_table(["images_1024/a.png,train,masks/a.png"]))
    assert table.rows[0].image == tmp_path / "images_1024/a.png"
    assert table.notes == ()


def test_only_image_formats_replace_an_extension(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "images/a.txt", "masks/a.png")
    error = failure(make_table(["images/a.png,train,masks/a.png"]))
    assert error.codes == ("missing-file",)
    assert "line 2: image images/a.png" in str(error)


def test_segmentation_suffix_is_added_or_dropped(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "a.jpg", "a_segmentation.png", "i/b.jpg", "m/b.png")
    table = read_table(make_table(["a.jpg,train,a.jpg", "i/b.jpg,train,m/b_segmentation.png"]))
    assert [row.mask.name for row in table.rows] == ["a_segmentation.png", "b.png"]
    assert "1 mask found with the suffix _segmentation (a_segmentation.png)" in table.notes
    assert "1 mask found without the suffix _segmentation (b.png)" in table.notes


def test_isic_separator_is_restored(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "Train_Input/ISIC_0000001.jpg", "Train_GroundTruth/ISIC_0000001_segmentation.png")
    line = "/x/Train_InputISIC_0000001.jpg,train,/x/Train_GroundTruthISIC_0000001.jpg"
    table = read_table(make_table([line]), data_root=tmp_path)
    (row,) = table.rows
    assert row.name == "ISIC_0000001"
    assert row.image == tmp_path / "Train_Input/ISIC_0000001.jpg"
    assert row.mask == tmp_path / "Train_GroundTruth/ISIC_0000001_segmentation.png"
    assert any("missing separator (Train_Input/ISIC_0000001.jpg)" in note for note in table.notes)


def test_a_name_that_only_resembles_a_missing_separator_is_kept(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "i/val_ISIC_0000001.jpg", "m/val_ISIC_0000001.png")
    table = read_table(make_table(["i/val_ISIC_0000001.jpg,val,m/val_ISIC_0000001.png"]))
    assert table.rows[0].image == tmp_path / "i/val_ISIC_0000001.jpg"
    assert table.notes == ()


def test_isic_number_is_found_in_the_folder_of_its_role(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "Val_Input/ISIC_0000001.jpg", "Val_GroundTruth/ISIC_0000001.png")
    path = make_table(["/x/ISIC_0000001.jpg,val,/x/TestDataset/ISIC_0000001.jpg"])
    (row,) = read_table(path, data_root=tmp_path).rows
    assert row.image == tmp_path / "Val_Input/ISIC_0000001.jpg"
    assert row.mask == tmp_path / "Val_GroundTruth/ISIC_0000001.png"
    touch(tmp_path, "Other_Input/ISIC_0000001.jpg")  # several candidates count as not found
    assert "1 of 2 files is missing" in str(failure(path, data_root=tmp_path))


def test_an_image_is_never_its_own_mask(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "images/a.png", "a.jpg")
    message = str(failure(make_table(["a.png,train,a.png"])))
    assert "1 of 2 files is missing:\n  line 2: mask a.png" in message


# --- faults ---


def test_missing_columns(make_table: MakeTable) -> None:
    error = failure(make_table(["a,b,c"], header="image_path,train_type,mask"))
    assert error.codes == ("missing-columns",)
    message = str(error)
    assert "'image_name' (nearest: 'image_path'), 'mask_name' (nearest: 'mask')" in message
    assert "Found: image_path, train_type, mask." in message
    assert message.endswith("Expected: image_name,train_type,mask_name")


def test_files_that_are_not_tables(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    with pytest.raises(MissingFileError) as caught:
        read_table(path)
    assert caught.value.code == "missing-file"
    for content, code in (
        (b"", "empty-csv"),
        (b" \n\n", "empty-csv"),
        (b"image_name,train_type,mask_name\n", "no-rows"),
        (b"PK\x03\x04zip", "excel-workbook"),
        (b"image_name,train_type,mask_name\n\xff\xfe,train,x", "not-utf8"),
        (b"image_name\0", "not-text"),
    ):
        path.write_bytes(content)
        error = failure(path)
        assert error.codes == (code,)
        assert "s.csv" in str(error)


def test_data_root_must_be_a_folder(tmp_path: Path, make_table: MakeTable) -> None:
    with pytest.raises(MissingFileError) as caught:
        read_table(make_table(["a.png,train,a.png"]), data_root=tmp_path / "nowhere")
    assert caught.value.code == "missing-data-root"
    assert f"--data-root {tmp_path / 'nowhere'}" in str(caught.value)


FAULTY = [
    "images/a.png,train,masks/a.png",
    "images/b.png,validation,masks/b.png",
    "images/c.png,train,masks/d.png",
    "images/e.png,train,",
    "images/a.png,test,masks/a.png",
    "images/x.png,train,masks/x.png",
]
FAULTY_CODES = ("unknown-split", "base-name-mismatch", "empty-cell", "duplicate-image", "missing-file", "missing-file")


def test_all_faults_are_reported_with_their_lines(pairs: Path, make_table: MakeTable) -> None:
    error = failure(make_table(FAULTY))
    assert error.code == "faulty-table"
    assert sorted(error.codes) == sorted(FAULTY_CODES)
    message = str(error)
    assert message.startswith("polyp.csv: 4 rows have faults:\n")
    lines = {line.split(":")[0].strip(): line for line in message.splitlines()}
    for number, facts in (
        (3, ("train_type 'validation'", "train, val, test", "'val'?")),
        (4, ("images/c.png", "masks/d.png")),
        (5, ("mask_name",)),
        (6, ("images/a.png", "line 2", "train", "test")),
    ):
        assert all(fact in lines[f"line {number}"] for fact in facts)
    assert "polyp.csv: 2 of 10 files are missing:\n  line 7: image images/x.png\n  line 7: mask masks/x.png" in message
    assert "--data-root" in message.splitlines()[-1]


def test_examining_a_table_returns_its_faults(pairs: Path, make_table: MakeTable) -> None:
    table, faults = examine_table(make_table(FAULTY))
    assert [(fault.line, fault.code) for fault in faults] == [
        (3, "unknown-split"),
        (4, "base-name-mismatch"),
        (5, "empty-cell"),
        (6, "duplicate-image"),
        (7, "missing-file"),
        (7, "missing-file"),
    ]
    assert [row.line for row in table.rows] == [2, 3, 4, 6]


def test_two_paths_of_one_file_are_a_fault(tmp_path: Path, make_table: MakeTable) -> None:
    root = tmp_path / "root"
    touch(root, "images/1.png", "masks/1.png")
    lines = ["/x/CVC/images/1.png,val,/x/CVC/masks/1.png", "/x/ETIS/images/1.png,val,/x/ETIS/masks/1.png"]
    error = failure(make_table(lines), data_root=root)
    assert error.codes == ("same-file", "same-file")
    _, *faults = str(error).splitlines()
    for kind, fault in zip(("images", "masks"), faults, strict=True):
        assert fault.startswith("  line 3: ")
        assert all(fact in fault for fact in (f"/x/ETIS/{kind}/1.png", f"/x/CVC/{kind}/1.png", "line 2"))


def test_long_lists_are_abbreviated(tmp_path: Path, make_table: MakeTable) -> None:
    error = failure(make_table([f"{i}.png,train,m/{i}.png" for i in range(30)]), data_root=tmp_path)
    assert error.codes == ("missing-file",) * 60
    message = str(error)
    assert "60 of 60 files are missing" in message
    assert len(re.findall(r"^  line", message, re.MULTILINE)) == 20
    assert "  … and 40 more\n" in message
    assert f"--data-root ({tmp_path})" in message.splitlines()[-1]


# --- cost ---


def test_the_table_needs_no_torch() -> None:
    code = "import sys, promise.data.table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ten_thousand_rows_take_seconds(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "root/images/0.jpg", "root/masks/0.png")
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        first = tmp_path / f"root/{kind}/0.{suffix}"
        for i in range(1, 10_000):
            os.link(first, first.with_stem(str(i)))
    lines = [f"/a/b/c/images_1024/{i}.png,train,/a/b/c/masks_1024/{i}.png" for i in range(10_000)]
    start = time.process_time()
    table = read_table(make_table(lines), data_root=tmp_path / "root")
    assert time.process_time() - start < 5
    assert len({row.image for row in table.rows}) == 10_000


# --- the data root, Unicode, special files ---


@pytest.mark.parametrize("path", ["../outside/{}/a.png", "sub/../../outside/{}/a.png"])
def test_no_path_leads_out_of_the_data_root(path: str, pairs: Path, make_table: MakeTable) -> None:
    root = pairs / "root"
    root.mkdir()
    for kind in ("images", "masks"):
        (pairs / "outside").mkdir(exist_ok=True)
        (pairs / kind).rename(pairs / "outside" / kind)
    csv = make_table([f"{path.format('images')},train,{path.format('masks')}"])
    assert failure(csv, data_root=root).code == "faulty-table"
    for kind in ("images", "masks"):
        touch(root, f"outside/{kind}/a.png")
    assert read_table(csv, data_root=root).rows[0].image == root / "outside/images/a.png"


def test_names_in_another_unicode_form_are_found_and_noted(tmp_path: Path, make_table: MakeTable) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Läsion") for form in ("NFC", "NFD"))
    touch(tmp_path, f"{decomposed}/images/{decomposed}_1.png", f"{decomposed}/masks/{decomposed}_1_segmentation.png")
    csv = make_table([f"{composed}/images/{composed}_1.png,test,{composed}/masks/{decomposed}_1.png"])
    for table in (read_table(csv), read_table(csv, data_root=tmp_path)):
        assert table.rows[0].image.is_file()
        assert table.rows[0].mask.is_file()
        assert any("another Unicode form" in note for note in table.notes)


def test_a_csv_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "split.csv")
    assert failure(tmp_path / "split.csv").code == "not-a-file"


@pytest.mark.parametrize("folder", ["a" * 300, "/" + "a" * 300, "ä" * 300])
def test_names_that_no_disk_can_hold_are_missing(folder: str, pairs: Path, make_table: MakeTable) -> None:
    csv = make_table([f"{folder}/a.png,train,{folder}/a.png"])
    for root in (None, pairs):
        assert failure(csv, data_root=root).codes == ("missing-file", "missing-file")
    assert failure(csv, data_root=pairs / folder).code == "missing-data-root"


def test_a_link_in_the_data_root_may_lead_out_of_it(pairs: Path, make_table: MakeTable) -> None:
    (pairs / "root").mkdir()
    for kind in ("images", "masks"):
        (pairs / "root" / kind).symlink_to(pairs / kind)
    csv = make_table(["images/a.png,train,masks/a.png"])
    assert read_table(csv, data_root=pairs / "root").rows[0].image == pairs / "root/images/a.png"
