"""Paired differences equal those of the tables; evaluations of other images are refused, other settings reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from promise.evaluation.compare import compare
from promise.evaluation.reader import read_evaluation
from promise.runtime.errors import MissingFileError

Write = Callable[..., Path]


def compared(a: Path, b: Path, **options: Any) -> Any:
    return compare(read_evaluation(a), read_evaluation(b), **options)


def test_the_numbers_follow_from_the_two_tables(write_evaluation: Write, tmp_path: Path) -> None:
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


def test_the_draws_of_an_image_count_once_with_their_mean(write_evaluation: Write, tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", draws=3)
    b = write_evaluation(tmp_path / "b", seed=1)
    paired = compared(a, b).results[0]
    rows = pd.read_csv(a / "per_image.csv")
    assert paired.images == 12
    assert paired.mean_a == pytest.approx(rows.groupby("name")["native_dice"].mean().mean())


def test_a_lower_error_is_better(write_evaluation: Write, tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", images={"etis": 25})
    b = write_evaluation(tmp_path / "b", images={"etis": 25}, better=-0.2, seed=1)
    dice, mae = compared(a, b, metrics=["native_dice", "native_mae"]).results
    assert dice.difference < 0 < mae.difference
    assert mae.losses == dice.losses > 12
    assert mae.lost[0].name == dice.lost[0].name


def test_an_evaluation_against_itself_is_not_tested(write_evaluation: Write, tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a")
    paired = compared(a, a).results[0]
    assert (paired.p, paired.difference, paired.interval) == (None, 0.0, (0.0, 0.0))
    assert paired.p_note == "all differences are 0: nothing to test"
    assert (paired.wins, paired.ties, paired.losses, paired.gained, paired.lost) == (0, 12, 0, (), ())


def test_images_with_nan_are_excluded_and_counted(write_evaluation: Write, tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a")

    def blank(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[2, "native_dice"] = np.nan
        return rows

    paired = compared(a, write_evaluation(tmp_path / "b", change=blank)).results[0]
    assert (paired.images, paired.left_out) == (11, 1)


@pytest.mark.parametrize(
    ("change", "code", "facts"),
    [
        (lambda rows: rows[3:], "unpaired-images", ["kvasir: 3 of 12", "image_000, image_001, image_002"]),
        (lambda rows: rows.assign(name=rows["name"] + "x"), "unpaired-images", ["12 of 24", "only in A", "only in B"]),
        (
            lambda rows: rows.assign(foreground_share=rows["foreground_share"] * 1.1),
            "different-ground-truth",
            ["12 of 12", ": image_000, image_001, image_002, image_003, image_004, …"],
        ),
        (lambda rows: rows.assign(empty_truth=1), "different-empty-ground-truth", ["12 of 12"]),
    ],
)
def test_other_images_and_other_ground_truths_are_refused(
    change, code: str, facts: list[str], write_evaluation: Write, tmp_path: Path, user_error
) -> None:
    a = write_evaluation(tmp_path / "a")
    b = write_evaluation(tmp_path / "b", change=change)
    with user_error(code) as caught:
        compared(a, b)
    for fact in (str(a), str(b), *facts):
        assert fact in str(caught.value)


def test_different_settings_are_reported(write_evaluation: Write, tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", images={"kvasir": 5, "etis": 4})
    b = write_evaluation(
        tmp_path / "b",
        images={"kvasir": 5},
        prompts="oracle",
        prompt_source="gt",
        postprocess={"reference": "open:5", "native": "none"},
        change=lambda rows: rows.drop(columns="foreground_share"),
    )
    comparison = compared(a, b)
    warnings = "\n".join(comparison.warnings)
    assert "different origins: auto in A, oracle in B" in warnings
    assert (
        "postprocessing differs: reference open:5, native close:7 in A, reference open:5, native none in B" in warnings
    )
    assert "only in A, excluded: etis" in warnings
    assert [notice.code for notice in comparison.notices] == [
        "different-prompt-origins",
        "different-postprocessing",
        "ground-truth-unchecked",
        "unpaired-data-sets",
    ]  # without different-prompt-sources, which follows from the origins
    assert len(comparison.warnings) == 4
    written = comparison.as_dict()
    assert written["warnings"] == comparison.warnings
    assert written["notices"][0] == {"code": "different-prompt-origins", "data": {"a": "auto", "b": "oracle"}}
    assert list(written) == ["difference", "level", "a", "b", "warnings", "notices", "results", "resamples", "seed"]


@pytest.mark.parametrize("stored", ["counts", "texts", "notices"])
def test_scored_images_that_a_net_was_trained_on_are_reported_once(
    stored: str, write_evaluation: Write, tmp_path: Path
) -> None:
    """The counts, the texts of earlier versions and the notices name the same fact."""
    a, b = write_evaluation(tmp_path / "a"), write_evaluation(tmp_path / "b")
    summary = json.loads((b / "summary.json").read_text())
    summary["datasets"]["kvasir"]["seen"] = {"train": 4, "val": 0}
    data = {"dataset": "kvasir", "split": "train", "images": 4, "of": 12}
    if stored == "texts":
        summary["warnings"] = [
            "kvasir: the net was trained on 4 of the 12 scored images; these scores are no test of it."
        ]
    if stored == "notices":
        summary["notices"] = [{"code": "scored-images-trained-on", "data": data}]
    (b / "summary.json").write_text(json.dumps(summary))
    comparison = compared(a, b)
    assert [notice.as_dict() for notice in comparison.notices] == [
        {"code": "scored-images-trained-on", "data": {"evaluation": "B", **data}}
    ]
    assert comparison.warnings == (
        "B: kvasir: the net was trained on 4 of the 12 scored images; the scores are biased.",
    )


def test_data_sets_and_metrics_must_exist(write_evaluation: Write, tmp_path: Path, user_error) -> None:
    a, b = write_evaluation(tmp_path / "a"), write_evaluation(tmp_path / "b", images={"etis": 3})
    with user_error("no-common-data-set") as caught:
        compared(a, b)
    assert f"{a} has kvasir" in str(caught.value)
    assert f"{b} has etis" in str(caught.value)
    with user_error("unknown-metric") as caught:
        compared(a, a, metrics=["native_dise"])
    assert "'native_dise'" in str(caught.value)
    assert "Did you mean 'native_dice'" in str(caught.value)
    with user_error("unknown-metric") as caught:
        compared(a, a, metrics=["truth_pixels"])
    assert "'truth_pixels'" in str(caught.value)


def test_a_metric_needs_numbers_in_both(write_evaluation: Write, tmp_path: Path, user_error) -> None:
    a = write_evaluation(tmp_path / "a")
    b = write_evaluation(tmp_path / "b", change=lambda rows: rows.assign(native_dice=np.nan))
    with user_error("no-scores") as caught:
        compared(a, b)
    assert "kvasir" in str(caught.value)
    assert "native_dice" in str(caught.value)
    assert "--metric" in str(caught.value)


def test_results_are_found_by_folder_run_and_file(write_evaluation: Write, tmp_path: Path, user_error) -> None:
    folder = write_evaluation(tmp_path / "run/eval")
    assert [read_evaluation(p).folder for p in (folder, folder.parent, folder / "summary.json")] == [folder] * 3
    folder.rename(tmp_path / "run/eval-gt")
    with user_error("missing-results") as caught:
        read_evaluation(tmp_path / "run")
    assert isinstance(caught.value, MissingFileError)
    for fact in (
        f"{tmp_path / 'run'} ",
        f"{tmp_path / 'run/eval'} ",
        f"Did you mean one of {tmp_path / 'run/eval-gt'}",
    ):
        assert fact in str(caught.value)
    with user_error("missing-results") as caught:
        read_evaluation(tmp_path / "absent")
    assert isinstance(caught.value, MissingFileError)
    assert str(tmp_path / "absent") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "code", "facts"),
    [
        (None, "missing-scores", []),
        ("", "invalid-scores", []),
        ("dataset,name\n", "missing-column", ["native_dice"]),
        ("dataset,name,native_dice\n", "no-scores", []),
        ("dataset,name,native_dice\nkvasir,a,high\n", "invalid-scores", ["native_dice"]),
        ("dataset,name,native_dice\nother,a,0.5\n", "mixed-evaluations", ["kvasir", "summary.json"]),
        ('dataset,name,native_dice\nkvasir,"a,0.5\n', "invalid-scores", []),
    ],
)
def test_a_damaged_table_is_one_clear_error(
    text, code: str, facts: list[str], write_evaluation: Write, tmp_path: Path, user_error
) -> None:
    folder = write_evaluation(tmp_path / "a")
    path = folder / "per_image.csv"
    path.unlink() if text is None else path.write_text(text)
    with user_error(code) as caught:
        read_evaluation(folder)
    for fact in (str(folder), "per_image.csv", *facts):
        assert fact in str(caught.value)


@pytest.mark.parametrize(
    ("datasets", "fact"), [({}, "no data set"), ({"kvasir": {"means": {"native": {}}}}, "kvasir has no means of ")]
)
def test_an_incomplete_summary_is_one_clear_error(
    datasets, fact: str, write_evaluation: Write, tmp_path: Path, user_error
) -> None:
    folder = write_evaluation(tmp_path / "a")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "datasets": datasets}))
    with user_error("incomplete-summary") as caught:
        read_evaluation(folder)
    assert str(folder / "summary.json") in str(caught.value)
    assert fact in str(caught.value)
    (folder / "summary.json").write_text("{}")
    with user_error("invalid-summary") as caught:
        read_evaluation(folder)
    assert str(folder / "summary.json") in str(caught.value)


def test_an_image_may_have_any_name(write_evaluation: Write, tmp_path: Path) -> None:
    names = ["nan", "NA", "007", "1e5", "a,b", "None"] * 2
    folder = write_evaluation(
        tmp_path / "a", change=lambda rows: rows.assign(name=[f"{n}{'x' * (i // 6)}" for i, n in enumerate(names)])
    )
    found = read_evaluation(folder).images().loc["kvasir"].index
    assert list(found) == ["nan", "NA", "007", "1e5", "a,b", "None", "nanx", "NAx", "007x", "1e5x", "a,bx", "Nonex"]
