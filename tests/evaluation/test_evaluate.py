"""The files of an evaluation; its scores depend on the net and the rows only."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promise import checkpoint
from promise.cli.eval import main
from promise.data.images import read_image
from promise.data.table import read_table
from promise.evaluation.config import EvalConfig
from promise.evaluation.evaluate import EvalResult, evaluate
from promise.evaluation.metrics import METRICS, Metric, binary_metrics, register, soft_metrics
from promise.evaluation.pair import Pair
from promise.evaluation.summary import results_text
from promise.runtime.errors import ExistingRunError, MissingFileError, UserError

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


def test_the_summary_describes_the_evaluation(run, ckpt: Path, tmp_path: Path) -> None:
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
    for protocol in (*PROTOCOLS, "prompts"):
        assert table["means"][protocol] == pytest.approx(column_means(rows, protocol), nan_ok=True, abs=1e-12)
    assert table["mean_predicted_iou"] == pytest.approx(np.mean([float(r["predicted_iou"]) for r in rows]))
    assert len({row["native_iou"] for row in rows}) > 1


def test_all_protocols_follow_their_definitions(run, build, ckpt: Path, phantoms: Path, tmp_path: Path) -> None:
    """Recomputed from the logits of the net, step by step."""
    import cv2

    from promise.data.masks import read_mask
    from promise.data.table import read_table
    from promise.data.transforms.recipes import build_transform

    run()
    net, _ = checkpoint.load(ckpt)
    net.eval()
    transform = build_transform("basic_color", image_size=64, pixels="imagenet")
    for row, found in zip(read_table(phantoms).split("test"), per_image(tmp_path / "eval"), strict=True):
        target = read_mask(row.mask)
        pair = transform(
            torch.from_numpy(read_image(row.image)).permute(2, 0, 1), torch.from_numpy(target).to(torch.uint8)[None]
        )
        with torch.no_grad():
            logits = net(pair[0][None]).mask_logits

        def probability_at(side: int, logits: torch.Tensor = logits) -> np.ndarray:
            resized = torch.nn.functional.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
            return torch.sigmoid(resized)[0, 0].numpy()

        native = binary_metrics(probability_at(64) >= 0.5, target)
        soft = soft_metrics(probability_at(64), target)
        # The reference implementation resizes masks of 1024 pixels bilinearly to 256: the middle 2 × 2 of each 4 × 4.
        prepared = np.kron(target, np.ones((16, 16), bool))
        dilated = prepared.reshape(256, 4, 256, 4)[:, 1:3, :, 1:3].any((1, 3))
        opened = cv2.morphologyEx(
            (probability_at(256) >= 0.5).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)
        )
        reference = binary_metrics(opened > 0, dilated)
        reference.pop("nsd")  # of the native protocol alone
        for protocol, expected in (("native", native), ("soft", soft), ("reference", reference)):
            got = {name: float(found[f"{protocol}_{name}"]) for name in expected}
            assert got == pytest.approx(expected, abs=2e-3, nan_ok=True), protocol


@pytest.mark.parametrize("prompts", ["auto", "gt"])
def test_batch_size_and_workers_change_nothing(prompts: str, run, tmp_path: Path) -> None:
    first = run(prompts=prompts, split="train", batch_size=1, output=str(tmp_path / "a")).summary
    other = run(prompts=prompts, split="train", batch_size=4, workers=2, output=str(tmp_path / "b")).summary
    assert first["prompts"] == {"gt": "oracle", "gt-box": "oracle"}.get(prompts, prompts)
    for a, b in zip(per_image(tmp_path / "a"), per_image(tmp_path / "b"), strict=True):
        assert a["name"] == b["name"]
        numbers = [name for name in a if name.startswith((*PROTOCOLS, "predicted"))]
        assert [float(a[n]) for n in numbers] == pytest.approx([float(b[n]) for n in numbers], abs=1e-3, nan_ok=True)
    assert first["datasets"]["split"]["images"] == other["datasets"]["split"]["images"] == 6


def test_drawn_points_depend_on_the_seed(run, tmp_path: Path) -> None:
    tables = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(prompts="gt", seed=seed, output=str(tmp_path / name))
        tables.append([row["predicted_iou"] for row in per_image(tmp_path / name)])
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


@pytest.mark.parametrize(
    ("rule", "expected"), [("one", 1.0), ("zero", 0.0), ("skip", None)], ids=["one", "zero", "skip"]
)
def test_rows_without_foreground(
    rule: str, expected: float | None, run, own_phantoms: Path, tmp_path, monkeypatch
) -> None:
    """An empty ground truth and an empty prediction."""
    import cv2

    lines = own_phantoms.read_text().splitlines()
    image = lines[-1].split(",")[0]
    cv2.imwrite(str(own_phantoms.parent / "masks/empty.png"), np.zeros((64, 64), np.uint8))
    (own_phantoms.parent / "images/empty.png").write_bytes((own_phantoms.parent / image).read_bytes())
    table = own_phantoms.with_name("empty.csv")
    table.write_text("\n".join([lines[0], "images/empty.png,test,masks/empty.png"]) + "\n")
    from promise.models.promise import Promise

    real = Promise.forward

    def predict_empty(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        return dataclasses.replace(found, mask_logits=found.mask_logits * 0 - 9)

    monkeypatch.setattr(Promise, "forward", predict_empty)
    result = run(split_csv=(str(table),), empty_masks=rule)
    found = json.loads((tmp_path / "eval/summary.json").read_text())["datasets"]["empty"]
    assert found["empty_truths"] == 1
    assert found["means"]["native"]["dice"] == expected
    assert found["means"]["native"]["iou"] == expected
    assert found["means"]["soft"]["dice_mean"] == expected
    assert found["means"]["native"]["mae"] == 0
    assert found["means"]["reference"]["iou"] == 0  # as the reference implementation
    assert found["means"]["reference"]["dice"] is None
    assert result.summary["empty_masks"] == rule
    text = results_text([result.summary])
    assert not re.search(r"\bnan\b", text)
    assert ("use --empty-masks one or zero" in text) == (rule == "skip")
    assert per_image(tmp_path / "eval")[0]["empty_truth"] == "1"


def test_several_tables_are_several_data_sets(run, own_phantoms: Path, tmp_path: Path) -> None:
    other = own_phantoms.parent / "other.csv"
    other.write_text(
        "\n".join(line.replace(",test,", ",val,") for line in own_phantoms.read_text().splitlines()) + "\n"
    )
    again = own_phantoms.parent / "deeper" / "split.csv"
    again.parent.mkdir(exist_ok=True)
    again.write_text(own_phantoms.read_text())
    result = run(split_csv=(str(own_phantoms), str(other), str(again)), data_root=str(own_phantoms.parent))
    found = {name: (t["split"], t["images"]) for name, t in result.summary["datasets"].items()}
    assert found == {"split": ("test", 3), "other": ("val", 6), "split-2": ("test", 3)}
    assert [row["dataset"] for row in per_image(tmp_path / "eval")] == ["split"] * 3 + ["other"] * 6 + ["split-2"] * 3
    tables = result.summary["datasets"]
    assert tables["split"]["means"]["native"] == pytest.approx(tables["split-2"]["means"]["native"], nan_ok=True)
    assert tables["split"]["means"]["native"] != pytest.approx(tables["other"]["means"]["native"], nan_ok=True)


def test_split_can_be_chosen_and_must_have_rows(run, own_phantoms: Path) -> None:
    assert run(split="train").summary["datasets"]["split"]["images"] == 6
    table = own_phantoms.with_name("only_train.csv")
    table.write_text(
        "\n".join(line for line in own_phantoms.read_text().splitlines() if ",t" in line and "test" not in line)
    )
    with pytest.raises(UserError) as caught:
        run(split_csv=(str(table),), overwrite=True)
    for fact in ("only_train.csv", "'val'", "6 train", "--split"):
        assert fact in str(caught.value)


def test_overlays_are_drawn(run, tmp_path: Path) -> None:
    run(overlays=2)
    overlays = sorted((tmp_path / "eval/overlays/split").iterdir())
    assert [p.name for p in overlays] == ["phantom_0009.png", "phantom_0010.png"]
    assert read_image(overlays[0]).shape == (512 + 22, 512, 3)
    assert not np.array_equal(read_image(overlays[0]), read_image(overlays[1]))


def test_overlays_of_an_earlier_evaluation_are_removed(run, tmp_path: Path) -> None:
    run(overlays=3)
    (tmp_path / "eval/overlays/mine.png").touch()
    run(overlays=1, overwrite=True)
    assert len(list((tmp_path / "eval/overlays/split").iterdir())) == 1
    assert (tmp_path / "eval/overlays/mine.png").exists()


def test_results_are_replaced_only_with_overwrite(run, tmp_path: Path) -> None:
    run()
    before = (tmp_path / "eval/summary.json").read_bytes()
    with pytest.raises(ExistingRunError, match=r"summary\.json, per_image\.csv"):
        run(split="val")
    assert (tmp_path / "eval/summary.json").read_bytes() == before
    run(split="val", overwrite=True)
    assert (tmp_path / "eval/summary.json").read_bytes() != before


def test_results_are_written_beside_the_checkpoint(run, ckpt: Path) -> None:
    assert run(output=None).folder == ckpt.parent / "eval"
    assert run(output=None, prompts="centre").folder == ckpt.parent / "eval-centre"


def test_a_reference_checkpoint_is_scored_like_ours(run, ckpt: Path, tmp_path: Path) -> None:
    net, _ = checkpoint.load(ckpt)
    torch.save({f"module.{k}": v for k, v in checkpoint.to_reference_state(net).items()}, tmp_path / "epoch_1.pt")
    ours = run(output=str(tmp_path / "a")).summary
    theirs = run(ckpt=str(tmp_path / "epoch_1.pt"), net="APM_IPS_cross", sam="tiny_vit", output=str(tmp_path / "b"))
    assert per_image(tmp_path / "a") == per_image(tmp_path / "b")
    assert theirs.summary["sam_sha256"] == ours["sam_sha256"]


def test_gt_nets_are_scored_as_oracles(run) -> None:
    summary = run(net="APM_IPS_GT_cross").summary
    assert (summary["net"], summary["prompts"], summary["prompt_source"]) == ("APM_IPS_GT_cross", "oracle", "gt")


def test_an_untrained_net_is_reported(run, caplog) -> None:
    summary = run(ckpt=None, net="APM_cross", sam="tiny_vit", sam_checkpoint="random", num_points=2).summary
    assert (summary["trained"], summary["num_points"], summary["checkpoint"]) == (False, 2, None)
    assert "not trained" in caplog.text


def test_the_checkpoints_pixel_recipe_is_used(run, build, tmp_path: Path) -> None:
    net = build("APM_cross", num_points=4)
    metadata = checkpoint.Metadata(
        "APM_cross", "tiny_vit", 4, net.sam.weights_sha256(), config={"augment": "basic_gray"}
    )
    checkpoint.save(net, tmp_path / "a.safetensors", metadata)
    assert run(ckpt=str(tmp_path / "a.safetensors")).summary["recipe"] == "basic_gray"


@pytest.mark.parametrize(
    ("settings", "codes", "facts"),
    [
        ({"ckpt": "/nowhere/best.safetensors"}, [], ["/nowhere/best.safetensors"]),
        ({"ckpt": None}, ["missing-net"], ["--ckpt", "--net"]),
        ({"split_csv": ()}, ["missing-split-csv"], ["--split-csv"]),
        ({"net": "SAMM"}, ["unknown-net"], ["'SAMM'"]),
        ({"net": "APM_IPS_GT_cross", "prompts": "auto"}, [], ["APM_IPS_GT_cross", "--prompts: gt"]),
        ({"recipe": "train2_color"}, ["augmenting-recipe"], ["--recipe train2_color"]),
        ({"batch_size": 0}, ["number-too-small"], ["--batch-size must be at least 1"]),
        ({"postprocess": "opn:5"}, [], ["opn"]),
        ({"sam": "vit_b"}, [], ["tiny_vit", "vit_b", "--sam"]),
        (
            {"ckpt": None, "split_csv": (), "batch_size": 0, "gallery": -1, "recipe": "train2_color"},
            ["missing-net", "missing-split-csv", "number-too-small", "augmenting-recipe"],
            ["--ckpt", "--split-csv", "--batch-size", "--gallery", "--recipe"],
        ),
    ],
)
def test_invalid_settings_are_refused(settings, codes, facts, run, tmp_path: Path, user_error) -> None:
    with user_error(*codes) as caught:
        run(**settings)
    for fact in facts:
        assert fact in str(caught.value)
    assert isinstance(caught.value, MissingFileError) == (settings.get("ckpt") == "/nowhere/best.safetensors")
    assert not (tmp_path / "eval").exists()


def test_the_command_prints_tables_and_earlier_results(ckpt: Path, phantoms: Path, tmp_path: Path, capsys) -> None:
    common = ["--split-csv", str(phantoms), "--workers", "0", "--device", "cpu", "--quiet", "--ckpt", str(ckpt)]
    assert main([*common, "--prompts", "gt", "--output", str(tmp_path / "a")]) == 0
    earlier = str(tmp_path / "a/summary.json")
    capsys.readouterr()
    assert main([*common, "--beside", earlier, "--output", str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert "Data set split: 3 images, test rows" in printed
    assert "Intervals over fewer than 20 images are rough" in printed
    assert re.search(r" - \(0\)", printed)  # a size class without images
    assert "nan (0)" not in printed
    lines = [line.split()[:3] for line in printed.splitlines() if line.startswith("APM_IPS_cross ")]
    assert lines == [
        *([["APM_IPS_cross", who, p] for who in ("oracle", "auto") for p in ("reference", "native")]),
        *([["APM_IPS_cross", who, p] for p in ("soft", "prompts") for who in ("oracle", "auto")]),
    ]
    dice = json.loads((tmp_path / "b/summary.json").read_text())["datasets"]["split"]["means"]["native"]["dice"]
    assert f"{dice:.4f}" in next(line for line in printed.splitlines() if line.split()[1:3] == ["auto", "native"])


# --- several draws, and prompts from a file -----------------------------------------------------


def scores(folder: Path) -> list[list[str]]:
    return [[row[n] for n in row if n.startswith((*PROTOCOLS, "predicted"))] for row in per_image(folder)]


def test_several_draws_equal_several_evaluations(run, tmp_path: Path) -> None:
    """N draws in one run equal N runs with their seeds; the summary averages the means of the images."""
    both = run(prompts="gt", prompt_seeds=3, seed=7, output=str(tmp_path / "all")).summary
    rows, lines = scores(tmp_path / "all"), per_image(tmp_path / "all")
    assert [(row["name"][-2:], row["draw"]) for row in lines] == [(n, d) for n in ("09", "10", "11") for d in "012"]
    alone = []
    for draw, seed in enumerate((7, 8, 9)):
        alone.append(run(prompts="gt", seed=seed, output=str(tmp_path / str(seed))).summary)
        assert scores(tmp_path / str(seed)) == rows[draw::3]
    table = both["datasets"]["split"]
    means = [s["datasets"]["split"]["means"] for s in alone]
    for protocol, name in (("native", "dice"), ("soft", "iou_max"), ("reference", "mae")):
        single = [m[protocol][name] for m in means]
        assert table["means"][protocol][name] == pytest.approx(np.mean(single), abs=1e-12)
        assert table["draws"]["deviation"][protocol][name] == pytest.approx(np.std(single, ddof=1), abs=1e-12)
    assert table["draws"]["deviation"]["native"]["dice"] > 0
    assert (table["draws"]["count"], table["draws"]["seeds"]) == (3, [7, 8, 9])
    assert table["pooled"] == alone[0]["datasets"]["split"]["pooled"]
    assert alone[0]["datasets"]["split"]["draws"] == {"count": 1, "seeds": [7], "deviation": None}


def test_images_are_encoded_once_for_all_draws(run, monkeypatch: pytest.MonkeyPatch) -> None:
    from promise.models.promise import Promise

    encoded = []
    real = Promise.encode
    monkeypatch.setattr(Promise, "encode", lambda net, image: encoded.append(len(image)) or real(net, image))
    run(prompts="gt", prompt_seeds=4, cache="off")
    assert sum(encoded) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"prompts": "gt", "prompt_seeds": 2},
        {"prompts": "gt", "gt_points": "3+2", "gt_box": True},
        {"prompts": "gt-box"},
        {"prompts": "centre"},
        {"prompts": "none"},
        {"prompts": "auto"},
    ],
    ids=str,
)
def test_prompts_from_the_written_file_repeat_the_result(settings, run, tmp_path: Path) -> None:
    first = run(**settings, output=str(tmp_path / "a"), gallery=0).summary
    written = tmp_path / "a/prompts.json"
    again = run(prompts=f"file:{written}", output=str(tmp_path / "b"), gallery=0).summary
    assert scores(tmp_path / "a") == scores(tmp_path / "b")
    assert first["prompt_files"] == ["prompts.json"]
    assert (again["prompts"], again["prompt_source"]) == ("file", "file")
    assert {row["prompts"] for row in per_image(tmp_path / "b")} == {"file"}
    assert again["prompt_file"]["source"] == settings["prompts"]
    # As text, because NaN does not equal itself.
    assert json.dumps(again["datasets"]["split"]["draws"]) == json.dumps(first["datasets"]["split"]["draws"])
    assert written.read_text() == (tmp_path / "b/prompts.json").read_text()


def test_prompts_are_written_in_image_pixels(run, phantoms: Path, tmp_path: Path) -> None:
    """Points drawn from the foreground lie in it, for every size of the image."""
    import cv2

    from promise.data.masks import read_mask
    from promise.data.table import read_table

    lines = [phantoms.read_text().splitlines()[0]]
    for row in read_table(phantoms).split("test"):
        image, mask = cv2.imread(str(row.image)), read_mask(row.mask).astype(np.uint8) * 255
        for kind, pixels in (("images", image), ("masks", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            large = cv2.resize(pixels, (192, 128), interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(tmp_path / kind / f"{row.name}.png"), large)
        lines.append(f"images/{row.name}.png,test,masks/{row.name}.png")
    (tmp_path / "large.csv").write_text("\n".join(lines) + "\n")
    run(split_csv=(str(tmp_path / "large.csv"),), prompts="gt", gt_points="5+3", gt_box=True)
    (draw,) = json.loads((tmp_path / "eval/prompts.json").read_text())["draws"]
    assert len(draw["images"]["large"]) == 3
    for name, prompts in draw["images"]["large"].items():
        target = read_mask(tmp_path / "masks" / f"{name}.png")
        assert prompts["size"] == [192, 128]
        assert sorted(prompts["labels"]) == [0] * 3 + [1] * 5
        for (x, y), label in zip(prompts["points"], prompts["labels"], strict=True):
            assert target[round(y), round(x)] == label
        rows, columns = np.nonzero(target)
        edges = [columns.min(), rows.min(), columns.max(), rows.max()]
        assert prompts["box"] == pytest.approx(edges, abs=3)


def test_a_prompts_file_may_hold_different_prompts_per_image(run, tmp_path: Path) -> None:
    """Clicks of a user: numbers of points differ, and one image has only a box."""
    clicks = {
        "phantom_0009": {"size": [64, 64], "points": [[30, 30]], "labels": [1], "box": None},
        "phantom_0010": {"size": [64, 64], "points": [[30, 30], [1, 1], [2, 2]], "labels": [1, 0, 0], "box": None},
        "phantom_0011": {"size": [64, 64], "points": [], "labels": [], "box": [10, 10, 50, 50]},
    }
    path = tmp_path / "clicks.json"
    path.write_text(json.dumps({"version": 1, "source": "clicks", "draws": [{"seed": None, "images": {"x": clicks}}]}))
    run(prompts=f"file:{path}", batch_size=3, output=str(tmp_path / "a"))
    run(prompts=f"file:{path}", batch_size=1, output=str(tmp_path / "b"))
    for a, b in zip(scores(tmp_path / "a"), scores(tmp_path / "b"), strict=True):
        assert [float(v) for v in a] == pytest.approx([float(v) for v in b], abs=1e-4, nan_ok=True)
    images = json.loads((tmp_path / "a/prompts.json").read_text())["draws"][0]["images"]["split"]
    assert {name: len(p["points"]) for name, p in images.items()} == {n: len(p["points"]) for n, p in clicks.items()}


def test_no_prompt_means_no_prompt_token(run, ckpt: Path, phantoms: Path, tmp_path: Path, monkeypatch) -> None:
    from promise.models.sam.frozen import FrozenSam

    tokens = []
    real = FrozenSam._embed_prompts

    def count_tokens(sam: Any, *arguments: Any) -> Any:
        sparse, dense = real(sam, *arguments)
        tokens.append(sparse.shape[1])
        return sparse, dense

    monkeypatch.setattr(FrozenSam, "_embed_prompts", count_tokens)
    summary = run(prompts="none").summary
    assert set(tokens) == {0}
    assert (summary["prompts"], summary["prompt_source"]) == ("none", "none")


def test_points_and_box_are_used_together(run, tmp_path: Path) -> None:
    outcome = {}
    for name, settings in (
        ("points", {"gt_points": "2+2"}),
        ("both", {"gt_points": "2+2", "gt_box": True}),
        ("num", {"num_points": 4}),
    ):
        summary = run(prompts="gt", **settings, output=str(tmp_path / name)).summary
        outcome[name] = scores(tmp_path / name)
        assert summary["prompt_points"] == {"positive": 2, "negative": 2}
        assert summary["prompt_box"] == (name == "both")
    assert outcome["points"] == outcome["num"] != outcome["both"]


def test_faults_of_a_prompts_file_are_reported_before_anything_is_written(run, tmp_path: Path) -> None:
    run(prompts="centre", output=str(tmp_path / "a"))
    value = json.loads((tmp_path / "a/prompts.json").read_text())
    images = value["draws"][0]["images"]["split"]
    del images["phantom_0009"]
    images["phantom_0010"]["points"] = [[99, 1]]
    images["phantom_0011"]["size"] = [3, 3]
    (tmp_path / "bad.json").write_text(json.dumps(value))
    with pytest.raises(UserError) as caught:
        run(prompts=f"file:{tmp_path / 'bad.json'}")
    text = str(caught.value)
    for fact in ("bad.json", "phantom_0009", "phantom_0010", "(99, 1)", "phantom_0011", "[3, 3]", "[64, 64]"):
        assert fact in text
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"prompts": "gtt"}, ["'gtt'", "'gt'"]),
        ({"prompts": "gt", "gt_points": "8"}, ["--gt-points", "8+8", "'8'"]),
        ({"prompts": "gt", "gt_points": "0+0"}, ["--gt-points", "'0+0'"]),
        ({"prompts": "gt", "gt_points": "8+8", "num_points": 4}, ["--gt-points", "--num-points"]),
        ({"prompts": "centre", "gt_box": True}, ["--gt-box", "--prompts gt"]),
        ({"prompts": "centre", "prompt_seeds": 2}, ["--prompt-seeds", "centre"]),
        ({"prompts": "file:/nowhere.json", "prompt_seeds": 2}, ["--prompt-seeds", "file"]),
        ({"prompts": "file:/nowhere.json"}, ["/nowhere.json"]),
        ({"prompt_seeds": 0}, ["--prompt-seeds", "at least 1"]),
        ({"prompt_seeds": 2}, ["--prompt-seeds", "--prompts gt", "APM_IPS_cross"]),
        ({"gt_box": True}, ["--gt-box", "--prompts gt", "APM_IPS_cross"]),
        ({"gallery": -1}, ["--gallery must be at least 0"]),
    ],
)
def test_invalid_settings_of_prompts_are_refused(settings, facts: list[str], run, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(**settings)
    for fact in facts:
        assert fact in str(caught.value)
    assert not (tmp_path / "eval").exists()


# --- where the prompts are ------------------------------------------------------------------------


def double(table: Path, folder: Path) -> Path:
    """The test rows of a split CSV with images and masks of twice the size."""
    import cv2

    from promise.data.table import read_table

    lines = ["image_name,train_type,mask_name"]
    for row in read_table(table).split("test"):
        for kind, path in (("images", row.image), ("masks", row.mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(folder / kind / path.name), pixels.repeat(2, axis=0).repeat(2, axis=1))
        lines.append(f"images/{row.image.name},test,masks/{row.mask.name}")
    (folder / "double.csv").write_text("\n".join(lines) + "\n")
    return folder / "double.csv"


def test_prompts_of_the_ground_truth_are_in_it(run, phantoms: Path, tmp_path: Path) -> None:
    drawn = {"prompts": "gt", "gt_points": "3+5", "gt_box": True, "prompt_seeds": 2}
    summary = run(**drawn, split_csv=(str(phantoms), str(double(phantoms, tmp_path / "doubled")))).summary
    means = {name: table["means"]["prompts"] for name, table in summary["datasets"].items()}
    assert means["split"] == {"positives_inside": 1, "negatives_outside": 1, "box_iou": 1}
    assert means["double"]["positives_inside"] == means["double"]["negatives_outside"] == 1
    # The corners are centres of pixels of the net's input, whose side is half as long.
    assert 0.9 < means["double"]["box_iou"] < 1
    table = summary["datasets"]["split"]
    assert table["intervals"]["prompts"]["box_iou"] == [1, 1]
    assert table["draws"]["deviation"]["prompts"]["positives_inside"] == 0
    assert {row["prompts_box_iou"] for row in per_image(tmp_path / "eval") if row["dataset"] == "split"} == {"1.0"}


def test_prompts_of_the_net_are_scored_as_they_are_written(run, phantoms: Path, tmp_path: Path) -> None:
    from promise.data.masks import read_mask
    from promise.data.table import read_table

    run(split="train")
    written = json.loads((tmp_path / "eval/prompts.json").read_text())["draws"][0]["images"]["split"]
    for row, found in zip(read_table(phantoms).split("train"), per_image(tmp_path / "eval"), strict=True):
        target = read_mask(row.mask)
        inside = [target[round(y), round(x)] for x, y in written[row.name]["points"]]
        assert float(found["prompts_positives_inside"]) == np.mean(inside[:2])
        assert float(found["prompts_negatives_outside"]) == 1 - np.mean(inside[2:])
        assert found["prompts_box_iou"] == "nan"


def test_missing_prompts_have_no_score(run, tmp_path: Path) -> None:
    run(prompts="none", output=str(tmp_path / "none"))
    run(prompts="gt-box", output=str(tmp_path / "box"))
    none, box = (
        json.loads((tmp_path / name / "summary.json").read_text())["datasets"]["split"]["means"]["prompts"]
        for name in ("none", "box")
    )
    assert none == {"positives_inside": None, "negatives_outside": None, "box_iou": None}
    assert box == {"positives_inside": None, "negatives_outside": None, "box_iou": 1}


def test_results_without_scores_of_prompts_are_shown_beside_others(run, tmp_path: Path, user_error) -> None:
    """Results of an earlier version."""
    from promise.evaluation.compare import compare
    from promise.evaluation.reader import read_evaluation
    from promise.evaluation.summary import results_text
    from promise.report.tables import result_tables

    run()
    new, old = (read_evaluation(path) for path in (tmp_path / "eval", Path(__file__).parents[1] / "formats/eval"))
    lines = [line.split()[:3] for line in results_text([old.summary, new.summary]).splitlines()]
    assert [line for line in lines if line[1:] in (["auto", "prompts"], ["oracle", "prompts"])] == [
        ["APM_IPS_cross", "auto", "prompts"]
    ]
    assert "Pos in" not in results_text([old.summary])
    tables = result_tables([old, new], "split")
    assert [table.title.split(" (")[0] for table in tables] == [
        "split: masks",
        "split: probability maps",
        "split: prompts",
    ]
    assert tables[2].header == ("Net", "Prompts", "Protocol", "Pos in", "Neg out", "Box IoU")
    assert [row[0].text for row in tables[2].rows] == ["APM_IPS_cross"]
    assert tables[2].rows[0][5].text == "–"
    assert len(result_tables([old], "split")) == 2
    with user_error("unknown-metric"):
        compare(old, new, metrics=["prompts_positives_inside"])
    paired = compare(new, new, metrics=["prompts_positives_inside"]).results[0]
    assert (paired.images, paired.difference) == (3, 0)


# --- a metric of one's own ------------------------------------------------------------------------


def specificity(pair: Pair) -> float:
    negatives = pair.size - pair.positives
    return 1 - float(pair.fp[0]) / negatives if negatives else 1.0


def largest_value(pair: Pair) -> float:
    return float(pair.pred.max())


def test_a_registered_metric_is_in_all_results(run, tmp_path: Path) -> None:
    """One function and one row per metric; existing columns and keys keep their order."""
    from promise.evaluation.reader import read_evaluation
    from promise.evaluation.summary import results_text
    from promise.report.tables import result_tables

    before = run(output=str(tmp_path / "before")).summary
    columns = {protocol: list(means) for protocol, means in before["datasets"]["split"]["means"].items()}
    rows = [
        Metric(
            *("Specificity", "TN / (TN + FP)", "Yerushalmy 1947"),
            name="specificity",
            compute=specificity,
            overlap=True,
            column="Spec",
        ),
        Metric("Largest value", "max pred", "a test", name="largest", compute=largest_value, kind="map"),
    ]
    try:
        for row in rows:
            register(row)
        with pytest.raises(ValueError, match="specificity"):
            register(rows[0])
        summary = run(output=str(tmp_path / "after")).summary
        lines = per_image(tmp_path / "after")
        means = summary["datasets"]["split"]["means"]
        assert {protocol: list(values) for protocol, values in means.items()} == {
            "reference": [*columns["reference"], "specificity"],
            "native": [*columns["native"], "specificity"],
            "soft": [*columns["soft"], "largest"],
            "prompts": columns["prompts"],
        }
        for protocol in PROTOCOLS:
            assert means[protocol] == pytest.approx(column_means(lines, protocol), nan_ok=True)
        assert 0 < means["native"]["specificity"] < 1
        assert means["soft"]["largest"] == 1
        assert [c for c in lines[0] if c in per_image(tmp_path / "before")[0]] == list(
            per_image(tmp_path / "before")[0]
        )
        evaluation = read_evaluation(tmp_path / "after")
        assert {"native_specificity", "reference_specificity", "soft_largest"} <= set(evaluation.metrics)
        text = results_text([before, summary])  # the earlier result has no such metric
        assert f"{means['native']['specificity']:.4f}" in text
        assert "Spec" in result_tables([evaluation], "split")[0].header
    finally:
        for row in rows:
            METRICS.pop(row.key, None)


# --- statistics, leaks, overlays ------------------------------------------------------------------


def test_the_summary_contains_the_statistics(run, tmp_path: Path) -> None:
    from promise.evaluation.statistics import bootstrap

    summary = run(split="train").summary
    written = json.loads((tmp_path / "eval/summary.json").read_text())
    table, rows = summary["datasets"]["split"], per_image(tmp_path / "eval")
    dice = np.array([[float(row["native_dice"])] for row in rows])
    assert table["intervals"]["native"]["dice"] == pytest.approx(bootstrap(dice)[0].tolist(), abs=1e-9)
    low, high = table["intervals"]["native"]["dice"]
    assert low < table["means"]["native"]["dice"] < high
    both, predicted, target = (
        sum(int(row[n]) for row in rows) for n in ("native_intersection", "native_predicted_pixels", "truth_pixels")
    )
    assert table["pooled"] == {"dice": 2 * both / (predicted + target), "iou": both / (predicted + target - both)}
    for row in rows:
        both, predicted, target = (
            int(row[n]) for n in ("native_intersection", "native_predicted_pixels", "truth_pixels")
        )
        assert float(row["native_dice"]) == pytest.approx(2 * both / (predicted + target))
        assert float(row["foreground_share"]) == target / 64**2
        fraction = float(row["foreground_share"])
        assert row["size_class"] == ("small" if fraction < 0.02 else "medium" if fraction < 0.1 else "large")
    assert table["misses"]["images"] == sum(float(row["native_dice"]) < 0.1 for row in rows)
    assert sum(size["images"] for size in table["by_size"].values()) == 6
    gaps = [abs(float(row["predicted_iou"]) - float(row["native_iou"])) for row in rows]
    assert table["calibration"]["error"] == pytest.approx(np.mean(gaps))
    assert sum(b["images"] for b in table["calibration"]["bins"]) == 6
    assert written["foreground_only"] is True
    assert "foreground alone" in written["statement"]
    assert written["bootstrap"] == {"level": 0.95, "resamples": 2000, "seed": 0, "over": "images"}
    assert written["postprocess_source"] == "default"
    assert written["datasets"]["split"]["by_size"].keys() == {"small", "medium", "large"}


def test_scored_images_of_the_training_are_recognised_by_content(
    run, build, phantoms: Path, tmp_path: Path, caplog
) -> None:
    """A scored image that the net was trained on, under another name."""
    from promise.data.images import content_hash
    from promise.data.table import read_table

    rows = read_table(phantoms).split("test")
    net = build("APM_cross", num_points=4)
    seen = {"train": [content_hash(rows[0].image)], "val": ["0" * 16]}
    metadata = checkpoint.Metadata("APM_cross", "tiny_vit", 4, net.sam.weights_sha256(), seen=seen)
    checkpoint.save(net, tmp_path / "a.safetensors", metadata)
    copy = tmp_path / "data"
    for kind, path in (("images", rows[0].image), ("masks", rows[0].mask)):
        (copy / kind).mkdir(parents=True)
        (copy / kind / "renamed.png").write_bytes(path.read_bytes())
    (copy / "new.csv").write_text("image_name,train_type,mask_name\nimages/renamed.png,test,masks/renamed.png\n")
    summary = run(ckpt=str(tmp_path / "a.safetensors"), split_csv=(str(copy / "new.csv"), str(phantoms))).summary
    assert summary["datasets"]["new"]["seen"] == {"train": 1, "val": 0}
    assert summary["warnings"] == [
        "new: the net was trained on 1 of the 1 scored images; the scores are biased.",
        "split: the net was trained on 1 of the 3 scored images; the scores are biased.",
    ]
    assert summary["notices"] == [
        {"code": "scored-images-trained-on", "data": {"dataset": name, "split": "train", "images": 1, "of": count}}
        for name, count in (("new", 1), ("split", 3))
    ]
    assert json.loads((tmp_path / "eval/summary.json").read_text())["notices"] == summary["notices"]
    assert all(text in caplog.text for text in summary["warnings"])
    assert len({table["data_hash"] for table in summary["datasets"].values()}) == 2


def test_the_gallery_shows_the_best_and_the_worst(run, tmp_path: Path) -> None:
    summary = run(split="train", gallery=1).summary
    rows = {row["name"]: float(row["native_dice"]) for row in per_image(tmp_path / "eval")}
    entries = {entry["kind"]: entry for entry in summary["gallery"]}
    assert entries["best"]["dice"] == max(rows.values())
    assert entries["worst"]["dice"] == min(rows.values())
    assert entries["worst"]["dice"] <= entries["median"]["dice"] <= entries["best"]["dice"]
    for entry in summary["gallery"]:
        assert rows[entry["name"]] == entry["dice"]
        assert read_image(tmp_path / "eval" / entry["picture"]).shape == (512 + 22, 512, 3)
    assert run(gallery=0, overwrite=True).summary["gallery"] == []
    assert list((tmp_path / "eval/gallery").rglob("*.png")) == []


def test_logits_are_freed(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits and the mask of a row are freed soon after it is scored."""
    import weakref

    from promise.evaluation import evaluate as recipe

    alive: list[weakref.ref[Any]] = []
    counts = []
    real, store = recipe.score, recipe._DataSetScorer._store

    def watch(logits: np.ndarray, *arguments: Any, **options: Any) -> Any:
        scored = real(logits, *arguments, **options)
        alive.extend((weakref.ref(logits), weakref.ref(scored.mask)))
        return scored

    def count(*arguments: Any) -> None:
        store(*arguments)
        counts.append(sum(ref() is not None for ref in alive))

    monkeypatch.setattr(recipe, "score", watch)
    monkeypatch.setattr(recipe._DataSetScorer, "_store", count)
    run(split="train", prompts="gt", prompt_seeds=8, batch_size=1)
    assert len(counts) == 48
    assert len(alive) == 96
    assert max(counts) <= 2 * 20


