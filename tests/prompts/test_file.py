"""Prompts through a file and back: the same numbers, and every fault told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promise.prompts.file import Draw, ImagePrompts, PromptFile, write_prompts
from promise.runtime.errors import MissingFileError, UserError

SIDE = 64


@given(
    st.sampled_from([64, 256, 1024]),
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 2), min_size=1, max_size=8),
)
def test_a_coordinate_comes_back_with_every_bit(side, size, shares) -> None:
    xy = (np.array(shares, np.float32) * np.float32(side)).astype(np.float32)
    prompts = ImagePrompts.of(xy, np.ones(len(xy)), np.array([0, 1, 2, 3], np.float32), side=side, size=size)
    written = json.loads(json.dumps(prompts.xy.tolist()))
    again, _, box = ImagePrompts(size, np.array(written), prompts.label, prompts.box).at(side)
    assert again.dtype == np.float32
    whole = (xy >= 0.5) | (xy == 0)
    np.testing.assert_array_equal(again[whole], xy[whole])
    np.testing.assert_allclose(again, xy, atol=1e-9)
    np.testing.assert_array_equal(box, [0, 1, 2, 3])


def test_the_frame_is_that_of_pixel_centres() -> None:
    prompts = ImagePrompts.of(np.array([[0, 63]]), np.array([1]), None, side=64, size=(128, 32))
    assert prompts.xy.tolist() == [[0.5, 31.25]]


def content(**other: Any) -> dict[str, Any]:
    one = {"size": [40, 30], "points": [[1, 2], [3.5, 4]], "labels": [1, 0], "box": None}
    return {"version": 1, "source": "gt", "draws": [{"seed": 3, "images": {"a": {"x": {**one, **other}}}}]}


def read(tmp_path: Path, value: Any) -> PromptFile:
    path = tmp_path / "prompts.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return PromptFile(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    xy, label = np.array([[1.25, 2], [3, 4]]), np.array([1, 0])
    first = {"a": {"x/ü": ImagePrompts((40, 30), xy, label, None)}}
    none = np.zeros((0, 2)), np.zeros(0, np.int64)
    second = {"a": {"x/ü": ImagePrompts((40, 30), *none, np.array([1.0, 2, 3, 4]))}}
    write_prompts(tmp_path / "prompts.json", "gt", [Draw(3, first), Draw(None, second)])
    written = json.loads((tmp_path / "prompts.json").read_text())
    assert written["version"] == 1
    assert written["frame"] == "image pixels, (0, 0) is the centre of the first pixel"
    assert written["draws"][0]["images"]["a"]["x/ü"] == {
        "size": [40, 30],
        "points": [[1.25, 2], [3, 4]],
        "labels": [1, 0],
        "box": None,
    }
    file = PromptFile(tmp_path / "prompts.json")
    assert (file.source, file.seeds) == ("gt", (3, None))
    a, b = file.choose({"a": {"x/ü": (40, 30)}}, side=SIDE)
    assert a.images["a"]["x/ü"].xy.tolist() == xy.tolist()
    assert a.images["a"]["x/ü"].label.tolist() == [1, 0]
    assert b.images["a"]["x/ü"].xy.shape == (0, 2)
    assert b.images["a"]["x/ü"].box.tolist() == [1, 2, 3, 4]


def test_one_data_set_may_have_another_name(tmp_path: Path) -> None:
    file = read(tmp_path, content())
    assert file.choose({"renamed": {"x": (40, 30)}}, side=SIDE)[0].images["renamed"]["x"].size == (40, 30)
    with pytest.raises(UserError, match=r"data set b is missing \(there are a\)"):
        file.choose({"a": {"x": (40, 30)}, "b": {"x": (40, 30)}}, side=SIDE)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"size": [30, 40]}, r"a, x: its size is \[30, 40\], the image's \[40, 30\]"),
        ({"points": [[1, 2]]}, "1 points and 2 labels"),
        ({"points": [[1, 2, 3], [1, 2, 3]]}, r"points must be a list of \[x, y\]"),
        ({"points": [["1", 2], [3, 4]]}, r"points must be a list of \[x, y\]"),
        ({"points": [[1, float("nan")], [3, 4]]}, r"points must be a list of \[x, y\]"),
        ({"points": None}, r"points must be a list of \[x, y\]"),
        ({"labels": [1, 2]}, "labels must be a list of 1"),
        ({"box": [3, 1, 2, 4]}, r"box must be \[x0, y0, x1, y1\] with x0 ≤ x1"),
        ({"box": [1, 2, 3]}, "box must be"),
        ({"box": [0, 0, 90, 4]}, r"box corner \(90, 4\) lies outside"),
        ({"points": [[41, 2], [3, 4]]}, r"point \(41, 2\) lies outside the image of 40 × 30 pixels"),
        ({"points": [[-1.5, 2], [3, 4]]}, r"point \(-1.5, 2\) lies outside"),
    ],
)
def test_a_fault_is_told(other: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        read(tmp_path, content(**other)).choose({"a": {"x": (40, 30)}}, side=SIDE)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    value = content(labels=[1, 7], box=[5, 5, 1, 1])
    value["draws"].append({"seed": 4, "images": {"a": {}}})
    with pytest.raises(UserError) as caught:
        read(tmp_path, value).choose({"a": {"x": (40, 30), "y": (9, 9)}}, side=SIDE)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("prompts.json: 5 faults in the prompts of the scored images:")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "draw 0, a, x",
        "draw 0, a, x",
        "draw 0, a, y",
        "draw 1, a, x",
        "draw 1, a, y",
    ]


def test_the_edge_of_the_image_and_a_little_more_are_inside(tmp_path: Path) -> None:
    file = read(tmp_path, content(points=[[-0.5, -0.5], [40.1, 29.9]]))
    assert len(file.choose({"a": {"x": (40, 30)}}, side=SIDE)) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is no prompts file"),
        ('{"version": 1, "draws": []}', "is no prompts file"),
        ('{"version": 1, "draws": [3]}', "is no prompts file"),
        ('{"version": 2, "draws": [{"images": {}}]}', "has version 2; version 1 is read"),
    ],
)
def test_another_file_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        read(tmp_path, text)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no prompts at .*nowhere\.json"):
        PromptFile(tmp_path / "nowhere.json")
