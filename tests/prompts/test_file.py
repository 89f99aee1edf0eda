"""Prompts files: exact round trips, all versions of the format, and the codes of all faults."""

from __future__ import annotations

import base64
import json
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promise.prompts.entry import prompts_from_dict, prompts_to_dict
from promise.prompts.file import Draw, PromptFile, write_prompts
from promise.prompts.sets import ImagePrompts, PromptSet
from promise.runtime.errors import MissingFileError

SIDE = 64
POINT = np.array([[1.0, 2]]), np.array([1])
SIZES = {"a": {"x": (40, 30)}}


def one(*prompts: Any, size: tuple[int, int] = (40, 30), **options: Any) -> ImagePrompts:
    """The prompts of an image with a single set."""
    return ImagePrompts(size, (PromptSet(*prompts),), **options)


@given(
    st.sampled_from([64, 256, 1024]),
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 2), min_size=1, max_size=8),
)
def test_coordinates_are_restored_bit_for_bit(side, size, fractions) -> None:
    xy = (np.array(fractions, np.float32) * np.float32(side)).astype(np.float32)
    sets = [PromptSet(xy, np.ones(len(xy)), np.array([0, 1, 2, 3], np.float32))]
    prompts = ImagePrompts.of(sets, side=side, size=size)
    written = json.loads(json.dumps(prompts.xy.tolist()))
    (found,) = one(np.array(written), prompts.label, prompts.box, size=size).at(side)
    again, box = found.xy, found.box
    assert again.dtype == np.float32
    exact = (xy >= 0.5) | (xy == 0)
    np.testing.assert_array_equal(again[exact], xy[exact])
    np.testing.assert_allclose(again, xy, atol=1e-9)
    np.testing.assert_array_equal(box, [0, 1, 2, 3])


def test_the_frame_is_that_of_pixel_centres() -> None:
    prompts = ImagePrompts.of([PromptSet(np.array([[0, 63]]), np.array([1]))], side=64, size=(128, 32))
    assert prompts.xy.tolist() == [[0.5, 31.25]]


@pytest.mark.parametrize(
    ("changed", "codes", "fact"),
    [
        ({"points": [[10**400, 1], [2, 2]]}, ["invalid-points"], "a list of [x, y]"),
        ({"points": [[float("nan"), 1], [2, 2]]}, ["invalid-points"], "a list of [x, y]"),
        ({"box": [0, 0, 10**400, 1]}, ["invalid-box"], "x0 ≤ x1"),
        ({"labels": [10**400, 1]}, ["invalid-labels"], "labels"),
        ({"mask_index": 10**400}, ["invalid-mask-index"], "mask_index"),
        ({"points": [[1, 1]] * 10_000, "labels": [1] * 10_000}, ["too-many-points"], "10000 points; at most 1024"),
        (
            {"points": None, "labels": None, "lesions": [{"box": [0, 0, 1, 1]}] * 10_000},
            ["too-many-lesions"],
            "10000 lesions; at most 1024",
        ),
        (
            {"points": None, "labels": None, "lesions": [{"points": [[1, 1]] * 1024, "labels": [1] * 1024}] * 1024},
            ["too-many-points"],
            "1048576 points on 1024 lesions; at most 4096 are accepted per image",
        ),
    ],
)
def test_values_beyond_all_limits_are_one_message(
    changed: dict[str, Any], codes: list[str], fact: str, tmp_path: Path, user_error
) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps(content(**changed)))
    with user_error(*codes) as caught:
        PromptFile(tmp_path / "prompts.json").select(SIZES, side=SIDE)
    assert caught.value.codes == tuple(codes)
    assert fact in str(caught.value)
    assert "a, x: " in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"draws":' * 100_000, "9" * 5000])
def test_deep_nesting_is_no_json(text: str, tmp_path: Path, user_error) -> None:
    (tmp_path / "prompts.json").write_text(text)
    with user_error("invalid-json") as caught:
        PromptFile(tmp_path / "prompts.json")
    assert str(caught.value).startswith(f"{tmp_path / 'prompts.json'} is not JSON")


def content(**changed: Any) -> dict[str, Any]:
    entry = {"size": [40, 30], "points": [[1, 2], [3.5, 4]], "labels": [1, 0], "box": None, **changed}
    return {"version": 1, "source": "gt", "draws": [{"seed": 3, "images": {"a": {"x": entry}}}]}


def open_file(tmp_path: Path, value: Any) -> PromptFile:
    path = tmp_path / "prompts.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return PromptFile(path)


