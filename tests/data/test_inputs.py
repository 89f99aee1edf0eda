"""Resolution of files, folders, patterns, CSVs and lists to images and their names."""

from __future__ import annotations

import os
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


def test_hidden_folders_are_left_out_and_linked_ones_are_not(tree) -> None:
    hidden = tree / ".ipynb_checkpoints"
    hidden.mkdir()
    (tree / "a.png").rename(hidden / "a-checkpoint.png")
    (tree / "linked").symlink_to(tree / "other")
    (tree / "sub/loop").symlink_to(tree / "sub")
    (tree.parent / "outside").mkdir()
    (tree / "sub/deep/c.bmp").rename(tree.parent / "outside/c.bmp")
    (tree.parent / "outside/loop").symlink_to(tree.parent / "outside")
    (tree / "far").symlink_to(tree.parent / "outside")
    assert names(tree, recursive=True) == ["b", "far/c", "other/a", "sub/a", "sub/deep/c"]


def test_special_files_are_listed_and_reported_when_read(tree, user_error) -> None:
    os.mkfifo(tree / "fifo.png")
    os.mkfifo(tree / "fifo")  # without extension: DICOM is recognised by its first bytes
    (tree / "broken.png").symlink_to("/nowhere/annex/broken.png")
    found = {one.name: one.path for one in list_inputs([str(tree)])}
    assert list(found) == ["a", "b", "broken", "fifo"]
    for name, code in (("fifo", "not-a-file"), ("broken", "missing-file")):
        for read in (read_input, input_size):
            with user_error(code):
                read(found[name])
    with user_error("not-a-file"):
        list_inputs([str(tree / "fifo")])


def test_lists_and_csvs_that_are_pipes_are_refused(tree, user_error) -> None:
    for name in ("a.csv", "a.txt"):
        os.mkfifo(tree / name)
        with user_error("not-a-file"):
            list_inputs([str(tree / name)])


def test_a_pipe_that_a_csv_names_is_an_error_of_its_own(tree, user_error) -> None:
    os.mkfifo(tree / "fifo.png")
    (tree / "a.csv").write_text(f"image_name\nfifo.png\n{tree}/fifo.png\n")
    (one,) = list_inputs([str(tree / "a.csv")])
    with user_error("not-a-file"):
        read_input(one.path)


def test_two_links_to_one_file_are_two_images(tree) -> None:
    for name in ("first.png", "second.png"):
        (tree / name).symlink_to("a.png")
    assert names(tree) == ["a", "b", "first", "second"]
    assert names(tree, tree / "a.png") == ["a", "b", "first", "second"]


@pytest.mark.parametrize("path", ["../outside/x.png", "{tree}/../outside/x.png", "sub/../../outside/x.png"])
def test_a_csv_does_not_lead_out_of_the_data_root(path: str, tree, user_error) -> None:
    (tree.parent / "outside").mkdir()
    (tree / "a.png").rename(tree.parent / "outside/x.png")
    (tree / "a.csv").write_text(f"image_name\n{path.format(tree=tree)}\n")
    assert names(tree / "a.csv") == ["x"]  # without a data root, the paths are the owner's own
    with user_error("missing-file"):
        names(tree / "a.csv", data_root=str(tree))
    (tree / "x.png").touch()
    (one,) = list_inputs([str(tree / "a.csv")], data_root=str(tree))
    assert one.path.resolve() == (tree / "x.png").resolve()


@pytest.mark.parametrize("text", ["\0mages/z.png", "sub/\0.png", "{long}/z.png", "a/{long}.png", "/{long}/z.png"])
@pytest.mark.parametrize("rooted", [False, True])
def test_names_that_no_disk_can_hold_are_missing(text: str, rooted: bool, tree, user_error) -> None:
    (tree / "a.txt").write_text(text.format(long="a" * 300) + "\n")
    with user_error("missing-file"):
        names(tree / "a.txt", data_root=str(tree) if rooted else None)


def test_images_in_a_folder_that_may_be_listed_only_are_listed(as_other_user) -> None:
    folder, run = as_other_user
    (folder / "images").mkdir()
    (folder / "images/a.png").write_bytes(b"")
    (folder / "images").chmod(0o744)  # names may be read, files may not
    assert run(lambda: len(list_inputs([str(folder / "images")])))[0] == 1
