from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from promise.data.table import read_table
from promise.runtime.errors import MissingFileError, UserError

MakeTable = Callable[..., Path]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def fault(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        read_table(path, **options)
    return str(caught.value)


# --- what is read ---


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


def test_names_keep_the_extension_only_where_it_tells_apart(tmp_path: Path, make_table: MakeTable) -> None:
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


def test_the_longest_end_that_exists_wins(tmp_path: Path, make_table: MakeTable) -> None:
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


def test_data_root_wins_over_an_existing_absolute_path(pairs: Path, make_table: MakeTable) -> None:
    root = pairs / "root"
    touch(root, "images/a.png", "masks/a.png")
    path = make_table([f"{pairs}/images/a.png,train,{pairs}/masks/a.png"])
    assert read_table(path, data_root=root).rows[0].image == root / "images/a.png"


def test_size_suffix_and_extension_are_bridged_and_told(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "images/a.jpg", "masks/a.png", "images/b.png", "masks/b.png")
    lines = [f"images_1024/{s}.png,train,masks_1024/{s}.png" for s in "ab"]
    table = read_table(make_table(lines))
    assert table.rows[0].image == tmp_path / "images/a.jpg"
    assert set(table.notes) == {
        "1 image found with another extension (.png → .jpg)",
        "2 images found under a folder without the size suffix (images_1024 → images)",
        "2 masks found under a folder without the size suffix (masks_1024 → masks)",
    }


def test_a_folder_with_the_suffix_wins_over_one_without(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "images/a.png", "images_1024/a.png", "masks/a.png")
    table = read_table(make_table(["images_1024/a.png,train,masks/a.png"]))
    assert table.rows[0].image == tmp_path / "images_1024/a.png"
    assert table.notes == ()


def test_only_pictures_are_taken_for_another_extension(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "images/a.txt", "masks/a.png")
    assert "line 2: image images/a.png" in fault(make_table(["images/a.png,train,masks/a.png"]))


def test_segmentation_suffix_is_added_or_dropped(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "a.jpg", "a_segmentation.png", "i/b.jpg", "m/b.png")
    table = read_table(make_table(["a.jpg,train,a.jpg", "i/b.jpg,train,m/b_segmentation.png"]))
    assert [row.mask.name for row in table.rows] == ["a_segmentation.png", "b.png"]
    assert "1 mask found with the suffix _segmentation (a_segmentation.png)" in table.notes
    assert "1 mask found without the suffix _segmentation (b.png)" in table.notes


def test_isic_separator_is_put_back(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "Train_Input/ISIC_0000001.jpg", "Train_GroundTruth/ISIC_0000001_segmentation.png")
    line = "/x/Train_InputISIC_0000001.jpg,train,/x/Train_GroundTruthISIC_0000001.jpg"
    table = read_table(make_table([line]), data_root=tmp_path)
    (row,) = table.rows
    assert row.name == "ISIC_0000001"
    assert row.image == tmp_path / "Train_Input/ISIC_0000001.jpg"
    assert row.mask == tmp_path / "Train_GroundTruth/ISIC_0000001_segmentation.png"
    assert any("lost separator (Train_Input/ISIC_0000001.jpg)" in note for note in table.notes)


def test_a_name_that_only_looks_like_a_lost_separator_is_left(tmp_path: Path, make_table: MakeTable) -> None:
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
    touch(tmp_path, "Other_Input/ISIC_0000001.jpg")  # two candidates are none
    assert "1 of 2 files is missing" in fault(path, data_root=tmp_path)


def test_an_image_is_never_its_own_mask(tmp_path: Path, make_table: MakeTable) -> None:
    touch(tmp_path, "images/a.png", "a.jpg")
    message = fault(make_table(["a.png,train,a.png"]))
    assert "1 of 2 files is missing:\n  line 2: mask a.png" in message


# --- faults ---


def test_missing_column_names_the_nearest_and_the_expected(make_table: MakeTable) -> None:
    message = fault(make_table(["a,b,c"], header="image_path,train_type,mask"))
    assert "the header lacks 'image_name' (nearest: 'image_path'), 'mask_name' (nearest: 'mask')" in message
    assert "Found: image_path, train_type, mask." in message
    assert message.endswith("Expected: image_name,train_type,mask_name")


def test_files_that_are_no_table(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    with pytest.raises(MissingFileError, match="no such file"):
        read_table(path)
    for content, words in (
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"image_name,train_type,mask_name\n", "has a header and no rows"),
        (b"PK\x03\x04zip", "Excel workbook"),
        (b"image_name,train_type,mask_name\n\xff\xfe,train,x", "is not UTF-8 text"),
        (b"image_name\0", "zero bytes"),
    ):
        path.write_bytes(content)
        assert words in fault(path)


def test_data_root_must_be_a_folder(tmp_path: Path, make_table: MakeTable) -> None:
    with pytest.raises(MissingFileError, match=r"--data-root .*nowhere is not a folder"):
        read_table(make_table(["a.png,train,a.png"]), data_root=tmp_path / "nowhere")


def test_every_fault_is_told_at_once_with_its_line(pairs: Path, make_table: MakeTable) -> None:
    lines = [
        "images/a.png,train,masks/a.png",
        "images/b.png,validation,masks/b.png",
        "images/c.png,train,masks/d.png",
        "images/e.png,train,",
        "images/a.png,test,masks/a.png",
        "images/x.png,train,masks/x.png",
    ]
    message = fault(make_table(lines))
    assert message.startswith("polyp.csv: 4 rows have faults:\n")
    assert "line 3: train_type 'validation' is none of train, val, test; did you mean 'val'?" in message
    assert "line 4: image and mask have different base names: images/c.png and masks/d.png" in message
    assert "line 5: no mask_name" in message
    assert "line 6: images/a.png stands on line 2 already (train, here test)" in message
    assert "polyp.csv: 2 of 10 files are missing:\n  line 7: image images/x.png" in message
    assert message.endswith("set --data-root?")


def test_two_cells_that_mean_one_file_are_a_fault(tmp_path: Path, make_table: MakeTable) -> None:
    root = tmp_path / "root"
    touch(root, "images/1.png", "masks/1.png")
    lines = ["/x/CVC/images/1.png,val,/x/CVC/masks/1.png", "/x/ETIS/images/1.png,val,/x/ETIS/masks/1.png"]
    message = fault(make_table(lines), data_root=root)
    assert "line 3: /x/ETIS/images/1.png and line 2's /x/CVC/images/1.png are both" in message
    assert "line 3: /x/ETIS/masks/1.png and line 2's /x/CVC/masks/1.png are both" in message


def test_long_lists_are_cut(tmp_path: Path, make_table: MakeTable) -> None:
    message = fault(make_table([f"{i}.png,train,m/{i}.png" for i in range(30)]), data_root=tmp_path)
    assert "60 of 60 files are missing" in message
    assert len(re.findall(r"^  line", message, re.MULTILINE)) == 20
    assert "  … and 40 more\n" in message
    assert message.endswith("is it the right folder?")


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
    start = time.perf_counter()
    table = read_table(make_table(lines), data_root=tmp_path / "root")
    assert time.perf_counter() - start < 5
    assert len({row.image for row in table.rows}) == 10_000