def test_written_prompts_are_read(tmp_path: Path) -> None:
    xy, label = np.array([[1.25, 2], [3, 4]]), np.array([1, 0])
    first = {"a": {"x/ü": one(xy, label)}}
    no_points = np.zeros((0, 2)), np.zeros(0, np.int64)
    second = {"a": {"x/ü": one(*no_points, np.array([1.0, 2, 3, 4]))}}
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
    a, b = file.select({"a": {"x/ü": (40, 30)}}, side=SIDE)
    assert a.images["a"]["x/ü"].xy.tolist() == xy.tolist()
    assert a.images["a"]["x/ü"].label.tolist() == [1, 0]
    assert b.images["a"]["x/ü"].xy.shape == (0, 2)
    assert b.images["a"]["x/ü"].box.tolist() == [1, 2, 3, 4]


def test_mask_prompts_and_mask_index_are_restored_bit_for_bit(tmp_path: Path) -> None:
    none = np.zeros((0, 2)), np.zeros(0, np.int64)
    # All kinds of finite float32: subnormal, negative zero, the largest.
    mask = np.random.default_rng(0).normal(0, 9, (16, 12)).astype(np.float32)
    mask[0, :4] = [1e-42, -0.0, np.finfo(np.float32).max, np.finfo(np.float32).min]
    images = {
        "mask": one(*none, None, mask),
        "index": one(np.array([[1.0, 2]]), np.array([1]), mask_index=2),
        "all": one(np.array([[1.0, 2]]), np.array([0]), np.array([1.0, 2, 3, 4]), -mask, mask_index=1),
        "points": one(np.array([[1.0, 2]]), np.array([1])),
    }
    write_prompts(tmp_path / "prompts.json", "auto", [Draw(None, {"a": images})])
    written = json.loads((tmp_path / "prompts.json").read_text())
    assert written["version"] == 2
    entries = written["draws"][0]["images"]["a"]
    assert entries["points"].keys() == {"size", "points", "labels", "box"}
    (draw,) = PromptFile(tmp_path / "prompts.json").select({"a": dict.fromkeys(images, (40, 30))}, side=SIDE)
    for name, expected in images.items():
        found = draw.images["a"][name]
        assert found.mask_index == expected.mask_index
        (found_set,), (expected_set,) = found.sets, expected.sets
        assert (found_set.mask is None) == (expected_set.mask is None)
        if expected_set.mask is not None:
            assert found_set.mask.dtype == np.float32
            assert found_set.mask.shape == (16, 12)
            assert found_set.mask.tobytes() == expected_set.mask.tobytes()


@pytest.mark.parametrize(
    ("changed", "version"),
    [
        ({}, 1),
        ({"mask_index": 1}, 2),
        ({"sets": (PromptSet(*POINT, None, np.ones((4, 4), np.float32)),)}, 2),
        ({"fuse": True}, 3),
        ({"sets": ()}, 3),
        ({"sets": (PromptSet(*POINT), PromptSet(box=np.array([1.0, 2, 3, 4])))}, 3),
        ({"sets": (PromptSet(POINT[0], np.array([-1])),)}, 3),  # a padding point
    ],
)
def test_the_lowest_version_that_holds_the_prompts_is_written(
    changed: dict[str, Any], version: int, tmp_path: Path
) -> None:
    plain = one(np.array([[1.0, 2]]), np.array([1]))
    images = {"x": plain, "y": replace(plain, **changed)}
    write_prompts(tmp_path / "prompts.json", "auto", [Draw(1, {"a": {"x": plain}}), Draw(2, {"a": images})])
    assert json.loads((tmp_path / "prompts.json").read_text())["version"] == version


