"""The search tries the whole grid, on val rows only, and changes no weight."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from promise import checkpoint
from promise.cli.eval import main
from promise.data.images import content_hash
from promise.data.table import read_table
from promise.evaluation import tune_lesions
from promise.evaluation.config import EvalConfig
from promise.evaluation.evaluate import evaluate
from promise.evaluation.metrics import binary_metrics
from promise.evaluation.tune import GRID, TuneResult, dice_of_grid, rank, tune
from promise.evaluation.tune_lesions import choose
from promise.inference.postprocess import Postprocess
from promise.runtime.errors import ExistingRunError, UserError

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")


@pytest.fixture
def ckpt(build, phantoms: Path, tmp_path: Path) -> Path:
    net = build("APM_IPS_cross", num_points=4)
    seen = {"train": [], "val": [content_hash(row.image) for row in read_table(phantoms).split("val")]}
    metadata = checkpoint.Metadata("APM_IPS_cross", "tiny_vit", 4, net.sam.weights_sha256(), seed=5, seen=seen)
    path = tmp_path / "run" / "best.safetensors"
    checkpoint.save(net, path, metadata)
    return path


@pytest.fixture
def config(ckpt: Path, phantoms: Path) -> EvalConfig:
    return EvalConfig(
        ckpt=str(ckpt), split_csv=(str(phantoms),), workers=0, device="cpu", precision="fp32", quiet=True, gallery=0
    )


@pytest.fixture
def search(config: EvalConfig) -> Callable[..., TuneResult]:
    return lambda **other: tune(dataclasses.replace(config, **other))


def payload(path: Path) -> bytes:
    """The tensors of a safetensors file and their entries in its header."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return json.dumps({k: v for k, v in header.items() if k != "__metadata__"}).encode() + data[8 + length :]


