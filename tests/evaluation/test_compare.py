"""Paired differences are those of the table; what cannot be paired is refused, what should not be is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from promise.evaluation.compare import compare
from promise.evaluation.reader import read_evaluation
from promise.runtime.errors import MissingFileError, UserError

Write = Callable[..., Path]


def compared(a: Path, b: Path, **options: Any) -> Any:
    return compare(read_evaluation(a), read_evaluation(b), **options)


def test_numbers_are_those_of_the_two_tables(write_evaluation: Write, tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", images={"kvasir": 30, "etis": 20})
    b = write_evaluation(tmp_path / "b", images={"etis": 20, "kvasir": 30}, better=0.05, seed=1)
    result = compared(a, b, top=3)
    assert [(r.dataset, r.metric, r.images) for r in result.results] == [
        ("kvasir", "native_dice", 30),
        ("etis", "native_dice", 20),
    ]
    for paired in result.results:
        first, second = (
            rows[rows["dataset"] == paired.dataset].set_index("name")["native_dice"]
            for rows in (pd.read_csv(a / "per_image.csv"), pd.read_csv(b / "per_image.csv"))
        )
        difference = second - first
        assert paired.mean_a == pytest.approx(first.mean())
        assert paired.mean_b == pytest.approx(second.mean())
        assert paired.difference == pytest.approx(difference.mean())
        assert paired.p == pytest.approx(stats.wilcoxon(difference).pvalue)
        assert (paired.wins, paired.losses) == ((difference > 0).sum(), (difference < 0).sum())
        assert paired.wins + paired.ties + paired.losses == paired.images
        assert [c.name for c in paired.gained] == list(difference.sort_values(ascending=False).index[:3])
        assert [c.name for c in paired.lost] == [
            name for name in difference.sort_values().index[:3] if difference[name] < 0
        ]
        assert paired.lost[0].difference == pytest.approx(difference.min())
        assert paired.interval[0] < paired.difference < paired.interval[1]
    assert result.warnings == ()


def test_draws_count_once_with_their_mean(write_evaluation: Write, tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", draws=3)
    b = write_evaluation(tmp_path / "b", seed=1)
    paired = compared(a, b).results[0]
    rows = pd.read_csv(a / "per_image.csv")
    assert paired.images == 12
    assert paired.mean_a == pytest.approx(rows.groupby("name")["native_dice"].mean().mean())


def test_less_error_is_better(write_evaluation: Write, tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", images={"etis": 25})
    b = write_evaluation(tmp_path / "b", images={"etis": 25}, better=-0.2, seed=1)
    dice, mae = compared(a, b, metrics=["native_dice", "native_mae"]).results
    assert dice.difference < 0 < mae.difference
    assert mae.losses == dice.losses > 12
    assert mae.lost[0].name == dice.lost[0].name


def test_against_itself_there_is_nothing_to_test(write_evaluation: Write, tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a")
    paired = compared(a, a).results[0]
    assert (paired.p, paired.difference, paired.interval) == (None, 0.0, (0.0, 0.0))
    assert paired.p_note == "all differences are 0: nothing to test"
    assert (paired.wins, paired.ties, paired.losses, paired.gained, paired.lost) == (0, 12, 0, (), ())


def test_rows_without_a_number_are_left_out_and_counted(write_evaluation: Write, tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a")

    def blank(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[2, "native_dice"] = np.nan
        return rows

    paired = compared(a, write_evaluation(tmp_path / "b", change=blank)).results[0]
    assert (paired.images, paired.left_out) == (11, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[3:], "kvasir: 3 of 12 images only in A: image_000, image_001, image_002"),
        (lambda rows: rows.assign(name=rows["name"] + "x"), "12 of 24 images only in A"),
        (
            lambda rows: rows.assign(foreground_share=rows["foreground_share"] * 1.1),
            "12 of 12 images have a truth of another area: image_000, image_001, image_002, image_003, image_004, …",
        ),
        (lambda rows: rows.assign(empty_truth=1), "12 of 12 images have an empty truth in one"),
    ],
)
def test_other_images_and_other_truths_are_refused(change, words, write_evaluation: Write, tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a")
    b = write_evaluation(tmp_path / "b", change=change)
    with pytest.raises(UserError, match="cannot be paired") as caught:
        compared(a, b)
    assert words in str(caught.value)


def test_what_makes_them_less_than_comparable_is_told(write_evaluation: Write, tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", images={"kvasir": 5, "etis": 4})
    b = write_evaluation(
        tmp_path / "b",
        images={"kvasir": 5},
        prompts="oracle",
        prompt_source="gt",
        postprocess={"reference": "open:5", "native": "none"},
        change=lambda rows: rows.drop(columns="foreground_share"),
    )
    warnings = "\n".join(compared(a, b).warnings)
    assert "different origins: auto in A, oracle in B" in warnings
    assert (
        "postprocessing differs: reference open:5, native close:7 in A, reference open:5, native none in B" in warnings
    )
    assert "only in A, and left out: etis" in warnings
    assert "that the truths are the same was not checked" in warnings
    assert "made differently" not in warnings  # it follows from the origins


def test_a_net_that_saw_the_images_is_told(write_evaluation: Write, tmp_path: Path) -> None:
    import json

    a, b = write_evaluation(tmp_path / "a"), write_evaluation(tmp_path / "b")
    summary = json.loads((b / "summary.json").read_text())
    summary["datasets"]["kvasir"]["seen"] = {"train": 4, "val": 0}
    (b / "summary.json").write_text(json.dumps(summary))
    assert compared(a, b).warnings == (
        "kvasir: B was made with 4 images for train that are scored here; its scores are no test",
    )


def test_data_sets_and_metrics_must_be_there(write_evaluation: Write, tmp_path: Path) -> None:
    a, b = write_evaluation(tmp_path / "a"), write_evaluation(tmp_path / "b", images={"etis": 3})
    with pytest.raises(UserError, match=r"share no data set: .*a has kvasir, .*b has etis"):
        compared(a, b)
    with pytest.raises(UserError, match=r"unknown metric 'native_dise'\. Did you mean 'native_dice'"):
        compared(a, a, metrics=["native_dise"])
    with pytest.raises(UserError, match="unknown metric 'truth_pixels'"):
        compared(a, a, metrics=["truth_pixels"])


def test_results_are_found_by_folder_run_and_file(write_evaluation: Write, tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "run/eval")
    assert [read_evaluation(p).folder for p in (folder, folder.parent, folder / "summary.json")] == [folder] * 3
    folder.rename(tmp_path / "run/eval-gt")
    with pytest.raises(MissingFileError, match=r"neither .*run nor .*Did you mean one of .*run/eval-gt"):
        read_evaluation(tmp_path / "run")
    with pytest.raises(MissingFileError, match="no results at"):
        read_evaluation(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is not there"),
        ("", "cannot be read"),
        ("dataset,name\n", "lacks the column native_dice"),
        ("dataset,name,native_dice\n", "no line"),
        ("dataset,name,native_dice\nkvasir,a,high\n", "column native_dice holds something other than numbers"),
        ("dataset,name,native_dice\nother,a,0.5\n", "tells of kvasir, but per_image.csv has no line of it"),
        ('dataset,name,native_dice\nkvasir,"a,0.5\n', "cannot be read"),
    ],
)
def test_a_damaged_table_is_one_clear_error(text, words: str, write_evaluation: Write, tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "a")
    path = folder / "per_image.csv"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_evaluation(folder)


def test_an_image_may_be_called_anything(write_evaluation: Write, tmp_path: Path) -> None:
    names = ["nan", "NA", "007", "1e5", "a,b", "None"] * 2
    folder = write_evaluation(
        tmp_path / "a", change=lambda rows: rows.assign(name=[f"{n}{'x' * (i // 6)}" for i, n in enumerate(names)])
    )
    found = read_evaluation(folder).images().loc["kvasir"].index
    assert list(found) == ["nan", "NA", "007", "1e5", "a,b", "None", "nanx", "NAx", "007x", "1e5x", "a,bx", "Nonex"]