def test_the_name_of_a_single_data_set_does_not_matter(tmp_path: Path, user_error: Callable[..., Any]) -> None:
    file = open_file(tmp_path, content())
    assert file.select({"renamed": {"x": (40, 30)}}, side=SIDE)[0].images["renamed"]["x"].size == (40, 30)
    with user_error("missing-dataset") as caught:
        file.select({"a": {"x": (40, 30)}, "b": {"x": (40, 30)}}, side=SIDE)
    assert "data set b is missing (found: a)" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "code", "fact"),
    [
        ({"size": [30, 40]}, "image-size-mismatch", "a, x: its size is [30, 40], the image's [40, 30]"),
        ({"points": [[1, 2]]}, "label-count-mismatch", "1 points and 2 labels"),
        ({"points": [[1, 2, 3], [1, 2, 3]]}, "invalid-points", "a, x: "),
        ({"points": [["1", 2], [3, 4]]}, "invalid-points", "a, x: "),
        ({"points": [[1, float("nan")], [3, 4]]}, "invalid-points", "a, x: "),
        ({"points": None}, "invalid-points", "a, x: "),
        ({"labels": [1, 2]}, "invalid-labels", "a, x: "),
        ({"box": [3, 1, 2, 4]}, "invalid-box", "x0 ≤ x1"),
        ({"box": [1, 2, 3]}, "invalid-box", "a, x: "),
        ({"box": [0, 0, 90, 4]}, "prompt-outside-image", "box corner (90, 4)"),
        ({"points": [[41, 2], [3, 4]]}, "prompt-outside-image", "point (41, 2) is outside the image of 40 × 30"),
        ({"points": [[-1.5, 2], [3, 4]]}, "prompt-outside-image", "point (-1.5, 2)"),
        ({"mask_index": 3}, "invalid-mask-index", "0, 1 or 2, not 3"),
        ({"mask_index": True}, "invalid-mask-index", "not True"),
        ({"mask_index": 1.0}, "invalid-mask-index", "not 1.0"),
    ],
)
def test_a_fault_has_a_code(
    changed: dict[str, Any], code: str, fact: str, tmp_path: Path, user_error: Callable[..., Any]
) -> None:
    with user_error(code) as caught:
        open_file(tmp_path, content(**changed)).select(SIZES, side=SIDE)
    assert caught.value.codes == (code,)
    assert fact in str(caught.value)
    assert str(tmp_path / "prompts.json") in str(caught.value)


def pack(values: np.ndarray, shape: list[Any] | None = None) -> dict[str, Any]:
    packed = base64.b64encode(zlib.compress(np.asarray(values, "<f4").tobytes())).decode()
    return {"shape": list(values.shape) if shape is None else shape, "zlib_base64_float32": packed}


ONES = np.ones((4, 4), np.float32)
TRUNCATED = base64.b64encode(zlib.compress(ONES.tobytes())[:-6]).decode()
NOT_FINITE = {
    "nan": np.where(np.eye(4, dtype=bool), np.nan, ONES),
    "infinite": np.where(np.eye(4, dtype=bool), -np.inf, ONES),
}


@pytest.mark.parametrize(
    ("mask", "code"),
    [
        ([1, 2], "invalid-mask"),
        ("text", "invalid-mask"),
        ({"shape": [4, 4]}, "invalid-mask"),
        ({**pack(ONES), "zlib_base64_float32": 7}, "invalid-mask"),
        (pack(ONES, [16]), "invalid-mask"),
        (pack(ONES, [-4, -4]), "invalid-mask"),
        (pack(ONES, [4.0, 4]), "invalid-mask"),
        (pack(ONES, ["4", 4]), "invalid-mask"),
        (pack(ONES, [0, 4]), "invalid-mask"),
        ({"shape": [4, 4], "zlib_base64_float32": "!" + pack(ONES)["zlib_base64_float32"]}, "invalid-mask-encoding"),
        ({"shape": [4, 4], "zlib_base64_float32": "ü"}, "invalid-mask-encoding"),
        ({"shape": [4, 4], "zlib_base64_float32": base64.b64encode(b"no zlib").decode()}, "invalid-mask-encoding"),
        ({"shape": [4, 4], "zlib_base64_float32": TRUNCATED}, "mask-length-mismatch"),
        (pack(ONES, [4, 3]), "mask-length-mismatch"),
        (pack(ONES, [4, 5]), "mask-length-mismatch"),
        (pack(np.zeros(2**22, np.float32), [4, 4]), "mask-length-mismatch"),  # a zip bomb
        (pack(ONES, [2**11 + 1, 2**11]), "mask-too-large"),
        (pack(ONES, [10**30, 10**30]), "mask-too-large"),
        (pack(NOT_FINITE["nan"]), "mask-not-finite"),
        (pack(NOT_FINITE["infinite"]), "mask-not-finite"),
    ],
)
def test_a_malformed_mask_is_one_fault(mask: Any, code: str, tmp_path: Path, user_error: Callable[..., Any]) -> None:
    value = content(mask=mask) | {"version": 2}
    with user_error(code) as caught:
        open_file(tmp_path, value).select(SIZES, side=SIDE)
    assert caught.value.codes == (code,)
    assert "a, x: mask " in str(caught.value)


