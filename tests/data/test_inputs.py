"""Resolution of files, folders, patterns, CSVs and lists to images and their names."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from promise.data.inputs import input_size, list_inputs, read_input


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.png", "b.JPG", "sub/a.png", "sub/deep/c.bmp", "sub/deep/c.tif", "other/a.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((4, 6, 3), len(name), np.uint8))
    (tmp_path / "in/notes.md").write_text("not an image")
    (tmp_path / "in/._a.png").write_bytes(b"a file that macOS writes")
    return tmp_path / "in"


def names(*sources: Path | str, **other) -> list[str]:
    return [one.name for one in list_inputs([str(source) for source in sources], **other)]


def test_a_folder_and_its_subfolders(tree, user_error) -> None:
    assert names(tree) == ["a", "b"]
    assert names(tree, recursive=True) == ["a", "b", "other/a", "sub/a", "sub/deep/c.bmp", "sub/deep/c.tif"]
    assert names(tree, recursive=True, leave_out=tree / "sub") == ["a", "b", "other/a"]
    (tree / "sub/a.png").unlink()
    with user_error("no-images") as caught:
        names(tree / "sub")
    assert all(fact in str(caught.value) for fact in (f"{tree / 'sub'}: ", " 2 ", "--recursive"))


def test_files_and_patterns_have_the_shortest_unique_names(tree, user_error) -> None:
    assert names(tree / "a.png") == ["a"]
    assert names(tree / "sub/a.png", tree / "other/a.png") == ["sub/a", "other/a"]
    assert names(tree / "*.*") == ["a", "b"]
    assert names(f"{tree}/**/c.*") == ["c.bmp", "c.tif"]
    with user_error("no-images") as caught:
        names(tree / "*.md")
    assert f"{tree / '*.md'}: " in str(caught.value)


def test_each_image_is_listed_once(tree) -> None:
    assert names(tree / "a.png", tree, tree / "a.png") == ["a", "b"]


def test_names_are_unique_across_folders(tree) -> None:
    found = list_inputs([str(tree / "sub"), str(tree / "other")])
    assert [one.name for one in found] == ["sub/a", "other/a"]
    assert [one.path for one in found] == [tree / "sub/a.png", tree / "other/a.png"]


def test_a_csv_may_be_a_split_csv_or_contain_a_column_of_paths(tree, tmp_path, user_error) -> None:
    (tmp_path / "split.csv").write_text(
        "image_name,train_type,mask_name\nin/a.png,train,m/a.png\nin/b.JPG,test,m/b.png\nin/sub/a.png,test,m/c.png\n"
    )
    assert names(tmp_path / "split.csv") == ["in/a", "in/b", "sub/a"]
    assert [one.path.name for one in list_inputs([str(tmp_path / "split.csv")], split="test")] == ["b.JPG", "a.png"]
    with user_error("no-rows-of-split") as caught:
        names(tmp_path / "split.csv", split="val")
    assert all(fact in str(caught.value) for fact in ("split.csv: ", "train_type 'val'", "--split"))
    (tmp_path / "column.csv").write_text(f"id;path\n1;{tree / 'a.png'}\n2;in/b.JPG\n")
    assert names(tmp_path / "column.csv") == ["a", "b"]
    (tmp_path / "moved.csv").write_text("image\n/elsewhere/data/sub/a.png\n")
    assert names(tmp_path / "moved.csv", data_root=str(tree)) == ["a"]
    (tmp_path / "none.csv").write_text("id,mask\n1,2\n")
    with user_error("missing-columns") as caught:
        names(tmp_path / "none.csv")
    assert all(fact in str(caught.value) for fact in ("none.csv: ", "image_name, image, path"))


def test_a_list_contains_one_path_per_line(tree, tmp_path, user_error) -> None:
    (tmp_path / "list.txt").write_text("# mine\nin/a.png\n\n  in/sub/a.png  \n")
    assert names(tmp_path / "list.txt") == ["in/a", "sub/a"]
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "lost.txt").write_text("in/a.png\nin/x.png\nin/y.png\n")
    with user_error() as caught:
        names(tmp_path / "empty.txt", tmp_path / "lost.txt", tmp_path / "absent.txt", tree / "q.png")
    assert caught.value.codes == ("no-images", "missing-file", "missing-file", "missing-file", "missing-file")
    assert [error.code for error in caught.value.errors] == [
        "no-images",
        "missing-images",
        "missing-file",
        "missing-file",
    ]
    text = str(caught.value)
    for fact in ("empty.txt: ", "lost.txt: 2 of 3 ", "line 2: in/x.png", "--data-root", "absent.txt: ", "q.png: "):
        assert fact in text


def test_size_and_pixels_of_an_image(tree) -> None:
    assert input_size(tree / "a.png") == (6, 4)
    assert read_input(tree / "a.png").shape == (4, 6, 3)
