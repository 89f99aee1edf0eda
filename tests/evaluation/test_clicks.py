"""Simulated clicks: the protocol, the numbers of clicks, and what an evaluation writes."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from promise import checkpoint
from promise.cli.eval import main
from promise.data.masks import read_mask
from promise.data.table import read_table
from promise.evaluation.clicks import ClickResult, _summarise, correct_with_clicks, next_click
from promise.evaluation.config import EvalConfig
from promise.evaluation.evaluate import evaluate
from promise.evaluation.scoring import native_dice, score
from promise.inference.correction import Click
from promise.inference.postprocess import Postprocess

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")


def rectangle(x0: int, y0: int, x1: int, y1: int, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def fill(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A SAM that fills each box."""
    masks = [rectangle(*np.clip(np.rint(box), 0, 63).astype(int)) for box in boxes]
    return np.where(masks, 4.0, -4.0).astype(np.float32), np.ones(len(boxes), np.float32)


def test_a_click_marks_the_largest_error() -> None:
    target = rectangle(10, 10, 30, 30)
    assert next_click(target, target) is None
    assert next_click(rectangle(40, 40, 44, 44), target) == Click(20, 20, True)
    assert next_click(target | rectangle(37, 41, 59, 63), target) == Click(48, 52, False)


def test_clicks_are_in_pixels_of_the_ground_truth() -> None:
    target = rectangle(40, 30, 100, 70, shape=(90, 128))  # 128 wide, 90 high
    result = correct_with_clicks(
        np.full((64, 64), -4, np.float32), target, fill, clicks=2, side=64, postprocess=Postprocess()
    )
    first = result.clicks[0]
    assert target[int(first.y), int(first.x)]
    assert first.y == 50
    assert first.positive
    assert result.dice[0] == 0 < result.dice[1] < result.dice[2]


def test_a_perfect_mask_needs_no_click() -> None:
    target = rectangle(10, 10, 30, 30)
    logits = np.where(target, 4, -4).astype(np.float32)
    result = correct_with_clicks(logits, target, fill, clicks=3, side=64, postprocess=Postprocess())
    assert result.dice == [1, 1, 1, 1]
    assert result.clicks == []
    assert result.count(0.9) == (0, True)