def test_the_command_prints_intervals_and_the_statement(ckpt: Path, phantoms: Path, tmp_path: Path, capsys) -> None:
    common = ["--split-csv", str(phantoms), "--workers", "0", "--device", "cpu", "--quiet", "--ckpt", str(ckpt)]
    flags = [
        "--prompts",
        "gt",
        "--gt-points",
        "2+1",
        "--gt-box",
        "--prompt-seeds",
        "2",
        "--output",
        str(tmp_path / "a"),
    ]
    assert main([*common, *flags]) == 0
    printed = capsys.readouterr().out
    table = json.loads((tmp_path / "a/summary.json").read_text())["datasets"]["split"]
    low, high = table["intervals"]["native"]["dice"]
    mean, spread = table["means"]["native"]["dice"], table["draws"]["deviation"]["native"]["dice"]
    assert f"{mean:.4f} ± {spread:.4f} [{low:.4f}, {high:.4f}]" in printed
    assert f"{table['misses']['images']} of 3" in printed
    assert "All scores are of the foreground alone" in printed
    assert "APM_IPS_cross points and box" in printed
    assert main([*common, "--prompts", f"file:{tmp_path / 'a/prompts.json'}", "--output", str(tmp_path / "b")]) == 0
    assert f"prompts from {tmp_path / 'a/prompts.json'} (source: gt)." in capsys.readouterr().out


