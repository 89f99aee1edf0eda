from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promise.data.splits import check_shares, draw_split, hold_out, read_grouping, read_split_file, straddling
from promise.runtime.errors import MissingFileError, UserError

NAMES = [f"frame{i:03d}" for i in range(100)]


def write(tmp_path: Path, value: object) -> Path:
    path = tmp_path / "list.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


# --- shares ---


def test_shares_are_met_exactly_without_groups() -> None:
    split = draw_split(NAMES, {}, (0.8, 0.1, 0.1), seed=1)
    assert Counter(split.values()) == {"train": 80, "val": 10, "test": 10}


def test_the_seed_decides_and_the_order_does_not() -> None:
    first = draw_split(NAMES, {}, (0.8, 0.1, 0.1), seed=1)
    assert draw_split(NAMES[::-1], {}, (0.8, 0.1, 0.1), seed=1) == first
    assert draw_split(NAMES, {}, (0.8, 0.1, 0.1), seed=2) != first


groupings = st.lists(st.integers(0, 15), min_size=3, max_size=80).map(
    lambda numbers: {f"n{i}": f"g{g}" for i, g in enumerate(numbers) if g}
)


@settings(max_examples=200, deadline=None)
@given(groupings, st.integers(0, 1000))
def test_a_group_never_straddles(groups: dict[str, str], seed: int) -> None:
    names = [f"n{i}" for i in range(max((int(n[1:]) for n in groups), default=2) + 1)]
    count = len({groups.get(n, n) for n in names})
    if count < 3:
        with pytest.raises(UserError, match="cannot fill 3 splits"):
            draw_split(names, groups, (0.7, 0.2, 0.1), seed=seed)
        return
    split = draw_split(names, groups, (0.7, 0.2, 0.1), seed=seed)
    assert split.keys() == set(names)
    assert set(split.values()) == {"train", "val", "test"}
    assert straddling(groups, split) == {}


@settings(max_examples=100, deadline=None)
@given(groupings, st.integers(0, 1000))
def test_what_is_held_out_is_whole_groups(groups: dict[str, str], seed: int) -> None:
    names = [*groups, "alone1", "alone2"]
    try:
        kept, aside = hold_out(names, groups, 0.1, seed=seed)
    except UserError:
        assert len(set(groups.values())) <= 1
        return
    assert sorted(kept + aside) == sorted(names)
    assert len(aside) >= 0.1 * len(names)
    assert straddling(groups, {**dict.fromkeys(kept, "train"), **dict.fromkeys(aside, "val")}) == {}


def test_groups_of_equal_size_meet_the_shares() -> None:
    groups = {name: name[:-1] for name in NAMES}
    split = draw_split(NAMES, groups, (0.6, 0.2, 0.2), seed=0)
    assert Counter(split.values()) == {"train": 60, "val": 20, "test": 20}


def test_a_share_of_nothing_is_an_empty_split() -> None:
    assert Counter(draw_split(NAMES, {}, (0.9, 0, 0.1), seed=0).values()) == {"train": 90, "test": 10}


@pytest.mark.parametrize("shares", [(0.5, 0.1, 0.1), (1.2, -0.1, -0.1), (0.5, 0.5)])
def test_shares_that_do_not_add_up_are_told(shares: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="adding up to 1; got "):
        check_shares(shares)


def test_straddling_counts() -> None:
    groups = {"a": "1", "b": "1", "c": "1", "d": "2", "e": "2"}
    split = {"a": "train", "b": "train", "c": "test", "d": "val"}
    assert straddling(groups, split) == {"1": {"train": 2, "test": 1}}


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
    ("text", "kind", "words"),
    [
        ("re:(", UserError, "not a regular expression"),
        ("absent.json", MissingFileError, "absent.json: no such file"),
    ],
)
def test_a_grouping_that_cannot_be_read(text: str, kind: type[UserError], words: str) -> None:
    with pytest.raises(kind, match=words):
        read_grouping(text)


def test_a_grouping_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wants an object"):
        read_grouping(str(write(tmp_path, ["a"])))
    with pytest.raises(UserError, match="not JSON"):
        read_grouping(str(write(tmp_path, "{")))


# --- published lists ---


def test_a_list_for_one_set_and_for_several(tmp_path: Path) -> None:
    one = {"train": ["a.jpg", "b"], "validation": ["c.d"]}
    expected = {"a": "train", "b": "train", "c.d": "val"}
    assert read_split_file(write(tmp_path, one)) == {None: expected}
    assert read_split_file(write(tmp_path, {"x": one, "y": {"test": ["1"]}})) == {"x": expected, "y": {"1": "test"}}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"train": ["a"], "test": ["a.png"]}, "1 names stand in two splits: a"),
        ({"trian": ["a"]}, "Did you mean 'train'"),
        ({"train": ["a"], "x": {"train": []}}, "wants lists of names"),
        ([1], "wants an object"),
        ({"x": {"train": "a"}}, "train is no list of names"),
    ],
)
def test_a_list_that_cannot_be_used(tmp_path: Path, value: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_split_file(write(tmp_path, value))