def test_a_zip_bomb_is_not_decompressed(tmp_path: Path, user_error: Callable[..., Any]) -> None:
    bomb = content(mask=pack(np.zeros(2**24, np.float32), [4, 4]))  # 64 MiB
    file = open_file(tmp_path, bomb)
    tracemalloc.start()
    try:
        with user_error("mask-length-mismatch") as caught:
            file.select(SIZES, side=SIDE)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert "more than 64 bytes" in str(caught.value)


def test_a_mask_must_have_the_shape_that_the_net_requires(tmp_path: Path, user_error: Callable[..., Any]) -> None:
    file = open_file(tmp_path, content(mask=pack(ONES)))
    assert file.select(SIZES, side=SIDE, mask_side=4)[0].images["a"]["x"].sets[0].mask.shape == (4, 4)
    with user_error("mask-shape-mismatch") as caught:
        file.select(SIZES, side=SIDE, mask_side=16)
    assert "[4, 4]" in str(caught.value)
    assert "[16, 16]" in str(caught.value)


def test_all_faults_are_reported_together(tmp_path: Path, user_error: Callable[..., Any]) -> None:
    value = content(labels=[1, 7], box=[5, 5, 1, 1], mask=pack(ONES, [4, 5]))
    value["draws"].append({"seed": 4, "images": {"a": {}}})
    with user_error("invalid-labels", "invalid-box", "mask-length-mismatch", "missing-prompts") as caught:
        open_file(tmp_path, value).select({"a": {"x": (40, 30), "y": (9, 9)}}, side=SIDE)
    assert len(caught.value.codes) == 6
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{tmp_path / 'prompts.json'}: 6 faults")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "draw 0, a, x",
        "draw 0, a, x",
        "draw 0, a, x",
        "draw 0, a, y",
        "draw 1, a, x",
        "draw 1, a, y",
    ]


def test_the_edge_of_the_image_and_one_input_pixel_more_are_inside(tmp_path: Path) -> None:
    file = open_file(tmp_path, content(points=[[-0.5, -0.5], [40.1, 29.9]]))
    assert len(file.select(SIZES, side=SIDE)) == 1


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "invalid-json"),
        ("[]", "invalid-prompts-file"),
        ('{"version": 1, "draws": []}', "invalid-prompts-file"),
        ('{"version": 1, "draws": [3]}', "invalid-prompts-file"),
        ('{"version": 4, "draws": [{"images": {}}]}', "unsupported-prompts-version"),
        ('{"version": "1", "draws": [{"images": {}}]}', "unsupported-prompts-version"),
        ('{"draws": [{"images": {}}]}', "unsupported-prompts-version"),
    ],
)
def test_another_file_is_refused(text: str, code: str, tmp_path: Path, user_error: Callable[..., Any]) -> None:
    with user_error(code) as caught:
        open_file(tmp_path, text)
    assert str(tmp_path / "prompts.json") in str(caught.value)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_all_versions_are_read(version: int, tmp_path: Path) -> None:
    file = open_file(tmp_path, content() | {"version": version})
    assert file.select(SIZES, side=SIDE)[0].images["a"]["x"].xy.tolist() == [[1, 2], [3.5, 4]]


def test_a_missing_file_is_reported(tmp_path: Path, user_error: Callable[..., Any]) -> None:
    with user_error("missing-prompts-file") as caught:
        PromptFile(tmp_path / "nowhere.json")
    assert isinstance(caught.value, MissingFileError)
    assert str(tmp_path / "nowhere.json") in str(caught.value)


# --- several lesions -----------------------------------------------------------------------------


def test_lesions_are_restored_bit_for_bit(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).normal(0, 9, (16, 16)).astype(np.float32)
    sets = (
        PromptSet(np.array([[1.25, 2], [3, 4]]), np.array([1, -1])),
        PromptSet(box=np.array([1.0, 2, 3.1, 4])),
        PromptSet(np.array([[5.0, 6]]), np.array([0]), np.array([0.0, 0, 9, 9]), mask),
    )
    images = {
        "none": ImagePrompts((40, 30), (), fuse=True),
        "one": ImagePrompts((40, 30), sets[1:2]),
        "fused": ImagePrompts((40, 30), sets[1:2], fuse=True),
        "three": ImagePrompts((40, 30), sets, 0, True),
    }
    write_prompts(tmp_path / "prompts.json", "auto", [Draw(None, {"a": images})])
    written = json.loads((tmp_path / "prompts.json").read_text())["draws"][0]["images"]["a"]
    assert written["none"] == {"size": [40, 30], "lesions": [], "fuse": True}
    assert written["one"] == {"size": [40, 30], "points": [], "labels": [], "box": [1, 2, 3.1, 4]}
    box = {"points": [], "labels": [], "box": [1, 2, 3.1, 4]}
    assert written["fused"] == {"size": [40, 30], "lesions": [box], "fuse": True}
    assert (written["three"]["mask_index"], len(written["three"]["lesions"])) == (0, 3)
    (draw,) = PromptFile(tmp_path / "prompts.json").select({"a": dict.fromkeys(images, (40, 30))}, side=SIDE)
    for name, expected in images.items():
        found = draw.images["a"][name]
        assert (found.mask_index, found.fuse, len(found.sets)) == (
            expected.mask_index, expected.fuse, len(expected.sets),
        )  # fmt: skip
        for a, b in zip(found.sets, expected.sets, strict=True):
            for field in ("xy", "label", "box", "mask"):
                assert np.array_equal(getattr(a, field), getattr(b, field)), (name, field)
        assert prompts_from_dict(prompts_to_dict(expected)).boxes.tolist() == expected.boxes.tolist()