def test_the_correction_sees_the_clicks_and_not_the_ground_truth() -> None:
    """Two ground truths with the same first click have the same mask after it."""
    logits = np.full((64, 64), -4, np.float32)
    seen: list[list[np.ndarray]] = []

    def watch(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen[-1].append(boxes)
        return fill(boxes)

    for half in (4, 10):
        seen.append([])
        target = rectangle(30 - half, 30 - half, 30 + half, 30 + half)
        result = correct_with_clicks(logits, target, watch, clicks=1, side=64, postprocess=Postprocess())
        assert result.clicks == [Click(30, 30, True)]
    for one, other in zip(*seen, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_empty_ground_truth_follows_its_rule() -> None:
    target, logits = np.zeros((64, 64), bool), np.where(rectangle(5, 5, 20, 20), 4, -4).astype(np.float32)

    def run(rule: str) -> list[float]:
        options = {"clicks": 1, "side": 64, "postprocess": Postprocess(), "empty_rule": rule}
        return correct_with_clicks(logits, target, fill, **options).dice

    assert run("one") == [0, 1]
    assert run("zero") == [0, 0]
    assert all(map(math.isnan, run("skip")))


def test_native_dice_is_that_of_the_table() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(64, 64)).astype(np.float32)
    for target in (rectangle(3, 3, 40, 20, shape=(80, 50)), np.zeros((80, 50), bool)):
        scored = score(logits, target)
        assert native_dice(scored.mask, target) == pytest.approx(scored.scores["native"]["dice"], abs=1e-12)


def test_numbers_of_clicks() -> None:
    results = [
        ClickResult([0.95, 0.9, 0.95], []),  # 0 and 0
        ClickResult([0.5, 0.86, 0.91], []),  # 1 and 2
        ClickResult([0.1, 0.2, 0.3], []),  # neither: 2 and 2
        ClickResult([0.8, 0.9, 0.7], []),  # 1 and 1: it is reached once
        ClickResult([math.nan] * 3, []),  # excluded
    ]
    assert [one.count(0.85) for one in results[:4]] == [(0, True), (1, True), (2, False), (1, True)]
    summary = _summarise(results)
    assert summary["dice"] == pytest.approx([2.35 / 4, 2.86 / 4, 2.86 / 4])
    assert summary["lowered"] == [0.25, 0.25]
    assert summary["noc"] == {"0.85": {"mean": 1.0, "unreached": 0.25}, "0.9": {"mean": 1.25, "unreached": 0.25}}


@pytest.fixture(scope="module")
def ckpt(build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = build("APM_IPS_cross", num_points=4)
    metadata = checkpoint.Metadata("APM_IPS_cross", "tiny_vit", 4, net.sam.weights_sha256(), seed=5, epoch=3)
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    checkpoint.save(net, path, metadata)
    return path


def run(ckpt: Path, phantoms: Path, output: Path, **other: object) -> dict[str, object]:
    common = {"workers": 0, "device": "cpu", "precision": "fp32", "quiet": True, "gallery": 0}
    config = {**common, "ckpt": str(ckpt), "split_csv": (str(phantoms),), "output": str(output), **other}
    return evaluate(EvalConfig(**config)).summary  # type: ignore[arg-type]


def lines(folder: Path, name: str = "clicks.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_an_evaluation_reports_clicks(ckpt: Path, phantoms: Path, tmp_path: Path, monkeypatch) -> None:
    from promise.models.promise import Promise

    encoded = []
    encode = Promise.encode
    monkeypatch.setattr(Promise, "encode", lambda net, image: encoded.append(len(image)) or encode(net, image))
    plain = run(ckpt, phantoms, tmp_path / "plain", cache="off")
    assert "clicks" not in plain
    assert not (tmp_path / "plain/clicks.csv").exists()
    encoded.clear()
    run(ckpt, phantoms, tmp_path / "eval", cache="off", clicks=2)
    assert sum(encoded) == 3  # test rows: each image once
    summary = json.loads((tmp_path / "eval/summary.json").read_text())
    entry = summary["datasets"]["split"]["clicks"]
    assert summary["clicks"]["prompts"] == entry["prompts"] == "oracle-corrected"
    assert (summary["prompts"], entry["start"], entry["clicks"]) == ("auto", "auto", 2)
    # The corrected scores do not enter the automatic ones, and start from them.
    without = json.loads((tmp_path / "plain/summary.json").read_text())
    assert summary["datasets"]["split"]["means"] == without["datasets"]["split"]["means"]
    assert entry["net"]["dice"][0] == pytest.approx(summary["datasets"]["split"]["means"]["native"]["dice"])
    assert entry["frozen_sam"]["dice"][0] == 0
    rows = lines(tmp_path / "eval")
    names = [row["name"] for row in lines(tmp_path / "eval", "per_image.csv")]
    assert [row["name"] for row in rows] == [name for name in names for _ in range(2)]
    assert [row["net"] for row in rows] == ["APM_IPS_cross", "SAM"] * 3
    assert {row["prompts"] for row in rows} == {"oracle-corrected"}
    for number in range(3):
        values = [float(row[f"dice_{number}"]) for row in rows if row["net"] == "SAM"]
        assert np.mean(values) == pytest.approx(entry["frozen_sam"]["dice"][number])
    masks = {row.name: read_mask(row.mask) for row in read_table(phantoms, data_root=None).split("test")}
    for row in rows:
        if row["net"] == "SAM":  # from an empty mask: the first click is inside the lesion
            x, y, sign = row["clicks"].split("; ")[0].split(" ")
            assert sign == "+"
            assert masks[row["name"]][int(y), int(x)]


def test_without_prompts_both_would_be_the_same(ckpt: Path, phantoms: Path, tmp_path: Path) -> None:
    summary = run(ckpt, phantoms, tmp_path / "eval", prompts="none", clicks=1)
    entry = summary["datasets"]["split"]["clicks"]  # type: ignore[index]
    assert (entry["start"], entry["frozen_sam"]) == ("empty mask", None)
    assert entry["net"]["dice"][0] == 0
    assert entry["net"]["dice"][1] > 0
    again = run(ckpt, phantoms, tmp_path / "eval", overwrite=True)
    assert "clicks" not in again
    assert not (tmp_path / "eval/clicks.csv").exists()


def test_the_first_draw_of_any_source_is_corrected(ckpt: Path, phantoms: Path, tmp_path: Path) -> None:
    options = {"prompts": "gt", "gt_points": "2+1", "gt_box": True, "prompt_seeds": 2, "batch_size": 2}
    summary = run(ckpt, phantoms, tmp_path / "eval", clicks=1, **options)
    scores = [row for row in lines(tmp_path / "eval", "per_image.csv") if row["draw"] == "0"]
    rows = [row for row in lines(tmp_path / "eval") if row["net"] != "SAM"]
    assert [float(row["dice_0"]) for row in rows] == pytest.approx([float(row["native_dice"]) for row in scores])
    assert summary["datasets"]["split"]["clicks"]["start"] == "oracle"  # type: ignore[index]


def test_a_negative_number_is_an_error(ckpt: Path, phantoms: Path, tmp_path: Path, user_error) -> None:
    with user_error("number-too-small"):
        run(ckpt, phantoms, tmp_path / "eval", clicks=-1)


def test_the_command_prints_the_curve(ckpt: Path, phantoms: Path, tmp_path: Path, capsys) -> None:
    flags = ["--split-csv", str(phantoms), "--workers", "0", "--device", "cpu", "--quiet", "--ckpt", str(ckpt)]
    assert main([*flags, "--clicks", "2", "--output", str(tmp_path / "eval")]) == 0
    printed = capsys.readouterr().out
    entry = json.loads((tmp_path / "eval/summary.json").read_text())["datasets"]["split"]["clicks"]
    assert "2 clicks" in printed
    assert "NoC 0.85" in printed
    assert "oracle-corrected" in printed
    assert f"{entry['frozen_sam']['dice'][2]:.4f}" in printed
    assert "not of an automatic one" in printed
