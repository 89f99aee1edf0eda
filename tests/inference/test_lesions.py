"""Nets that find lesions: several prompt sets per image or none, from the net, from a file and from Python."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import promise
from promise.data.masks import read_mask
from promise.evaluation.clicks import correct_with_clicks
from promise.evaluation.config import EvalConfig
from promise.evaluation.evaluate import evaluate
from promise.evaluation.scoring import native_dice
from promise.inference.config import PredictConfig
from promise.inference.correction import box_decoder
from promise.inference.predict import predict
from promise.inference.segmentation import Segmentation
from promise.inference.segmenter import Segmenter
from promise.inference.session import Session
from promise.models.quality import FEATURES, QualityEstimate

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")
CPU = {"device": "cpu", "precision": "fp32"}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"prompts": "points"},
    {"prompts": "box+points", "mask_prompt": True, "output": "multimask", "fuse": 0.25},
]


@pytest.fixture(scope="module")
def ckpt(save_lesion_net: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lesion_net(tmp_path_factory.mktemp("run") / "best.safetensors")


@pytest.fixture(scope="module")
def segmenter(ckpt: Path) -> Segmenter:
    return promise.load(ckpt, **CPU)


@pytest.fixture(scope="module")
def paths(phantoms: Path) -> list[Path]:
    return sorted((phantoms.parent / "images").glob("*.png"))


@pytest.fixture(scope="module")
def found(segmenter: Segmenter, paths: list[Path]) -> list[Segmentation]:
    return segmenter.predict(paths)


def session_with(lesions: int, segmenter: Segmenter, found: list[Segmentation], paths: list[Path]) -> Session:
    return segmenter.session(paths[[one.lesions for one in found].index(lesions)])


def same(a: Segmentation, b: Segmentation) -> bool:
    names = ("mask", "probability", "logits", "points", "labels", "lesion", "boxes", "ious")
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names) and a.iou == b.iou


# --- the net's own prompts -----------------------------------------------------------------------


def test_a_net_finds_several_lesions_or_none(found: list[Segmentation]) -> None:
    assert set(Counter(one.lesions for one in found)) == {0, 1, 2, 3}
    for one in found:
        assert one.boxes.shape == (one.lesions, 4)
        assert one.points.shape == (0, 2)
        assert one.prompts.placed_label.tolist() == [1, 1, 0, 0] * one.lesions
        assert (one.box is None) == (one.lesions != 1)
        assert one.mask.any() == (one.lesions > 0)
        assert one.mask_index is one.choice is None  # SAM's single mask
        assert one.prompts.fuse
        if not one.lesions:
            assert one.iou == 0
            assert one.contours() == []


def test_points_name_their_lesion(save_lesion_net: Callable[..., Path], paths: list[Path], tmp_path: Path) -> None:
    path = save_lesion_net(tmp_path / "points.safetensors", prompts="box+points")
    for one in promise.load(path, **CPU).predict(paths):
        assert one.lesion.tolist() == [number for number in range(one.lesions) for _ in range(4)]
        assert one.labels.tolist() == [1, 1, 0, 0] * one.lesions
        for number, box in enumerate(one.boxes):
            inside = one.points[(one.lesion == number) & (one.labels == 1)]
            assert ((inside >= box[:2] - 0.5) & (inside <= box[2:] + 0.5)).all()


def test_a_mask_does_not_depend_on_the_other_lesions_of_the_batch(
    segmenter: Segmenter, found: list[Segmentation], paths: list[Path]
) -> None:
    for one, path in zip(found, paths, strict=True):
        np.testing.assert_allclose(segmenter.session(path).automatic().logits, one.logits, atol=1e-4)


# --- prompts of a session ------------------------------------------------------------------------


@pytest.mark.parametrize("lesions", [0, 1, 2, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_nets_own_prompts_give_its_own_mask(
    settings: dict[str, Any],
    lesions: int,
    save_lesion_net: Callable[..., Path],
    found: list[Segmentation],
    paths: list[Path],
    tmp_path: Path,
) -> None:
    segmenter = promise.load(save_lesion_net(tmp_path / "a.safetensors", **settings), **CPU)
    session = session_with(lesions, segmenter, found, paths)
    auto = session.automatic()
    assert auto.lesions == lesions
    again = session.predict(lesions=auto.prompts.sets, fuse=True)
    assert same(again, auto)
    assert again.mask_index == auto.mask_index == (0 if settings.get("output") == "multimask" else None)
    if lesions:
        assert not same(session.predict(lesions=auto.prompts.sets), auto)
        assert same(session.predict(lesions=auto.prompts.sets, mask_index=auto.mask_index, fuse=True), auto)


def test_the_mask_of_several_lesions_is_the_union_of_their_masks(
    segmenter: Segmenter, found: list[Segmentation], paths: list[Path]
) -> None:
    session = session_with(2, segmenter, found, paths)
    lesions = [
        {"box": [4, 5, 30, 40]},
        {"box": np.array([34, 5, 60, 40])},
        {"points": [[20, 50]]},
        {"points": [[50, 50], [10, 10]], "labels": [1, 0], "box": [40, 44, 60, 60]},
        {"box": [1, 1, 9, 9], "mask": session.automatic().logits},
    ]
    singles = [session.predict(lesions=[one]) for one in lesions]
    together = session.predict(lesions=lesions)
    np.testing.assert_allclose(together.logits, np.max([one.logits for one in singles], axis=0), atol=1e-5)
    assert together.iou == pytest.approx(np.mean([one.iou for one in singles]), abs=1e-6)
    np.testing.assert_allclose(together.ious, np.mean([one.ious for one in singles], axis=0), atol=1e-6)
    assert together.lesions == 5
    assert together.points.tolist() == [[20, 50], [50, 50], [10, 10]]
    assert together.lesion.tolist() == [2, 3, 3]
    assert together.boxes.tolist() == [[4, 5, 30, 40], [34, 5, 60, 40], [40, 44, 60, 60], [1, 1, 9, 9]]
    assert together.box is None
    assert same(session.predict(lesions=together.prompts.sets), together)
    two = session.predict(boxes=[[4, 5, 30, 40], [34, 5, 60, 40]])
    assert same(two, session.predict(lesions=lesions[:2]))
    # The map is added to the union: the same as the union of fused masks.
    fused = [session.predict(lesions=[one], fuse=True).logits for one in lesions]
    np.testing.assert_allclose(session.predict(lesions=lesions, fuse=True).logits, np.max(fused, axis=0), atol=1e-5)


def test_low_logits_of_a_union_are_those_of_sam(session_of_one: Session) -> None:
    """Not limited by the logits of an image without a lesion."""
    box = [4, 5, 30, 40]
    single, union = session_of_one.predict(box=box), session_of_one.predict(boxes=[box, box])
    np.testing.assert_allclose(union.logits, single.logits, atol=1e-5)


@pytest.fixture
def session_of_one(segmenter: Segmenter, found: list[Segmentation], paths: list[Path]) -> Session:
    return session_with(1, segmenter, found, paths)


def test_clicks_correct_a_mask_as_an_evaluation_measures_them(
    segmenter: Segmenter, found: list[Segmentation], paths: list[Path]
) -> None:
    place = next(i for i, one in enumerate(found) if one.lesions == 2)
    target = read_mask(paths[place].parent.parent / "masks" / paths[place].name) > 0
    session = segmenter.session(paths[place])
    encoded = segmenter.net.encode(segmenter.prepare(paths[place])[0][None])
    measured = correct_with_clicks(
        found[place].logits,
        target,
        box_decoder(segmenter.net, encoded),
        clicks=3,
        side=segmenter.side,
        postprocess=segmenter.postprocess,
    )
    points, labels = [[one.x, one.y] for one in measured.clicks], [one.positive for one in measured.clicks]
    one_by_one = [session.correct(points[:count], np.array(labels[:count], int)) for count in (1, 2, 3)]
    dice = [native_dice(one.mask, target, "one") for one in (found[place], *one_by_one)]
    assert dice == measured.dice
    assert len(set(dice)) > 2
    at_once = segmenter.session(paths[place]).correct(points, np.array(labels, int))
    assert np.array_equal(at_once.logits, one_by_one[2].logits)
    assert np.array_equal(session.correct(points[:1], [int(labels[0])]).logits, one_by_one[0].logits)
    assert math.isnan(at_once.iou)
    assert at_once.lesions == 2


def test_other_masks_are_corrected_and_invalid_clicks_refused(session_of_one: Session, user_error: Any) -> None:
    before = session_of_one.predict(box=[4, 6, 40, 50])
    corrected = session_of_one.correct([[50, 58]], before=before)
    assert not np.array_equal(corrected.mask, session_of_one.correct([[50, 58]]).mask)
    assert corrected.box.tolist() == [4, 6, 40, 50]
    assert np.array_equal(session_of_one.correct(np.zeros((0, 2)), before=before).mask, before.mask)
    with user_error("prompt-outside-image"):
        session_of_one.correct([[500, 58]])
    with user_error("invalid-prompts"):
        session_of_one.correct([[5, 58]], [-1])


def test_no_lesion_is_an_empty_mask(session_of_one: Session) -> None:
    for prompts in ({"lesions": []}, {"boxes": []}, {"boxes": np.zeros((0, 4))}, {"lesions": [], "fuse": True}):
        none = session_of_one.predict(**prompts)
        assert (none.lesions, none.area, none.iou) == (0, 0, 0)
        assert not none.mask.any()
        assert none.points.shape == (0, 2)


@pytest.mark.parametrize(
    ("prompts", "code", "fact"),
    [
        ({"points": [[1, 2]], "lesions": []}, "conflicting-prompts", "lesions"),
        ({"boxes": [[1, 2, 3, 4]], "lesions": []}, "conflicting-prompts", "lesions"),
        ({"lesions": [{"box": [1, 2, 3, 4]}, {}]}, "lesion-without-prompts", "lesion 2 of 2"),
        ({"lesions": [{}]}, "lesion-without-prompts", "lesion 1 of 1"),
        ({"lesions": [{"box": [1, 2, 3, 4]}, {"box": [9, 9, 1, 1]}]}, "invalid-box", "lesion 2 of 2: "),
        ({"lesions": [{"points": [[1, 2], [99, 2]]}] * 2}, "prompt-outside-image", "lesion 1 of 2: point (99, 2)"),
        ({"lesions": [{"mask": np.zeros((4, 4))}] * 2}, "mask-shape-mismatch", "lesion 2 of 2: mask"),
        ({"lesions": [{"point": [1, 2]}]}, "unknown-prompt-part", "point"),
        ({"lesions": {"box": [1, 2, 3, 4]}}, "invalid-lesions", "list"),
        ({"lesions": [[1, 2, 3, 4]]}, "invalid-lesions", "list"),
        ({"boxes": [1, 2, 3, 4]}, "invalid-box", "lesion 1 of 4"),
        ({"boxes": 3}, "invalid-box", "boxes"),
        ({"box": [1, 2, 3, 4], "fuse": 1}, "invalid-fuse", "1"),
    ],
)
def test_invalid_lesions_are_refused(
    prompts: dict[str, Any], code: str, fact: str, session_of_one: Session, user_error: Callable[..., Any]
) -> None:
    with user_error(code) as caught:
        session_of_one.predict(**prompts)
    assert fact in str(caught.value)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_prompts_of_a_file_reproduce_the_masks_exactly(
    settings: dict[str, Any],
    save_lesion_net: Callable[..., Path],
    phantoms: Path,
    found: list[Segmentation],
    paths: list[Path],
    tmp_path: Path,
) -> None:
    ckpt = save_lesion_net(tmp_path / "a.safetensors", **settings)

    def run(folder: str, **more: Any) -> Path:
        images = (str(phantoms.parent / "images"),)
        output = tmp_path / folder
        predict(
            PredictConfig(
                ckpt=str(ckpt), images=images, output=str(output), probability=True, batch_size=5, quiet=True,
                **CPU, **more,
            )
        )  # fmt: skip
        return output

    first = run("first")
    written = json.loads((first / "prompts.json").read_text())
    assert written["version"] == 3
    entries = written["draws"][0]["images"]["images"]
    assert [len(entries[path.stem]["lesions"]) for path in paths] == [one.lesions for one in found]
    assert all(entry["fuse"] for entry in entries.values())
    again = run("again", prompts_from=str(first / "prompts.json"))
    for path in paths:
        for folder in ("masks", "probabilities"):
            name = f"{folder}/{path.name}"
            assert (again / name).read_bytes() == (first / name).read_bytes()
    repeated = json.loads((again / "prompts.json").read_text())["draws"][0]["images"]["images"]
    for name, entry in entries.items():
        assert repeated[name]["lesions"] == entry["lesions"]
        assert repeated[name]["iou"] == entry["iou"]

    for entry in entries.values():
        del entry["fuse"]
    (tmp_path / "unfused.json").write_text(json.dumps(written))
    unfused = run("unfused", prompts_from=str(tmp_path / "unfused.json"))
    names = [f"probabilities/{path.name}" for path in paths]
    assert any((unfused / name).read_bytes() != (first / name).read_bytes() for name in names)


def test_images_without_a_lesion_are_named(
    ckpt: Path, found: list[Segmentation], paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from promise.cli.predict import main

    flags = [
        "--ckpt",
        str(ckpt),
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--quiet",
    ]
    without = [path for path, one in zip(paths, found, strict=True) if not one.lesions]
    assert main([*flags, "--overlay", "--contour", *map(str, paths)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(without) > 1
    count = f"no lesion found in {len(without)} images, whose masks are empty:"
    assert lines[1:] == [count, *(f"  {path.stem}" for path in without)]
    assert not any(read_mask(tmp_path / f"out/masks/{path.name}").any() for path in without)
    annotated = {one["image_id"] for one in json.loads((tmp_path / "out/contours.json").read_text())["annotations"]}
    assert len(annotated) == len(paths) - len(without)
    assert main([*flags, "--max-lesions", "1", *map(str, paths)]) == 1  # other settings
    assert "max_lesions is 1 and was None" in capsys.readouterr().err
    with_lesion = next(path for path in paths if path not in without)
    assert main([*flags[:3], str(tmp_path / "one"), "--device", "cpu", str(with_lesion)]) == 0
    assert "no lesion" not in capsys.readouterr().out


def evaluate_phantoms(ckpt: Path, phantoms: Path, folder: Path, **more: Any) -> dict[str, Any]:
    config = EvalConfig(
        ckpt=str(ckpt), split_csv=(str(phantoms),), split="train", workers=0, cache="off", quiet=True, batch_size=4,
        gallery=1, output=str(folder), **CPU, **more,
    )  # fmt: skip
    return evaluate(config).summary


def test_an_evaluation_repeats_the_scores_from_its_prompts(ckpt: Path, phantoms: Path, tmp_path: Path) -> None:
    def scores(folder: str) -> list[list[str]]:
        lines = [line.split(",") for line in (tmp_path / folder / "per_image.csv").read_text().splitlines()]
        return [line[:2] + line[3:] for line in lines]  # without the source of the prompts

    summary = evaluate_phantoms(ckpt, phantoms, tmp_path / "auto")
    path = tmp_path / "auto/prompts.json"
    assert json.loads(path.read_text())["version"] == 3
    evaluate_phantoms(ckpt, phantoms, tmp_path / "file", prompts=f"file:{path}")
    assert scores("file") == scores("auto")
    assert len(scores("auto")) == 7
    assert summary["lesions"] == {
        "max_lesions": 4, "threshold": 0.9, "min_score": 0.025, "min_probability": 0.6, "min_share": 0.0,
        "prompts": "box", "mask_prompt": False, "output": "single", "fuse": 0.5, "flips": False,
    }  # fmt: skip


# --- settings ------------------------------------------------------------------------------------


def test_the_number_of_lesions_can_be_limited(
    ckpt: Path, phantoms: Path, paths: list[Path], found: list[Segmentation], tmp_path: Path
) -> None:
    limited = promise.load(ckpt, max_lesions=1, **CPU).predict(paths)
    assert [one.lesions for one in limited] == [min(one.lesions, 1) for one in found]
    for one, all_lesions in zip(limited, found, strict=True):
        assert one.boxes.tolist() == all_lesions.boxes[:1].tolist()
    summary = evaluate_phantoms(ckpt, phantoms, tmp_path / "one", max_lesions=1)
    assert summary["lesions"]["max_lesions"] == 1
    from promise.evaluation.summary import results_text

    assert "at most 1 lesion per image (threshold 0.9" in results_text([summary])


def test_a_net_without_lesions_cannot_be_limited(
    build: Any, tmp_path: Path, phantoms: Path, user_error: Callable[..., Any]
) -> None:
    net = build("APM_cross", num_points=4)
    path = tmp_path / "points.safetensors"
    known = {"sam_checkpoint": "random", "seed": 5}
    promise.checkpoint.save(
        net, path, promise.checkpoint.Metadata("APM_cross", "tiny_vit", 4, net.sam.weights_sha256(), **known)
    )
    for call in (
        lambda: promise.load(path, max_lesions=2, **CPU),
        lambda: evaluate_phantoms(path, phantoms, tmp_path / "eval", max_lesions=2),
    ):
        with user_error("net-without-lesions") as caught:
            call()
        for fact in ("APM_cross", "--max-lesions 2", "APM_dense"):
            assert fact in str(caught.value)
    assert evaluate_phantoms(path, phantoms, tmp_path / "plain")["lesions"] is None


def test_a_limit_below_one_is_an_error(ckpt: Path, phantoms: Path, tmp_path: Path, user_error: Any) -> None:
    with user_error("invalid-lesion-settings"):
        promise.load(ckpt, max_lesions=0, **CPU)
    with user_error("number-too-small"):
        evaluate_phantoms(ckpt, phantoms, tmp_path / "eval", max_lesions=0)
    with user_error("invalid-count"):
        predict(PredictConfig(ckpt=str(ckpt), images=("a.png",), output=str(tmp_path / "out"), max_lesions=0))


def test_lesion_settings_can_be_changed(ckpt: Path, phantoms: Path, paths: list[Path], tmp_path: Path) -> None:
    from promise.cli.predict import main

    loaded = promise.load(ckpt, lesion_settings={"threshold": 0.9, "fuse": 0}, max_lesions=2, **CPU)
    before = promise.load(ckpt, **CPU).net.lesions
    assert loaded.net.lesions == dataclasses.replace(before, threshold=0.9, fuse=0, max_lesions=2)
    summary = evaluate_phantoms(ckpt, phantoms, tmp_path / "eval", lesion_settings="prompts=box+points, flips=true")
    assert summary["lesions"] == {**dataclasses.asdict(before), "prompts": "box+points", "flips": True}
    output = tmp_path / "out"
    flags = ["--ckpt", str(ckpt), "--output", str(output), "--device", "cpu", "--precision", "fp32", "--quiet"]
    assert main([*flags, "--lesion-settings", "min_score=1", *map(str, paths)]) == 0
    entries = json.loads((output / "prompts.json").read_text())["draws"][0]["images"]["images"]
    assert all(entry["lesions"] == [] for entry in entries.values())
    assert main([*flags, "--lesion-settings", "min_score=0.5", *map(str, paths)]) == 1  # other settings


def test_all_faults_of_lesion_settings_are_reported_together(
    ckpt: Path, phantoms: Path, tmp_path: Path, user_error: Callable[..., Any]
) -> None:
    text = "treshold=0.4,fuse=1,flips=perhaps,max_lesions=0.5,min_score"
    for call in (
        lambda: evaluate_phantoms(ckpt, phantoms, tmp_path / "eval", lesion_settings=text),
        lambda: promise.load(ckpt, lesion_settings=text, **CPU),
    ):
        with user_error("unknown-lesion-setting", "invalid-lesion-settings") as caught:
            call()
        for fact in ("treshold", "fuse must be", "flips: 'perhaps'", "max_lesions: '0.5'", "min_score: ''"):
            assert fact in str(caught.value)


# --- the learned estimate of the IoU -------------------------------------------------------------

ESTIMATE = QualityEstimate({**dict.fromkeys(FEATURES, 0.0), "log_area": 0.3}, 1.4, 30, 0.5, 0.125)


@pytest.fixture(scope="module")
def estimating(save_lesion_net: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lesion_net(tmp_path_factory.mktemp("estimating") / "best.safetensors", quality=ESTIMATE)


def test_images_to_review_are_listed_lowest_first(
    estimating: Path,
    paths: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from promise.cli.predict import main

    found = dict(zip([path.stem for path in paths], promise.load(estimating, **CPU).predict(paths), strict=True))
    assert {one.quality is None for one in found.values()} == {True, False}
    assert all((one.quality is None) == (one.lesions == 0) for one in found.values())
    estimates = sorted(one.quality for one in found.values() if one.quality is not None)
    below = (estimates[1] + estimates[2]) / 2
    assert estimates[1] < estimates[2]
    flags = ["--ckpt", str(estimating), "--device", "cpu", "--precision", "fp32", "--quiet"]
    files, out = [str(path) for path in paths], tmp_path / "out"
    assert main([*flags, "--output", str(out), "--review-below", str(below), *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    with (out / "review.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    without = [name for name, one in found.items() if not one.lesions]
    low = sorted((name for name, one in found.items() if one.lesions), key=lambda name: found[name].quality)[:2]
    assert [row["name"] for row in rows] == [*without, *low]
    assert [row["estimated_iou"] for row in rows] == [*[""] * len(without), *(str(found[name].quality) for name in low)]
    assert {row["path"] for row in rows} <= set(files)
    assert lines[1] == (
        f"{len(rows)} images to review (estimated IoU below {below:g}, or no lesion found): {out / 'review.csv'}"
    )
    assert lines[2:] == [
        *(f"  {name}: no lesion" for name in without),
        *(f"  {n}: {found[n].quality:.3f}" for n in low),
    ]
    entries = json.loads((out / "prompts.json").read_text())["draws"][0]["images"]["images"]
    assert {name: entry["estimated_iou"] for name, entry in entries.items()} == {n: f.quality for n, f in found.items()}
    # All masks exist: the list needs no net. Without images to review, the file has only its header.
    assert main([*flags, "--output", str(out), "--review-below", "0", *files]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"{len(without)} images to review")
    # Without the flag, masks with a low estimate are named too.
    monkeypatch.setattr("promise.inference.predict.USABLE", below)
    assert main([*flags, "--output", str(out), *files]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("2 to check, with an estimated IoU below")
    assert printed[2:4] == [f"  {name}: {found[name].quality:.3f}" for name in low]


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({}, "no-quality-estimate"),
        ({"review_below": 1.5}, "invalid-review-bound"),
        ({"prompts_from": "prompts.json"}, "review-of-prompts-file"),
    ],
)
def test_a_review_that_is_not_possible_is_refused(
    settings: dict[str, Any], code: str, ckpt: Path, paths: list[Path], tmp_path: Path, user_error: Any
) -> None:
    values = {"review_below": 0.7, "images": (str(paths[0]),), "output": str(tmp_path / "out"), **settings}
    with user_error(code):
        predict(PredictConfig(ckpt=str(ckpt), **values))
    assert not (tmp_path / "out").exists()


def test_an_evaluation_measures_the_estimates_where_there_is_a_lesion(
    estimating: Path, phantoms: Path, tmp_path: Path
) -> None:
    entry = evaluate_phantoms(estimating, phantoms, tmp_path / "eval")["datasets"]["split"]
    with (tmp_path / "eval/per_image.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with_lesion = [row for row in rows if row["estimated_iou"] != "nan"]
    assert (
        entry["without_lesion"]
        == len(rows) - len(with_lesion)
        == sum(row["predicted_iou"] == "0.0" for row in rows)
        > 0
    )
    for key, column in (("calibration", "predicted_iou"), ("estimated_calibration", "estimated_iou")):
        estimate, true = (np.array([float(row[name]) for row in with_lesion]) for name in (column, "native_iou"))
        assert entry[key]["error"] == pytest.approx(np.abs(estimate - true).mean())
        assert entry[key]["correlation"] == pytest.approx(np.corrcoef(estimate, true)[0, 1])
    assert np.ptp([float(row["estimated_iou"]) for row in with_lesion]) > 0
    path = tmp_path / "eval/prompts.json"
    other = evaluate_phantoms(estimating, phantoms, tmp_path / "file", prompts=f"file:{path}")["datasets"]["split"]
    assert "estimated_calibration" not in other  # only automatic masks are estimated
