"""Which images are meant, and what their outputs are called."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from promise.data.inputs import list_inputs, picture_size, read_picture
from promise.runtime.errors import UserError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.png", "b.JPG", "sub/a.png", "sub/deep/c.bmp", "sub/deep/c.tif", "other/a.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((4, 6, 3), len(name), np.uint8))
    (tmp_path / "in/notes.md").write_text("no picture")
    (tmp_path / "in/._a.png").write_bytes(b"what a Mac leaves")
    return tmp_path / "in"


def names(*given: Path | str, **other) -> list[str]:
    return [one.name for one in list_inputs([str(g) for g in given], **other)]


def test_a_folder_is_its_pictures_and_on_request_those_below(tree) -> None:
    assert names(tree) == ["a", "b"]
    assert names(tree, recursive=True) == ["a", "b", "other/a", "sub/a", "sub/deep/c.bmp", "sub/deep/c.tif"]
    assert names(tree, recursive=True, leave_out=tree / "sub") == ["a", "b", "other/a"]
    (tree / "sub/a.png").unlink()
    with pytest.raises(UserError, match=r"no PNG, .* in this folder \(there are 2 in folders below: --recursive\)"):
        names(tree / "sub")


def test_files_and_patterns_are_named_by_what_tells_them_apart(tree) -> None:
    assert names(tree / "a.png") == ["a"]
    assert names(tree / "sub/a.png", tree / "other/a.png") == ["sub/a", "other/a"]
    assert names(tree / "*.*") == ["a", "b"]
    assert names(f"{tree}/**/c.*") == ["c.bmp", "c.tif"]


def test_a_picture_is_meant_once(tree) -> None:
    assert names(tree / "a.png", tree, tree / "a.png") == ["a", "b"]


def test_two_folders_with_the_same_names_are_told_apart(tree) -> None:
    found = list_inputs([str(tree / "sub"), str(tree / "other")])
    assert [one.name for one in found] == ["sub/a", "other/a"]
    assert [one.path for one in found] == [tree / "sub/a.png", tree / "other/a.png"]


def test_a_csv_may_be_of_the_project_or_a_column(tree, tmp_path) -> None:
    (tmp_path / "split.csv").write_text(
        "image_name,train_type,mask_name\nin/a.png,train,m/a.png\nin/b.JPG,test,m/b.png\nin/sub/a.png,test,m/c.png\n"
    )
    assert names(tmp_path / "split.csv") == ["in/a", "in/b", "sub/a"]
    assert [one.path.name for one in list_inputs([str(tmp_path / "split.csv")], split="test")] == ["b.JPG", "a.png"]
    with pytest.raises(UserError, match="no row has train_type 'val'"):
        names(tmp_path / "split.csv", split="val")
    (tmp_path / "column.csv").write_text(f"id;path\n1;{tree / 'a.png'}\n2;in/b.JPG\n")
    assert names(tmp_path / "column.csv") == ["a", "b"]
    (tmp_path / "moved.csv").write_text("image\n/elsewhere/data/sub/a.png\n")
    assert names(tmp_path / "moved.csv", data_root=str(tree)) == ["a"]
    (tmp_path / "none.csv").write_text("id,mask\n1,2\n")
    with pytest.raises(UserError, match="the header has none of the columns image_name, image, path"):
        names(tmp_path / "none.csv")


def test_a_list_has_a_path_a_line(tree, tmp_path) -> None:
    (tmp_path / "list.txt").write_text("# mine\nin/a.png\n\n  in/sub/a.png  \n")
    assert names(tmp_path / "list.txt") == ["in/a", "sub/a"]
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "lost.txt").write_text("in/a.png\nin/x.png\nin/y.png\n")
    with pytest.raises(UserError) as caught:
        names(tmp_path / "empty.txt", tmp_path / "lost.txt", tmp_path / "absent.txt", tree / "q.png")
    told = str(caught.value)
    for words in (
        "names no image",
        "2 of 3 images are missing",
        "line 2: in/x.png",
        "absent.txt: no such",
        "q.png: no",
    ):
        assert words in told


def test_the_size_is_that_of_the_picture(tree) -> None:
    assert picture_size(tree / "a.png") == (6, 4)
    assert read_picture(tree / "a.png").shape == (4, 6, 3)
