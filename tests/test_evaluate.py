"""What an evaluation leaves, and that its figures hang on nothing but the net and the rows."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promise import checkpoint
from promise.cli.eval import main
from promise.config import EvalConfig
from promise.data.images import read_image
from promise.errors import ExistingRunError, MissingFileError, UserError
from promise.evaluate import EvalResult, evaluate
from promise.metrics import binary_metrics, soft_metrics

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")
PROTOCOLS = ("reference", "native", "soft")


@pytest.fixture(scope="module")
def ckpt(build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = build("APM_IPS_cross", num_points=4)
    metadata = checkpoint.Metadata("APM_IPS_cross", "tiny_vit", 4, net.sam.weights_sha256(), seed=5, epoch=3)
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    checkpoint.save(net, path, metadata)
    return path


@pytest.fixture
def run(ckpt: Path, phantoms: Path, tmp_path: Path) -> Callable[..., EvalResult]:
    common = {
        "ckpt": str(ckpt),
        "split_csv": (str(phantoms),),
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
        "quiet": True,
        "output": str(tmp_path / "eval"),
    }
    return lambda **other: evaluate(EvalConfig(**{**common, **other}))


def per_image(folder: Path) -> list[dict[str, str]]:
    with (folder / "per_image.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def column_means(rows: list[dict[str, str]], protocol: str) -> dict[str, float]:
    counts = ("native_intersection", "native_predicted_pixels")
    names = [name for name in rows[0] if name.startswith(f"{protocol}_") and name not in counts]
    means = {}
    for name in names:
        values = np.array([float(row[name]) for row in rows])
        means[name.removeprefix(f"{protocol}_")] = float(np.nanmean(values)) if not np.isnan(values).all() else math.nan
    return means


def test_the_summary_says_what_was_scored(run, ckpt: Path, tmp_path: Path) -> None:
    result = run()
    written = json.loads((tmp_path / "eval/summary.json").read_text())
    assert result.folder == tmp_path / "eval"
    expected = {
        "net": "APM_IPS_cross",
        "sam": "tiny_vit",
        "checkpoint": str(ckpt),
        "trained": True,
        "epoch": 3,
        "num_points": 4,
        "sam_sha256": checkpoint.read_metadata(ckpt).sam_sha256,
        "prompts": "auto",
        "prompt_source": "auto",
        "seed": 5,
        "precision": "fp32",
        "recipe": "basic_color",
        "empty_masks": "one",
    }
    assert {name: written[name] for name in expected} == expected
    table = written["datasets"]["split"]
    assert (table["split"], table["images"], table["empty_truths"]) == ("test", 3, 0)
    assert {p.name for p in (tmp_path / "eval").iterdir()} == {
        "summary.json",
        "per_image.csv",
        "prompts.json",
        "gallery",
    }


def test_means_are_the_means_of_the_columns(run, tmp_path: Path) -> None:
    summary = run().summary
    rows = per_image(tmp_path / "eval")
    assert [row["name"] for row in rows] == ["phantom_0009", "phantom_0010", "phantom_0011"]
    assert {row["prompts"] for row in rows} == {"auto"}
    table = summary["datasets"]["split"]
    for protocol in PROTOCOLS:
        assert table["means"][protocol] == pytest.approx(column_means(rows, protocol), nan_ok=True, abs=1e-12)
    assert table["mean_predicted_iou"] == pytest.approx(np.mean([float(r["predicted_iou"]) for r in rows]))
    assert len({row["native_iou"] for row in rows}) > 1


def test_all_protocols_are_what_they_say(run, build, ckpt: Path, phantoms: Path, tmp_path: Path) -> None:
    """Recomputed from the net's logits, step by step."""
    import cv2

    from promise.data.images import read_mask
    from promise.data.table import read_table
    from promise.transforms import build_transform

    run()
    net, _ = checkpoint.load(ckpt)
    net.eval()
    transform = build_transform("basic_color", image_size=64, pixels="imagenet")
    for row, found in zip(read_table(phantoms).split("test"), per_image(tmp_path / "eval"), strict=True):
        truth = read_mask(row.mask)
        pair = transform(
            torch.from_numpy(read_image(row.image)).permute(2, 0, 1), torch.from_numpy(truth).to(torch.uint8)[None]
        )
        with torch.no_grad():
            logits = net(pair[0][None]).mask_logits

        def bring(side: int, logits: torch.Tensor = logits) -> np.ndarray:
            big = torch.nn.functional.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
            return torch.sigmoid(big)[0, 0].numpy()

        native = binary_metrics(bring(64) >= 0.5, truth)
        soft = soft_metrics(bring(64), truth)
        # The original's masks have 1024 pixels; bilinear from there to 256 sees the middle 2 × 2 of 4 × 4.
        prepared = np.kron(truth, np.ones((16, 16), bool))
        grown = prepared.reshape(256, 4, 256, 4)[:, 1:3, :, 1:3].any((1, 3))
        opened = cv2.morphologyEx((bring(256) >= 0.5).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
        reference = binary_metrics(opened > 0, grown)
        for protocol, expected in (("native", native), ("soft", soft), ("reference", reference)):
            got = {name: float(found[f"{protocol}_{name}"]) for name in expected}
            assert got == pytest.approx(expected, abs=2e-3, nan_ok=True), protocol


@pytest.mark.parametrize("prompts", ["auto", "gt", "gt-box", "centre"])
def test_batch_size_and_workers_change_nothing(prompts: str, run, tmp_path: Path) -> None:
    first = run(prompts=prompts, split="train", batch_size=1, output=str(tmp_path / "a")).summary
    other = run(prompts=prompts, split="train", batch_size=4, workers=2, output=str(tmp_path / "b")).summary
    assert first["prompts"] == {"gt": "oracle", "gt-box": "oracle"}.get(prompts, prompts)
    for a, b in zip(per_image(tmp_path / "a"), per_image(tmp_path / "b"), strict=True):
        assert a["name"] == b["name"]
        numbers = [name for name in a if name.startswith((*PROTOCOLS, "predicted"))]
        assert [float(a[n]) for n in numbers] == pytest.approx([float(b[n]) for n in numbers], abs=1e-3, nan_ok=True)
    assert first["datasets"]["split"]["images"] == other["datasets"]["split"]["images"] == 6


def test_drawn_points_hang_on_the_seed(run, tmp_path: Path) -> None:
    tables = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(prompts="gt", seed=seed, output=str(tmp_path / name))
        tables.append([row["predicted_iou"] for row in per_image(tmp_path / name)])
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


@pytest.mark.parametrize(
    ("rule", "expected"), [("one", 1.0), ("zero", 0.0), ("skip", None)], ids=["one", "zero", "skip"]
)
def test_rows_without_foreground(rule: str, expected: float | None, run, phantoms: Path, tmp_path, monkeypatch) -> None:
    """A truth that is empty, and a net that says so."""
    import cv2

    lines = phantoms.read_text().splitlines()
    image = lines[-1].split(",")[0]
    cv2.imwrite(str(phantoms.parent / "masks/empty.png"), np.zeros((64, 64), np.uint8))
    (phantoms.parent / "images/empty.png").write_bytes((phantoms.parent / image).read_bytes())
    table = phantoms.with_name("empty.csv")
    table.write_text("\n".join([lines[0], "images/empty.png,test,masks/empty.png"]) + "\n")
    from promise import engine

    real = engine.predict

    def nothing(*given: Any) -> Any:
        found = real(*given)
        return type(found)(found.mask_logits * 0 - 9, found.iou, found.points, found.boxes)

    monkeypatch.setattr(engine, "predict", nothing)
    result = run(split_csv=(str(table),), empty_masks=rule)
    found = json.loads((tmp_path / "eval/summary.json").read_text())["datasets"]["empty"]
    assert found["empty_truths"] == 1
    assert found["means"]["native"]["dice"] == expected
    assert found["means"]["native"]["iou"] == expected
    assert found["means"]["soft"]["dice_mean"] == expected
    assert found["means"]["native"]["mae"] == 0
    assert found["means"]["reference"]["iou"] == 0  # the original's rule
    assert found["means"]["reference"]["dice"] is None
    assert result.summary["empty_masks"] == rule
    assert per_image(tmp_path / "eval")[0]["empty_truth"] == "1"


def test_several_tables_are_several_data_sets(run, phantoms: Path, tmp_path: Path) -> None:
    other = phantoms.parent / "other.csv"
    other.write_text("\n".join(line.replace(",test,", ",val,") for line in phantoms.read_text().splitlines()) + "\n")
    again = phantoms.parent / "deeper" / "split.csv"
    again.parent.mkdir(exist_ok=True)
    again.write_text(phantoms.read_text())
    result = run(split_csv=(str(phantoms), str(other), str(again)), data_root=str(phantoms.parent))
    found = {name: (t["split"], t["images"]) for name, t in result.summary["datasets"].items()}
    assert found == {"split": ("test", 3), "other": ("val", 6), "split-2": ("test", 3)}
    assert [row["dataset"] for row in per_image(tmp_path / "eval")] == ["split"] * 3 + ["other"] * 6 + ["split-2"] * 3
    tables = result.summary["datasets"]
    assert tables["split"]["means"]["native"] == pytest.approx(tables["split-2"]["means"]["native"], nan_ok=True)
    assert tables["split"]["means"]["native"] != pytest.approx(tables["other"]["means"]["native"], nan_ok=True)


def test_split_can_be_chosen_and_must_have_rows(run, phantoms: Path) -> None:
    assert run(split="train").summary["datasets"]["split"]["images"] == 6
    table = phantoms.with_name("only_train.csv")
    table.write_text(
        "\n".join(line for line in phantoms.read_text().splitlines() if ",t" in line and "test" not in line)
    )
    with pytest.raises(UserError, match=r"no row has train_type 'val' \(there are 6 train.*Choose with --split"):
        run(split_csv=(str(table),), overwrite=True)


def test_overlays_are_drawn(run, tmp_path: Path) -> None:
    run(overlays=2)
    pictures = sorted((tmp_path / "eval/overlays/split").iterdir())
    assert [p.name for p in pictures] == ["phantom_0009.png", "phantom_0010.png"]
    assert read_image(pictures[0]).shape == (512 + 22, 512, 3)
    assert not np.array_equal(read_image(pictures[0]), read_image(pictures[1]))


def test_overlays_of_an_earlier_evaluation_go(run, tmp_path: Path) -> None:
    run(overlays=3)
    (tmp_path / "eval/overlays/mine.png").touch()
    run(overlays=1, overwrite=True)
    assert len(list((tmp_path / "eval/overlays/split").iterdir())) == 1
    assert (tmp_path / "eval/overlays/mine.png").exists()


def test_results_are_not_replaced_unasked(run, tmp_path: Path) -> None:
    run()
    before = (tmp_path / "eval/summary.json").read_bytes()
    with pytest.raises(ExistingRunError, match=r"already holds results \(summary\.json, per_image\.csv\)"):
        run(split="val")
    assert (tmp_path / "eval/summary.json").read_bytes() == before
    run(split="val", overwrite=True)
    assert (tmp_path / "eval/summary.json").read_bytes() != before


def test_results_lie_beside_the_checkpoint(run, ckpt: Path) -> None:
    assert run(output=None).folder == ckpt.parent / "eval"
    assert run(output=None, prompts="centre").folder == ckpt.parent / "eval-centre"


def test_an_original_file_is_scored_like_ours(run, ckpt: Path, tmp_path: Path) -> None:
    net, _ = checkpoint.load(ckpt)
    torch.save({f"module.{k}": v for k, v in checkpoint.to_reference_state(net).items()}, tmp_path / "epoch_1.pt")
    ours = run(output=str(tmp_path / "a")).summary
    theirs = run(ckpt=str(tmp_path / "epoch_1.pt"), net="APM_IPS_cross", sam="tiny_vit", output=str(tmp_path / "b"))
    assert per_image(tmp_path / "a") == per_image(tmp_path / "b")
    assert theirs.summary["sam_sha256"] == ours["sam_sha256"]


def test_gt_nets_are_scored_as_oracles(run) -> None:
    summary = run(net="APM_IPS_GT_cross").summary
    assert (summary["net"], summary["prompts"], summary["prompt_source"]) == ("APM_IPS_GT_cross", "oracle", "gt")


def test_an_untrained_net_is_called_untrained(run, caplog) -> None:
    summary = run(ckpt=None, net="APM_cross", sam="tiny_vit", sam_checkpoint="random", num_points=2).summary
    assert (summary["trained"], summary["num_points"], summary["checkpoint"]) == (False, 2, None)
    assert "scored untrained" in caplog.text


def test_the_checkpoints_pixel_recipe_is_used(run, build, tmp_path: Path) -> None:
    net = build("APM_cross", num_points=4)
    metadata = checkpoint.Metadata(
        "APM_cross", "tiny_vit", 4, net.sam.weights_sha256(), config={"augment": "basic_gray"}
    )
    checkpoint.save(net, tmp_path / "a.safetensors", metadata)
    assert run(ckpt=str(tmp_path / "a.safetensors")).summary["recipe"] == "basic_gray"


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"ckpt": "/nowhere/best.safetensors"}, MissingFileError, "no checkpoint at /nowhere/best.safetensors"),
        ({"ckpt": None}, UserError, "give a --ckpt, or an untrained --net"),
        ({"split_csv": ()}, UserError, "--split-csv is missing"),
        ({"net": "SAMM"}, UserError, "unknown net 'SAMM'"),
        ({"net": "APM_IPS_GT_cross", "prompts": "auto"}, UserError, "places no prompts of its own: use --prompts gt"),
        ({"recipe": "train2_color"}, UserError, "--recipe train2_color draws augmentations"),
        ({"batch_size": 0}, UserError, "--batch-size must be at least 1"),
        ({"postprocess": "opn:5"}, UserError, "opn"),
        ({"sam": "vit_b"}, UserError, "was trained on tiny_vit, but --sam says vit_b"),
    ],
)
def test_what_cannot_be_scored_is_refused(given, error, words: str, run, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        run(**given)
    assert not (tmp_path / "eval").exists()


def test_the_command_prints_tables_and_earlier_results(ckpt: Path, phantoms: Path, tmp_path: Path, capsys) -> None:
    common = ["--split-csv", str(phantoms), "--workers", "0", "--device", "cpu", "--quiet", "--ckpt", str(ckpt)]
    assert main([*common, "--prompts", "gt", "--output", str(tmp_path / "a")]) == 0
    earlier = str(tmp_path / "a/summary.json")
    capsys.readouterr()
    assert main([*common, "--beside", earlier, "--output", str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert "split: 3 images, split test" in printed
    lines = [line.split()[:3] for line in printed.splitlines() if line.startswith("APM_IPS_cross ")]
    assert lines == [
        *([["APM_IPS_cross", who, p] for who in ("oracle", "auto") for p in ("reference", "native")]),
        *([["APM_IPS_cross", who, "soft"] for who in ("oracle", "auto")]),
    ]
    dice = json.loads((tmp_path / "b/summary.json").read_text())["datasets"]["split"]["means"]["native"]["dice"]
    assert f"{dice:.4f}" in next(line for line in printed.splitlines() if line.split()[1:3] == ["auto", "native"])