def test_the_grid_has_all_combinations() -> None:
    assert len(GRID) == len(set(GRID)) == 17 * 11 * 4
    assert Postprocess() in GRID
    assert {p.threshold for p in GRID} == {round(0.05 * i, 2) for i in range(2, 19)}
    assert {(p.operation, p.kernel) for p in GRID if p.operation != "none"} == {
        (operation, kernel) for operation in ("open", "close") for kernel in (3, 5, 7, 9, 11)
    }


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.tuples(st.integers(1, 70), st.integers(1, 70)), st.sampled_from([0.0, 0.6, 1.0]))
def test_every_candidate_scores_like_postprocess(seed: int, shape: tuple[int, int], cut: float) -> None:
    generator = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(generator.random(shape), generator.uniform(0.5, 4))
    probability = np.clip((smooth - 0.5) * 6 + generator.uniform(0.1, 0.6), 0, 1).astype(np.float32)
    if seed % 2 and min(shape) > 20:
        probability[: shape[0] // 2] = 0  # the window has an edge inside the image
    target = probability > cut
    found = dice_of_grid(probability, target, empty_rule="one")
    for postprocess, dice in zip(GRID, found, strict=True):
        mask = postprocess(probability)
        expected = binary_metrics(mask, target)["dice"] if target.any() else float(not mask.any())
        assert dice == pytest.approx(expected, abs=1e-12), postprocess


def test_an_empty_ground_truth_follows_the_rule() -> None:
    probability, empty = np.full((9, 9), 0.55, np.float32), np.zeros((9, 9), bool)
    ones = dice_of_grid(probability, empty, empty_rule="one")
    assert [ones[GRID.index(Postprocess(threshold=t))] for t in (0.5, 0.6)] == [0, 1]
    assert np.isnan(dice_of_grid(probability, empty, empty_rule="skip")).all()


def test_ties_go_to_the_simplest() -> None:
    dice = np.full(len(GRID), 0.8)
    assert rank(dice)[0] == (Postprocess(), 0.8)
    dice[GRID.index(Postprocess("open", 7, 0.45))] = 0.80004
    assert rank(dice)[0][0] == Postprocess()
    dice[GRID.index(Postprocess("open", 7, 0.45))] = 0.81
    dice[GRID.index(Postprocess("open", 5, 0.45))] = 0.80998
    dice[GRID.index(Postprocess("open", 3, 0.45, fill=True))] = 0.81
    assert rank(dice)[0] == (Postprocess("open", 5, 0.45), 0.80998)
    assert rank(dice)[1][1] == 0.81
    assert len(rank(dice)) == len(GRID)


def test_a_choice_on_few_images_is_reported_as_uncertain(search, caplog) -> None:
    search()
    assert "only 3 images to choose on" in caplog.text


def test_the_winner_is_stored_and_no_weight_changes(search, ckpt: Path) -> None:
    before, then = payload(ckpt), checkpoint.read_metadata(ckpt)
    result = search()
    assert payload(ckpt) == before
    now = checkpoint.read_metadata(ckpt)
    assert now.postprocess == str(result.winner)
    assert now.tuning["dice"] == result.ranked[0][1] >= result.plain == now.tuning["dice_without"]
    assert (now.tuning["images"], now.tuning["split"], now.tuning["prompt_source"]) == (3, "val", "auto")
    assert sorted(now.seen["tune"]) == sorted(then.seen["val"])
    assert dataclasses.replace(now, postprocess=None, tuning={}, seen=then.seen) == then
    with (ckpt.parent / "tune/tune.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["postprocess"] for row in rows[:1]] == [str(result.winner)]
    assert {Postprocess.parse(row["postprocess"]) for row in rows} == {*GRID}
    assert max(float(row["dice"]) for row in rows) <= result.ranked[0][1] + 5e-5


def test_scores_equal_those_of_an_evaluation(search, config: EvalConfig, tmp_path: Path) -> None:
    """Every candidate is scored as an evaluation with it would."""
    ranked = dict(search(prompts="gt").ranked)
    for text in ("none", "open:5,threshold:0.45", "close:3,threshold:0.9,fill,largest"):
        summary = evaluate(
            dataclasses.replace(
                config, prompts="gt", split="val", postprocess=text, output=str(tmp_path / text.replace(":", "-"))
            )
        ).summary
        dice = summary["datasets"]["split"]["means"]["native"]["dice"]
        assert ranked[Postprocess.parse(text)] == pytest.approx(dice, abs=1e-6)


def test_an_evaluation_uses_the_tuned_postprocessing_by_default(search, ckpt, config, tmp_path, caplog) -> None:
    stored = checkpoint.read_metadata(ckpt)
    search()
    tuned = checkpoint.read_metadata(ckpt)
    checkpoint.rewrite_metadata(ckpt, dataclasses.replace(tuned, postprocess="close:7,threshold:0.3"))

    def summary(name: str, **other) -> dict:
        return evaluate(dataclasses.replace(config, output=str(tmp_path / name), **other)).summary

    own, plain, flag = summary("own"), summary("default", postprocess="default"), summary("none", postprocess="none")
    assert (own["postprocess_source"], plain["postprocess_source"], flag["postprocess_source"]) == (
        "checkpoint",
        "default",
        "flag",
    )
    assert own["postprocess"] == {"reference": "open:5", "native": "close:7,threshold:0.3"}
    assert plain["postprocess"] == {"reference": "open:5", "native": "none"}
    assert flag["postprocess"] == {"reference": "none", "native": "none"}
    means = [s["datasets"]["split"]["means"] for s in (own, plain, flag)]
    assert means[0]["reference"] == means[1]["reference"]
    assert means[0]["native"] != means[1]["native"] == means[2]["native"]
    assert means[0]["soft"] == means[1]["soft"]
    caplog.clear()
    on_val = summary("val", split="val")
    assert on_val["datasets"]["split"]["seen"] == {"train": 0, "val": 3, "tune": 3}
    data = {"dataset": "split", "split": "tune", "images": 3, "of": 3}
    assert {"code": "scored-images-tuned-on", "data": data} in on_val["notices"]
    assert any("the postprocessing was chosen on 3 of the 3" in text for text in on_val["warnings"])
    assert "the postprocessing was chosen on 3 of the 3" in caplog.text
    unused = summary("val-none", split="val", postprocess="none")
    assert not any("postprocessing" in text for text in unused["warnings"])
    assert "scored-images-tuned-on" not in {notice["code"] for notice in unused["notices"]}
    text = "was chosen with auto prompts, not with gt prompts"
    assert text not in caplog.text
    other = summary("gt", prompts="gt")
    assert text in caplog.text
    data = {"postprocess": "close:7,threshold:0.3", "tuned": "auto", "source": "gt"}
    assert other["notices"] == [{"code": "tuned-with-other-prompts", "data": data}]
    assert len(other["warnings"]) == 1
    assert stored.postprocess is None


def test_no_test_or_train_row_is_opened(search, ckpt: Path, phantoms: Path, tmp_path: Path) -> None:
    """The files of other rows are invalid, and opening one is recorded."""
    expected = search().ranked
    copy = tmp_path / "copy"
    shutil.copytree(phantoms.parent, copy)
    forbidden = {
        str(path.resolve())
        for split in ("train", "test")
        for row in read_table(copy / phantoms.name).split(split)
        for path in (row.image, row.mask)
    }
    for path in forbidden:
        Path(path).write_bytes(b"not an image")
    with pytest.raises(UserError):
        evaluate(EvalConfig(ckpt=str(ckpt), split_csv=(str(copy / phantoms.name),), quiet=True, device="cpu"))
    opened: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple) -> None:
        if not watching or event != "open" or not isinstance(arguments[0], str):
            return
        if str(Path(arguments[0]).resolve()) in forbidden:
            opened.append(arguments[0])

    sys.addaudithook(watch)
    try:
        read_table(copy / phantoms.name).split("test")[0].image.read_bytes()
        assert len(opened) == 1  # the hook works
        opened.clear()
        found = search(split_csv=(str(copy / phantoms.name),), output=str(tmp_path / "again")).ranked
    finally:
        watching = False
    assert opened == []
    assert found == expected


@pytest.mark.parametrize(
    ("other", "codes", "facts"),
    [
        ({"split": "test"}, ["tuning-split"], ["val rows", "--split test"]),
        ({"postprocess": "open:5"}, ["tuning-with-postprocess"], ["--tune-postprocess and --postprocess"]),
        ({"ckpt": None, "net": "SAM"}, ["tuning-without-checkpoint"], [".safetensors", "--ckpt"]),
        ({"prompts": "gt", "prompt_seeds": 3}, ["tuning-with-draws"], ["--prompt-seeds"]),
        ({"split": "test", "batch_size": 0}, ["tuning-split", "number-too-small"], ["--split test", "--batch-size"]),
    ],
)
def test_settings_that_exclude_tuning_are_refused(other, codes, facts, search, ckpt: Path, user_error) -> None:
    before = ckpt.read_bytes()
    with user_error(*codes) as caught:
        search(**other)
    for fact in facts:
        assert fact in str(caught.value)
    assert ckpt.read_bytes() == before


def test_a_search_is_replaced_only_with_overwrite(search) -> None:
    first = search()
    with pytest.raises(ExistingRunError, match=r"tune\.csv"):
        search()
    assert search(overwrite=True).ranked == first.ranked


def test_training_images_among_the_val_rows_are_reported(search, phantoms: Path, ckpt: Path, caplog) -> None:
    stored = checkpoint.read_metadata(ckpt)
    checkpoint.rewrite_metadata(ckpt, dataclasses.replace(stored, seen={"train": stored.seen["val"][:2]}))
    search()
    assert "validation rows: the net was trained on 2 of the 3 scored images" in caplog.text


def test_the_command_prints_the_best_candidates_and_none(ckpt: Path, phantoms: Path, capsys) -> None:
    common = ["--split-csv", str(phantoms), "--workers", "0", "--device", "cpu", "--quiet", "--ckpt", str(ckpt)]
    assert main([*common, "--tune-postprocess"]) == 0
    printed = capsys.readouterr().out
    stored = checkpoint.read_metadata(ckpt)
    assert "748 candidates on 3 val images" in printed
    assert f"{stored.postprocess} is stored in {ckpt}" in printed
    assert any(line.split()[:1] == ["none"] for line in printed.splitlines())
    assert f"{stored.tuning['dice']:.4f}" in printed


# --- nets that find lesions ----------------------------------------------------------------------


def test_lesion_settings_are_chosen_by_dice_and_the_strict_ones_with_a_loss() -> None:
    values = (0.0, 0.5, 0.9)
    assert choose("fuse", values, (0.8, 0.80004, 0.7), current=0.0) == 0.0  # a tie changes nothing
    assert choose("fuse", values, (0.8, 0.8002, 0.7), current=0.0) == 0.5
    assert choose("min_probability", values, (0.8002, 0.8, 0.7), current=0.0) == 0.5  # the largest within 0.0005
    assert choose("min_probability", values, (0.8006, 0.8, 0.7), current=0.9) == 0.0
    assert choose("min_score", values, (0.8002, 0.8, 0.7), current=0.0) == 0.0  # small lesions are kept


def test_lesion_settings_are_tuned_and_stored(
    save_lesion_net, phantoms: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    steps = (("threshold", (0.5, 0.99)), ("min_score", (0.0, 0.01)))
    monkeypatch.setattr(tune_lesions, "STEPS", steps)
    path = save_lesion_net(tmp_path / "best.safetensors", max_lesions=2)
    before, weights = checkpoint.read_metadata(path).lesions, payload(path)
    flags = [
        "--ckpt",
        str(path),
        "--split-csv",
        str(phantoms),
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--workers",
        "0",
    ]
    assert main([*flags, "--tune-postprocess", "--quiet"]) == 0
    with (tmp_path / "tune/tune_lesions.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["setting"], float(line["value"])) for line in lines] == [
        ("threshold", 0.5), ("threshold", 0.9), ("threshold", 0.99),
        ("min_score", 0.0), ("min_score", 0.01), ("min_score", 0.025),
    ]  # fmt: skip
    chosen = {line["setting"]: float(line["value"]) for line in lines if line["chosen"] == "1"}
    now = checkpoint.read_metadata(path)
    assert now.lesions == {**before, **chosen}
    assert payload(path) == weights
    assert f"threshold={chosen['threshold']:g} (Dice" in capsys.readouterr().out
    # The Dice of the last step is that of an evaluation of the rows, without postprocessing.
    assert main([*flags, "--split", "val", "--postprocess", "none", "--gallery", "0", "--quiet"]) == 0
    (entry,) = json.loads((tmp_path / "eval/summary.json").read_text())["datasets"].values()
    last = next(line for line in lines if line["setting"] == "min_score" and line["chosen"] == "1")
    assert float(last["dice"]) == pytest.approx(entry["means"]["native"]["dice"], abs=1e-6)
    # Prompts of another source do not depend on the map.
    assert main([*flags, "--tune-postprocess", "--prompts", "gt-box", "--overwrite", "--quiet"]) == 0
    assert checkpoint.read_metadata(path).lesions == now.lesions