def test_arrays_over_all_lesions() -> None:
    sets = (PromptSet(np.array([[1.0, 2], [3, 4]]), np.array([1, 0])), PromptSet(box=np.arange(4.0)), PromptSet(*POINT))
    prompts = ImagePrompts((40, 30), sets)
    assert prompts.xy.tolist() == [[1, 2], [3, 4], [1, 2]]
    assert prompts.label.tolist() == [1, 0, 1]
    assert prompts.lesion.tolist() == [0, 0, 2]
    assert prompts.boxes.tolist() == [[0, 1, 2, 3]]
    assert prompts.box.tolist() == [0, 1, 2, 3]
    none = ImagePrompts((40, 30), ())
    assert (none.xy.shape, none.label.shape, none.boxes.shape, none.box) == ((0, 2), (0,), (0, 4), None)


def lesions(*entries: Any, **more: Any) -> dict[str, Any]:
    entry = {"size": [40, 30], "lesions": list(entries), **more}
    return {"version": 3, "source": "clicks", "draws": [{"seed": None, "images": {"a": {"x": entry}}}]}


def test_a_lesion_may_omit_what_it_does_not_have(tmp_path: Path) -> None:
    file = open_file(tmp_path, lesions({"box": [1, 2, 3, 4]}, {"points": [[1, 2]], "labels": [1]}, note="mine"))
    first, second = file.select(SIZES, side=SIDE)[0].images["a"]["x"].sets
    assert (first.xy.shape, first.box.tolist()) == ((0, 2), [1, 2, 3, 4])
    assert (second.xy.tolist(), second.box) == ([[1, 2]], None)


@pytest.mark.parametrize(
    ("value", "code", "fact"),
    [
        (lesions({}, {"box": [3, 1, 2, 4]}), "invalid-box", "a, x: lesion 2 of 2: box"),
        (lesions({"box": [3, 1, 2, 4]}), "invalid-box", "a, x: box"),
        (lesions({}, {}, {"points": [[1, 2]]}), "label-count-mismatch", "lesion 3 of 3: 1 points and 0 labels"),
        (lesions({}, {"points": [[99, 2]], "labels": [1]}), "prompt-outside-image", "lesion 2 of 2: point (99, 2)"),
        (lesions({"mask": [1]}, {}), "invalid-mask", "lesion 1 of 2: mask"),
        (lesions({}, 3), "invalid-lesions", "a, x: lesions"),
        (lesions({}, points=[[1, 2]]), "prompts-beside-lesions", "lesions and points"),
        (lesions({}, fuse="yes"), "invalid-fuse", "not 'yes'"),
        (lesions({}, mask_index=3), "invalid-mask-index", "not 3"),
    ],
)
def test_a_fault_names_its_lesion(value: Any, code: str, fact: str, tmp_path: Path, user_error: Any) -> None:
    with user_error(code) as caught:
        open_file(tmp_path, value).select(SIZES, side=SIDE)
    assert caught.value.codes == (code,)
    assert fact in str(caught.value)


def test_all_faults_of_all_lesions_are_reported_together(tmp_path: Path, user_error: Any) -> None:
    value = lesions({"box": [3, 1, 2, 4], "labels": [1]}, {"points": [[99, 2]], "labels": [7]}, fuse=1)
    with user_error("invalid-fuse") as caught:
        open_file(tmp_path, value).select(SIZES, side=SIDE)
    assert caught.value.codes == (
        "label-count-mismatch", "invalid-box", "invalid-labels", "prompt-outside-image", "invalid-fuse",
    )  # fmt: skip