# --- other processes, full disks, long names ------------------------------------------------------


def test_a_second_evaluation_in_one_folder_is_refused(run, user_error, hold_folder, tmp_path: Path) -> None:
    hold_folder(tmp_path / "eval")
    with user_error("folder-in-use"):
        run()
    assert [path.name for path in (tmp_path / "eval").iterdir()] == [".promise.lock"]


def test_a_full_disk_keeps_the_scores(run, user_error, small_disk, tmp_path: Path, monkeypatch, caplog) -> None:
    whole = run(output=str(tmp_path / "whole")).folder
    (tmp_path / "spare").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spare"))
    (small_disk / "filler").write_bytes(bytes(2**20 - 2 * 4096))  # a lock fits, the results do not
    with user_error("output-not-writable") as caught:
        run(overlays=1, output=str(small_disk / "eval"))
    (spare,) = (tmp_path / "spare").glob("promise-eval-*")
    assert str(spare) in str(caught.value)
    assert (spare / "per_image.csv").read_text() == (whole / "per_image.csv").read_text()
    assert json.loads((spare / "summary.json").read_text())["datasets"]
    assert "overlays" in caplog.text
    shutil.rmtree(small_disk / "eval", ignore_errors=True)
    with contextlib.suppress(OSError):
        (small_disk / "rest").write_bytes(bytes(2**20))
    with user_error("output-not-writable"):  # before anything is scored
        run(output=str(small_disk / "other"))
    assert len(list((tmp_path / "spare").iterdir())) == 1


def test_names_of_250_bytes_are_drawn(run, phantoms: Path, tmp_path: Path) -> None:
    name = "病" * 82 + "aaaa"
    rows = read_table(phantoms).split("test")
    for kind, path in (("images", rows[0].image), ("masks", rows[0].mask)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{name}.png").write_bytes(path.read_bytes())
    csv_path = tmp_path / "long.csv"
    csv_path.write_text(f"image_name,train_type,mask_name\nimages/{name}.png,test,masks/{name}.png\n")
    folder = run(split_csv=(str(csv_path),), overlays=1).folder
    (drawn,) = (folder / "overlays/long").iterdir()
    assert drawn.name.startswith("病")
    assert per_image(folder)[0]["name"] == name
