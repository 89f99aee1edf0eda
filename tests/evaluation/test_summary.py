"""The text of results, including results of earlier versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from promise.evaluation.metrics import printed_columns
from promise.evaluation.summary import brief_text, results_text, tuning_text


def summary(**more: Any) -> dict[str, Any]:
    """A summary of a version that recorded no intervals."""
    binary = dict.fromkeys(printed_columns("mask"), 0.5)
    means = {"reference": binary, "native": binary, "soft": dict.fromkeys(printed_columns("map"), 0.25)}
    table = {"images": 3, "split": "test", "means": means, **more}
    return {
        "net": "IPS_GT",
        "prompts": "oracle",
        "prompt_source": "gt",
        "trained": True,
        "postprocess": {"reference": "open:5", "native": "none"},
        "datasets": {"set": table},
    }


def test_results_without_intervals_show_dashes() -> None:
    text = results_text([summary()])
    line = next(line for line in text.splitlines() if line.startswith("native "))
    assert line.split()[:3] == ["native", "IPS_GT", "oracle"]
    assert set(line.split()[3:]) == {"-"}


def test_the_brief_table_has_one_row_for_each_evaluation() -> None:
    figures = {"dice": [0.4, 0.6], "iou": [0.3, 0.5]}
    size = {"images": 1, "dice": None, "iou": None}
    newer = summary(
        intervals={"native": figures},
        draws={"deviation": None},
        misses={"images": 2},
        pooled={"dice": 0.75},
        by_size={"small": size},
        calibration={"error": 0.0625},
    )
    lines = brief_text([summary(), newer]).splitlines()
    assert len(lines) == 4
    assert lines[2].split() == ["set", "3", "IPS_GT", "oracle", "0.5000", "0.5000", "0.5000", "-"]
    assert lines[3].split() == [*lines[2].split()[:5], "[0.4000,", "0.6000]", "0.5000", "0.5000", "2", "of", "3"]


@pytest.mark.parametrize("deviation", [None, 0.0123])
def test_a_mean_has_its_interval_and_its_deviation(deviation: float | None) -> None:
    figures = {"dice": [0.4, 0.6], "iou": [None, None]}
    size = {"images": 1, "dice": None, "iou": None, "dice_interval": [None, None]}
    spread = None if deviation is None else {"native": {"dice": deviation, "iou": deviation}}
    text = results_text(
        [
            summary(
                intervals={"native": figures},
                draws={"deviation": spread},
                misses={"images": 2},
                pooled={"dice": 0.75},
                by_size={"small": size, "medium": size, "large": {**size, "dice": 0.5}},
                calibration={"error": 0.0625},
            )
        ]
    )
    between = "" if deviation is None else " ± 0.0123"
    for text_part in (f"0.5000{between} [0.4000, 0.6000]", f"0.5000{between} [-, -]", "0.7500", "2 of 3", "0.0625"):
        assert text_part in text
    assert "- (1) / - (1) / 0.500 (1)" in text


def test_a_search_always_shows_the_dice_without_postprocessing() -> None:
    ranked = [("open:5", 0.9), ("open:7", 0.8), ("fill", 0.7), ("none", 0.1)]
    text = tuning_text(ranked, images=7, ckpt=Path("a.safetensors"), shown=2)
    assert [line.split() for line in text.splitlines() if line.startswith(("open", "none", "fill"))][:3] == [
        ["open:5", "0.9000"],
        ["open:7", "0.8000"],
        ["none", "0.1000"],
    ]
    assert "4 candidates on 7 val images" in text
    assert "open:5 is stored in a.safetensors" in text
