from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promise.data.images import EXTENSIONS
from promise.data.splits import (
    check_fractions,
    divided_groups,
    draw_split,
    hold_out,
    read_grouping,
    read_split_file,
    without_extension,
)
from promise.runtime.errors import MissingFileError, UserError

NAMES = [f"frame{i:03d}" for i in range(100)]


def write(tmp_path: Path, value: object) -> Path:
    path = tmp_path / "list.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


# --- fractions ---


def test_fractions_are_met_exactly_without_groups() -> None:
    split = draw_split(NAMES, {}, (0.8, 0.1, 0.1), seed=1)
    assert Counter(split.values()) == {"train": 80, "val": 10, "test": 10}


def test_the_split_depends_on_the_seed_but_not_on_the_order() -> None:
    first = draw_split(NAMES, {}, (0.8, 0.1, 0.1), seed=1)
    assert draw_split(NAMES[::-1], {}, (0.8, 0.1, 0.1), seed=1) == first
    assert draw_split(NAMES, {}, (0.8, 0.1, 0.1), seed=2) != first


groupings = st.lists(st.integers(0, 15), min_size=3, max_size=80).map(
    lambda numbers: {f"n{i}": f"g{g}" for i, g in enumerate(numbers) if g}
)


@settings(max_examples=200, deadline=None)
@given(groupings, st.integers(0, 1000))
def test_groups_are_never_divided(groups: dict[str, str], seed: int) -> None:
    names = [f"n{i}" for i in range(max((int(n[1:]) for n in groups), default=2) + 1)]
    count = len({groups.get(n, n) for n in names})
    if count < 3:
        with pytest.raises(UserError) as caught:
            draw_split(names, groups, (0.7, 0.2, 0.1), seed=seed)
        assert caught.value.code == "too-few-groups"
        assert "--fractions" in str(caught.value)
        return
    split = draw_split(names, groups, (0.7, 0.2, 0.1), seed=seed)
    assert split.keys() == set(names)
    assert set(split.values()) == {"train", "val", "test"}
    assert divided_groups(groups, split) == {}


@settings(max_examples=100, deadline=None)
@given(groupings, st.integers(0, 1000))
def test_whole_groups_are_held_out(groups: dict[str, str], seed: int) -> None:
    names = [*groups, "alone1", "alone2"]
    code = ""
    try:
        kept, held_out = hold_out(names, groups, 0.1, seed=seed)
    except UserError as error:
        code = error.code
    if code:
        assert code == "no-training-images"
        assert len(set(groups.values())) <= 1
        return
    assert sorted(kept + held_out) == sorted(names)
    assert len(held_out) >= 0.1 * len(names)
    assert divided_groups(groups, {**dict.fromkeys(kept, "train"), **dict.fromkeys(held_out, "val")}) == {}


def test_groups_of_equal_size_meet_the_fractions() -> None:
    groups = {name: name[:-1] for name in NAMES}
    split = draw_split(NAMES, groups, (0.6, 0.2, 0.2), seed=0)
    assert Counter(split.values()) == {"train": 60, "val": 20, "test": 20}


def test_a_fraction_of_zero_is_an_empty_split() -> None:
    assert Counter(draw_split(NAMES, {}, (0.9, 0, 0.1), seed=0).values()) == {"train": 90, "test": 10}


@pytest.mark.parametrize("fractions", [(0.5, 0.1, 0.1), (1.2, -0.1, -0.1), (0.5, 0.5)])
def test_fractions_that_do_not_add_up(fractions: tuple[float, ...], user_error: Callable[..., Any]) -> None:
    with user_error("invalid-fractions") as caught:
        check_fractions(fractions)
    assert "--fractions" in str(caught.value)
    assert " ".join(f"{value:g}" for value in fractions) in str(caught.value)


def test_divided_groups_are_counted() -> None:
    groups = {"a": "1", "b": "1", "c": "1", "d": "2", "e": "2"}
    split = {"a": "train", "b": "train", "c": "test", "d": "val"}
    assert divided_groups(groups, split) == {"1": {"train": 2, "test": 1}}


# --- groups ---


def test_groups_from_a_pattern() -> None:
    names = ["p1_a", "p1_b", "p22_a", "other"]
    assert read_grouping(r"re:^p(\d+)_").of(names) == {"p1_a": "1", "p1_b": "1", "p22_a": "22"}
    assert read_grouping(r"re:^p\d+").of(names) == {"p1_a": "p1", "p1_b": "p1", "p22_a": "p22"}


@pytest.mark.parametrize("table", [{"1.png": 7, "2": 7, "3": 8}, {"7": ["1.png", "2"], "8": [3]}])
def test_groups_from_json_either_way_round(tmp_path: Path, table: dict[str, object]) -> None:
    grouping = read_grouping(str(write(tmp_path, table)))
    assert grouping.of(["1", "images/2", "3", "4"]) == {"1": "7", "images/2": "7", "3": "8"}


def test_groups_from_a_column() -> None:
    assert read_grouping("patient").of(["a", "b"], {"a": "x"}) == {"a": "x"}


@pytest.mark.parametrize(
    ("text", "kind", "code"),
    [
        ("re:(", UserError, "invalid-pattern"),
        ("absent.json", MissingFileError, "missing-file"),
    ],
)
def test_a_grouping_that_cannot_be_read(text: str, kind: type[UserError], code: str) -> None:
    with pytest.raises(kind) as caught:
        read_grouping(text)
    assert caught.value.code == code
    assert f"--group {text}" in str(caught.value)


def test_json_that_is_not_a_grouping(tmp_path: Path, user_error: Callable[..., Any]) -> None:
    with user_error("invalid-group-table"):
        read_grouping(str(write(tmp_path, ["a"])))
    with user_error("invalid-json"):
        read_grouping(str(write(tmp_path, "{")))


def test_a_grouping_without_match(user_error: Callable[..., Any]) -> None:
    with user_error("no-group") as caught:
        read_grouping("re:^z").of(["a", "b"])
    assert "--group re:^z" in str(caught.value)


# --- published lists ---


def test_a_list_for_one_set_and_for_several(tmp_path: Path) -> None:
    one = {"train": ["a.jpg", "b"], "validation": ["c.d"]}
    expected = {"a": "train", "b": "train", "c.d": "val"}
    assert read_split_file(write(tmp_path, one)) == {None: expected}
    assert read_split_file(write(tmp_path, {"x": one, "y": {"test": ["1"]}})) == {"x": expected, "y": {"1": "test"}}


@pytest.mark.parametrize(
    ("value", "code", "fact"),
    [
        ({"train": ["a"], "test": ["a.png"]}, "name-in-two-splits", "1 name is in two splits: a"),
        ({"trian": ["a"]}, "unknown-split", "'train'"),
        ({"train": ["a"], "x": {"train": []}}, "invalid-split-file", "train, val and test"),
        ([1], "invalid-split-file", "object"),
        ({"x": {"train": "a"}}, "invalid-split-file", "train"),
    ],
)
def test_an_unusable_list(tmp_path: Path, value: object, code: str, fact: str, user_error: Callable[..., Any]) -> None:
    with user_error(code) as caught:
        read_split_file(write(tmp_path, value))
    assert "list.json: " in str(caught.value)
    assert fact in str(caught.value)


def test_the_extensions_of_all_image_formats_are_removed() -> None:
    assert {without_extension(f"a.b{extension}") for extension in EXTENSIONS} == {"a.b"}
    assert {without_extension(f"a.b{extension.upper()}") for extension in EXTENSIONS} == {"a.b"}
    assert without_extension("x\\a.b.gif") == "x/a.b.gif"
