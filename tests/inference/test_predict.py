"""``promise-predict``: masks equal those that are scored; interrupted and distributed runs give the same files."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from promise import checkpoint
from promise.cli.predict import main
from promise.data.images import read_image
from promise.data.masks import read_mask
from promise.data.table import read_table
from promise.evaluation.config import EvalConfig
from promise.evaluation.evaluate import evaluate
from promise.evaluation.metrics import binary_metrics
from promise.inference import image_work
from promise.inference.config import PredictConfig
from promise.inference.postprocess import probability_at
from promise.inference.predict import PredictResult, predict
from promise.prompts.file import Draw, write_prompts
from promise.prompts.sets import ImagePrompts, PromptSet
from promise.runtime.errors import ExistingRunError, MissingFileError, UserError

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")
CHILD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("tiny", {conftest!r})
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
import torch
torch.set_num_threads(1)
tiny.register_tiny_vit()
from promise.cli.predict import main
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def ckpt(build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build, tmp_path_factory.mktemp("run") / "best.safetensors")


def save(build: Any, path: Path, name: str = "APM_IPS_cross", **other: Any) -> Path:
    net = build(name, num_points=4, **{k: other.pop(k) for k in ("seed",) if k in other})
    known = {"sam_checkpoint": "random", "seed": 5, **other}
    checkpoint.save(net, path, checkpoint.Metadata(name, "tiny_vit", 4, net.sam.weights_sha256(), **known))
    return path


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Five images of different sizes, two of them in a subfolder, one with the name of another."""
    generator = np.random.default_rng(7)
    folder = tmp_path / "scans"
    names = ("a.png", "b.jpg", "c.tif", "below/a.png", "below/d.bmp")
    for name, size in zip(names, ((50, 90), (64, 64), (33, 17), (120, 70), (40, 41)), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        small = generator.integers(0, 255, (7, 9, 3), np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(small, size, interpolation=cv2.INTER_CUBIC))
    return folder


@pytest.fixture
def run(ckpt: Path, scans: Path, tmp_path: Path) -> Callable[..., PredictResult]:
    common = {"ckpt": str(ckpt), "device": "cpu", "precision": "fp32", "quiet": True, "batch_size": 2}

    def run(*images: Path | str, **other: Any) -> PredictResult:
        paths = tuple(str(i) for i in images) or (str(scans),)
        return predict(PredictConfig(**{**common, "images": paths, "output": str(tmp_path / "out"), **other}))

    return run


def content(folder: Path) -> dict[str, Any]:
    """All files of a folder, without durations and the command line."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == "predict.json":
            continue
        text = path.read_bytes()
        found[name] = _timeless(json.loads(text)) if name.endswith(".json") else text
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k != "seconds"}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def images_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "prompts.json").read_text())["draws"][0]["images"]["images"]


def test_outputs_mirror_the_input_folder(run, scans, tmp_path) -> None:
    result = run(scans, recursive=True, probability=True, overlay=True, contour=True)
    out = tmp_path / "out"
    assert (result.folder, result.images, result.made, result.failed) == (out, 5, 5, ())
    names = ["a", "b", "below/a", "below/d", "c"]
    for folder in ("masks", "probabilities", "overlays"):
        assert sorted(p.relative_to(out / folder).as_posix() for p in (out / folder).rglob("*.png")) == [
            f"{n}.png" for n in names
        ]
    assert {p.name for p in out.iterdir()} == {
        "masks", "probabilities", "overlays", "records", "prompts.json", "contours.json", "predict.json",
    }  # fmt: skip
    for name, path in (("a", "a.png"), ("below/a", "below/a.png"), ("c", "c.tif")):
        image = read_image(scans / path)
        levels = cv2.imread(str(out / f"masks/{name}.png"), cv2.IMREAD_UNCHANGED)
        assert levels.shape == image.shape[:2]
        assert set(np.unique(levels)) == {0, 255}
        probability = cv2.imread(str(out / f"probabilities/{name}.png"), cv2.IMREAD_UNCHANGED)
        assert probability.dtype == np.uint16
        assert ((probability / 65535 >= 0.5) == (levels > 0)).mean() > 0.999
    assert not np.array_equal(read_mask(out / "masks/a.png"), read_mask(out / "masks/below/a.png"))


def test_prompts_are_written_in_pixels_of_the_image(run, scans, tmp_path) -> None:
    run(scans)
    entries = images_of(tmp_path / "out")
    assert list(entries) == ["a", "b", "c"]
    one = entries["a"]
    assert one["size"] == [50, 90]
    assert len(one["points"]) == 4
    assert one["labels"] == [1, 1, 0, 0]
    assert one["box"] is None
    assert isinstance(one["iou"], float)
    assert one["seconds"] > 0


def test_contours_equal_the_masks(run, scans, tmp_path) -> None:
    run(scans, contour=True)
    coco = json.loads((tmp_path / "out/contours.json").read_text())
    assert [i["file_name"] for i in coco["images"]] == ["a.png", "b.jpg", "c.tif"]
    files = {i["id"]: (i["file_name"].split(".")[0], i["width"], i["height"]) for i in coco["images"]}
    assert len(coco["annotations"]) == 3
    for one in coco["annotations"]:
        name, width, height = files[one["image_id"]]
        mask = read_mask(tmp_path / f"out/masks/{name}.png")
        assert mask.shape == (height, width)
        assert one["area"] == mask.sum()


def test_masks_equal_those_that_are_scored(ckpt, run, phantoms, tmp_path) -> None:
    for folder, prompts in (("auto", None), ("clicks", "gt")):
        evaluate(
            EvalConfig(
                ckpt=str(ckpt), split_csv=(str(phantoms),), split="train", device="cpu", precision="fp32", workers=0,
                batch_size=4, cache="off", quiet=True, prompts=prompts, seed=3, output=str(tmp_path / folder),
            )
        )  # fmt: skip
        source = str(tmp_path / folder / "prompts.json") if prompts else None
        out = tmp_path / f"masks-{folder}"
        run(phantoms, split="train", batch_size=4, prompts_from=source, output=str(out))
        rows = read_table(phantoms).split("train")
        with (tmp_path / folder / "per_image.csv").open() as stream:
            for line, row in zip(csv.DictReader(stream), rows, strict=True):
                mask = read_mask(out / f"masks/{row.name}.png")
                assert float(line["native_dice"]) == binary_metrics(mask, read_mask(row.mask))["dice"]
                assert int(line["native_predicted_pixels"]) == mask.sum()
                assert float(line["predicted_iou"]) == images_of(out)[row.name]["iou"]
    theirs, ours = (json.loads((tmp_path / f / "prompts.json").read_text()) for f in ("clicks", "masks-clicks"))
    assert ours["source"] == theirs["source"] == "gt"
    for name, one in theirs["draws"][0]["images"]["split"].items():  # an evaluation can read both files
        assert {**one, **images_of(tmp_path / "masks-clicks")[name]}.keys() - one.keys() == {"iou", "seconds"}
        np.testing.assert_allclose(images_of(tmp_path / "masks-clicks")[name]["points"], one["points"], atol=1e-5)


def test_written_prompts_repeat_the_masks_and_edited_ones_change_them(run, scans, tmp_path, user_error) -> None:
    run(scans)
    same = tmp_path / "same"
    run(scans, prompts_from=str(tmp_path / "out/prompts.json"), output=str(same))
    for name in "abc":
        assert (same / f"masks/{name}.png").read_bytes() == (tmp_path / f"out/masks/{name}.png").read_bytes()
    value = json.loads((tmp_path / "out/prompts.json").read_text())
    value["draws"][0]["images"]["images"]["b"] |= {"points": [[3, 4]], "labels": [1], "box": [2, 2, 30, 40]}
    (tmp_path / "edited.json").write_text(json.dumps(value))
    run(scans, prompts_from=str(tmp_path / "edited.json"), output=str(tmp_path / "edited"))
    entries = images_of(tmp_path / "edited")
    assert entries["b"]["points"] == [pytest.approx([3, 4], abs=1e-4)]
    assert entries["b"]["box"] == pytest.approx([2, 2, 30, 40], abs=1e-4)
    changed = [
        (tmp_path / f"edited/masks/{n}.png").read_bytes() != (same / f"masks/{n}.png").read_bytes() for n in "abc"
    ]
    assert changed == [False, True, False]
    with user_error("prompts-in-output"):
        run(scans, prompts_from=str(tmp_path / "out/prompts.json"), overwrite=True)


def test_existing_results_are_kept_without_loading_a_net(run, scans, tmp_path, monkeypatch) -> None:
    run(scans)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out/masks").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(image_work, "load_net", lambda *_, **__: pytest.fail("a net was loaded"))
        assert run(scans).made == 0
        (scans / "corrupted.png").write_bytes(b"no image")
        assert [Path(path).name for path, _ in run(scans).failed] == ["corrupted.png"]
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out/masks").iterdir()} == before
    shutil.copy(scans / "a.png", scans / "e.png")
    result = run(scans)
    assert (result.made, len(result.failed)) == (1, 1)
    assert {p: p.stat().st_mtime_ns for p in before} == {p: time for p, (time, _) in before.items()}
    assert list(images_of(tmp_path / "out")) == ["a", "b", "c", "e"]
    assert run(scans, overwrite=True).made == 4


def test_further_outputs_can_be_added_later(run, scans, tmp_path) -> None:
    run(scans)
    assert run(scans, probability=True, contour=True).made == 3
    assert run(scans).made == 0
    assert len(list((tmp_path / "out/probabilities").iterdir())) == 3
    (tmp_path / "out/probabilities/b.png").unlink()
    assert run(scans, probability=True).made == 1


def test_other_weights_or_settings_are_not_mixed(run, build, scans, tmp_path, user_error) -> None:
    run(scans)
    run(scans / "below", output=str(tmp_path / "other"))
    before = content(tmp_path / "out")
    other = save(build, tmp_path / "other.safetensors", seed=9)
    for change, pattern in (
        ({"ckpt": str(other)}, "checkpoint is [0-9a-f]{12}… and was [0-9a-f]{12}…"),
        ({"postprocess": "open:3"}, "postprocess is open:3 and was as the checkpoint says"),
        ({"prompts_from": str(tmp_path / "other/prompts.json")}, "prompts is [0-9a-f]{12}… and was auto"),
    ):
        with user_error("predictions-of-other-settings") as caught:
            run(scans, **change)
        assert isinstance(caught.value, ExistingRunError)
        assert re.search(pattern, str(caught.value))
        assert "--overwrite" in str(caught.value)
    assert content(tmp_path / "out") == before
    (scans / "a.png").unlink()
    assert run(scans, ckpt=str(other), overwrite=True).made == 2
    assert sorted(p.name for p in (tmp_path / "out/masks").iterdir()) == [
        "b.png",
        "c.png",
    ]  # a.png was made by the other net
    shutil.rmtree(tmp_path / "out/records")
    (tmp_path / "out/predict.json").unlink()
    with user_error("foreign-output") as caught:
        run(scans)
    assert "prompts.json, masks, but no predict.json" in str(caught.value)


def test_changed_images_are_recomputed_and_others_of_the_same_name_refused(run, scans, tmp_path, user_error) -> None:
    run(scans / "a.png")
    os.utime(scans / "a.png", (1, 1))  # touched, not changed
    assert run(scans / "a.png").made == 0
    shutil.copytree(scans, tmp_path / "moved")
    assert run(tmp_path / "moved/a.png").made == 0
    with user_error("name-of-another-image") as caught:
        run(scans / "below/a.png")
    assert re.search(r"below/a\.png: .*out/masks/a\.png belongs to .*scans/a\.png", str(caught.value))
    before = (tmp_path / "out/masks/a.png").read_bytes()
    shutil.copy(scans / "below/a.png", scans / "a.png")
    assert run(scans / "a.png").made == 1
    assert (tmp_path / "out/masks/a.png").read_bytes() != before


def test_outputs_are_not_inputs(run, scans) -> None:
    assert run(scans, recursive=True, output=str(scans / "out")).made == 5
    assert run(scans, recursive=True, output=str(scans / "out")).images == 5


def test_an_unreadable_image_does_not_stop_the_rest(ckpt, scans, tmp_path, capsys) -> None:
    whole = (scans / "a.png").read_bytes()
    (scans / "cut.png").write_bytes(whole[: len(whole) // 2])
    (scans / "empty.png").touch()
    common = ["--ckpt", str(ckpt), "--device", "cpu", "--quiet", "--output", str(tmp_path / "out"), str(scans)]
    assert main(common) == 3
    printed = capsys.readouterr()
    assert printed.out == f"3 masks written: {tmp_path / 'out/masks'}\n"
    lines = printed.err.splitlines()
    assert lines[0] == "promise-predict: 2 of 5 images could not be used:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [str(scans / "cut.png"), str(scans / "empty.png")]
    (scans / "cut.png").write_bytes(whole)
    (scans / "empty.png").unlink()
    assert main(common) == 0
    assert capsys.readouterr().out == f"1 mask written, 3 already existed: {tmp_path / 'out/masks'}\n"
    assert np.array_equal(read_mask(tmp_path / "out/masks/cut.png"), read_mask(tmp_path / "out/masks/a.png"))


@pytest.mark.parametrize(
    ("settings", "codes", "facts"),
    [
        (
            {"ckpt": None, "output": None, "batch_size": 0},
            ["missing-checkpoint-setting", "missing-output-setting", "invalid-count"],
            ["--ckpt", "--output", "--batch-size"],
        ),
        ({"ckpt": "/nowhere/best.safetensors"}, None, ["/nowhere/best.safetensors"]),
        ({"images": ("/nowhere/a.png", "/nowhere/*.png")}, None, ["/nowhere/a.png", "/nowhere/*.png"]),
        ({"prompts_from": "/nowhere/p.json"}, ["missing-prompts-file"], ["/nowhere/p.json"]),
        (
            {"ckpt": "/nowhere/b.pt", "images": ("/nowhere/a.png",), "prompts_from": "/nowhere/p.json"},
            None,
            ["/nowhere/b.pt", "\n  /nowhere/a.png", "/nowhere/p.json"],
        ),
        ({"postprocess": "opn"}, ["invalid-postprocess"], ["opn"]),
        ({"images": ()}, ["missing-images"], ["files"]),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(settings, codes, facts, run, tmp_path) -> None:
    with pytest.raises(UserError) as caught:
        run(**settings)
    assert codes in (None, list(caught.value.codes))
    missing = settings.get("ckpt") == "/nowhere/best.safetensors" or settings.keys() == {"prompts_from"}
    assert isinstance(caught.value, MissingFileError) == missing
    places = [str(caught.value).index(fact) for fact in facts]
    assert places == sorted(places)
    assert not (tmp_path / "out").exists()


def test_a_net_without_a_prompter_requires_prompts(run, build, scans, tmp_path, user_error) -> None:
    path = str(save(build, tmp_path / "ips.safetensors", "IPS_GT"))
    with user_error("net-without-prompter") as caught:
        run(scans, ckpt=path)
    assert "IPS_GT" in str(caught.value)
    assert "--prompts-from" in str(caught.value)
    assert not (tmp_path / "out").exists()
    one = {"size": [50, 90], "points": [[5, 6]], "labels": [1], "box": None, "note": "mine"}
    (tmp_path / "p.json").write_text(json.dumps({"version": 1, "draws": [{"images": {"x": {"a": one}}}]}))
    assert run(scans / "a.png", ckpt=path, prompts_from=str(tmp_path / "p.json")).made == 1
    with user_error("missing-prompts") as caught:
        run(scans, ckpt=path, prompts_from=str(tmp_path / "p.json"), output=str(tmp_path / "more"))
    assert re.search(r"(?s)b: is missing.*c: is missing", str(caught.value))


def test_mask_prompts_and_mask_index_of_a_file_are_used(run, scans, tmp_path, user_error) -> None:
    def write(mask: np.ndarray | None = None, **changed: Any) -> str:
        sets = (PromptSet(np.array([[20.0, 30]]), np.array([1]), mask=mask),)
        point = ImagePrompts((50, 90), sets, **changed)
        write_prompts(tmp_path / "p.json", "clicks", [Draw(None, {"images": {"a": point}})])
        return str(tmp_path / "p.json")

    mask = np.random.default_rng(0).normal(0, 5, (16, 16)).astype(np.float32)
    masks = set()
    for name, changed in (("plain", {}), ("mask", {"mask": mask}), ("index", {"mask_index": 1})):
        out = tmp_path / name
        run(scans / "a.png", prompts_from=write(**changed), output=str(out))
        masks.add((out / "masks/a.png").read_bytes())
        assert json.loads((out / "prompts.json").read_text())["version"] == (2 if changed else 1)
        again = tmp_path / f"{name}-again"
        run(scans / "a.png", prompts_from=str(out / "prompts.json"), output=str(again))
        assert content(again) == content(out)
    assert len(masks) == 3
    with user_error("mask-shape-mismatch") as caught:
        run(scans / "a.png", prompts_from=write(mask=mask[:8, :8]), output=str(tmp_path / "small"))
    assert "[8, 8]" in str(caught.value)
    assert not (tmp_path / "small").exists()


def test_the_tuned_postprocessing_is_used(run, build, scans, tmp_path) -> None:
    tuned = save(build, tmp_path / "tuned.safetensors", postprocess="threshold:0.7")
    run(scans)
    run(scans, ckpt=str(tuned), output=str(tmp_path / "tuned"))
    masks = [read_mask(tmp_path / folder / "masks/a.png") for folder in ("out", "tuned")]
    assert not (masks[1] & ~masks[0]).any()
    assert masks[1].sum() < masks[0].sum()
    assert probability_at(np.zeros((4, 4), np.float32), 2, 2).max() == 0.5


# --- interruptions and several processes -----------------------------------------------------------


FLAGS = ["--device", "cpu", "--precision", "fp32", "--batch-size", "2", "--contour", "--probability", "--quiet"]


@pytest.fixture
def many(tmp_path) -> Path:
    generator = np.random.default_rng(2)
    (tmp_path / "many").mkdir()
    for number in range(60):
        pixels = cv2.resize(generator.integers(0, 255, (6, 6, 3), np.uint8), (60 + number, 80))
        Image.fromarray(pixels).save(tmp_path / f"many/{number:02}.png")
    (tmp_path / "many/bad.png").write_bytes(b"x")
    return tmp_path / "many"


def files(folder: Path) -> int:
    return len(list(folder.rglob("*.*")))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals")
@pytest.mark.timeout(240)
def test_an_interrupted_and_resumed_run_leaves_the_files_of_one_run(run, ckpt, many, tmp_path) -> None:
    """Ten runs are each killed after some further files."""
    whole, out = tmp_path / "whole", tmp_path / "killed"
    run(many, output=str(whole), contour=True, probability=True)
    generator, kills = random.Random(4), 0
    for _ in range(10):
        target = files(out) + generator.randint(1, 7)
        pid = os.fork()
        if pid == 0:
            try:
                main(["--ckpt", str(ckpt), *FLAGS, "--output", str(out), str(many)])
            finally:
                os._exit(1)
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if files(out) >= target:
                time.sleep(generator.random() / 100)
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.004)
        kills += os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert kills >= 8
    assert 0 < len(list((out / "records").glob("*.json"))) < 60
    (out / "masks/.promise-07-left.png").write_bytes(b"half")  # left by an interrupted write
    result = run(many, output=str(out), contour=True, probability=True)
    assert 0 < result.made < 60
    assert [Path(path).name for path, _ in result.failed] == ["bad.png"]
    assert content(out) == content(whole)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_images_are_distributed_among_processes(run, ckpt, many, tmp_path) -> None:
    whole, out, script = tmp_path / "whole", tmp_path / "two", tmp_path / "child.py"
    run(many, output=str(whole), contour=True, probability=True)
    child = CHILD.format(conftest=str(Path(__file__).parents[1] / "conftest.py"))
    script.write_text(f"{child}sys.exit(main(sys.argv[1:]))\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", "2"]
    launch += ["--master_port", str(free_port()), str(script), "--ckpt", str(ckpt), *FLAGS]
    command = [*launch, "--output", str(out), str(many)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.splitlines() == [f"60 masks written: {out / 'masks'}"]  # 60 in all: none was written twice
    assert "bad.png: " in done.stderr
    assert done.returncode != 0
    assert content(out) == content(whole)


# --- names, special files, other processes --------------------------------------------------------


def test_files_that_cannot_be_used_do_not_stop_the_rest(ckpt, scans, tmp_path, capsys, monkeypatch) -> None:
    os.mkfifo(scans / "fifo.png")
    (scans / "broken.png").symlink_to("/nowhere/annex/broken.png")
    Image.new("L", (3000, 3000)).save(scans / "huge.png")
    monkeypatch.setenv("PROMISE_MAX_PIXELS", "1000000")
    longest = "病" * 83 + "aaaaaa"  # 255 bytes, to which the mask adds .png
    data = pytest.importorskip("pydicom").dcmread(make_dicom(tmp_path / "a.dcm"))
    data.save_as(scans / longest)
    arguments = ["--ckpt", str(ckpt), "--device", "cpu", "--quiet", "--output", str(tmp_path / "out"), str(scans)]
    assert main(arguments) == 3
    printed = capsys.readouterr()
    assert printed.out.startswith("3 masks written")
    lines = printed.err.splitlines()
    assert lines[0] == "promise-predict: 4 of 7 images could not be used:"
    texts = ("a link to /nowhere/annex", "a named pipe", "3000 × 3000 pixels", "File name too long")
    assert all(any(text in line for line in lines[1:]) for text in texts)
    assert len(json.loads((tmp_path / "out/prompts.json").read_text())["draws"][0]["images"]["images"]) == 3


@pytest.mark.parametrize("size", [243, 251])
def test_long_names_are_kept(size: int, ckpt, scans, tmp_path, capsys) -> None:
    name = "病" * (size // 3) + "a" * (size % 3)
    (scans / "a.png").rename(scans / f"{name}.png")
    arguments = ["--ckpt", str(ckpt), "--device", "cpu", "--quiet", "--output", str(tmp_path / "out"), str(scans)]
    assert main(arguments) == 0
    assert (tmp_path / f"out/masks/{name}.png").is_file()
    capsys.readouterr()
    assert main(arguments) == 0
    assert "3 already existed" in capsys.readouterr().out


def test_a_second_prediction_in_one_folder_is_refused(ckpt, scans, tmp_path, capsys, hold_folder) -> None:
    hold_folder(tmp_path / "out")
    arguments = ["--ckpt", str(ckpt), "--device", "cpu", "--quiet", "--output", str(tmp_path / "out"), str(scans)]
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is in use by" in line
    assert not (tmp_path / "out/masks").exists()


def test_a_full_disk_keeps_the_masks(ckpt, scans, tmp_path, capsys, limit_file_size) -> None:
    arguments = ["--ckpt", str(ckpt), "--device", "cpu", "--quiet", "--output", str(tmp_path / "out"), str(scans)]
    assert main(arguments) == 0
    sizes = [path.stat().st_size for path in (tmp_path / "out/masks").iterdir()]
    capsys.readouterr()
    limit_file_size(max(sizes))  # overlays do not fit
    assert main([*arguments, "--overlay"]) == 1
    limit_file_size(10**9)
    assert len([line for line in capsys.readouterr().err.splitlines() if line]) == 1
    assert len(list((tmp_path / "out/masks").iterdir())) == 3
    assert main([*arguments, "--overlay"]) == 0


def make_dicom(path: Path) -> Path:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 64, 64, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelData = bytes(range(256)) * 16
    data.save_as(path, enforce_file_format=False)
    return path


# --- large images -----------------------------------------------------------------------------------

MEASURED = """
import re, pathlib, shutil
def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
*options, small, large = sys.argv[1:]
assert main([*options, "--output", small + "-out", small]) == 0
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
before = memory("VmRSS")
assert main([*options, "--output", large + "-out", large]) == 0
print("bytes:", memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux")
def test_the_memory_for_large_images_is_at_most_ten_bytes_per_pixel(ckpt, tmp_path) -> None:
    """Two images in two threads, one after the other; 64 MiB more are for what does not depend on their size."""
    side = 6000
    assert side**2 > image_work.LARGE
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    for folder, size, count in (("small", 64, 1), ("large", side, 2)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            enlarged = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(tmp_path / folder / f"{number}.jpg"), enlarged)
    options = ["--ckpt", str(ckpt), "--device", "cpu", "--precision", "fp32", "--quiet", "--workers", "2"]
    script = tmp_path / "measure.py"
    script.write_text(CHILD.format(conftest=str(Path(__file__).parents[1] / "conftest.py")) + MEASURED)
    command = [sys.executable, str(script), *options, str(tmp_path / "small"), str(tmp_path / "large")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert cv2.imread(str(tmp_path / "large-out/masks/1.png"), cv2.IMREAD_UNCHANGED).shape == (side, side)
    assert int(printed.split("bytes:")[1]) <= 10 * side**2 + 2**26


def test_levels_of_a_map_do_not_depend_on_the_strips(monkeypatch) -> None:
    probability = np.random.default_rng(0).random((37, 21), np.float32)
    monkeypatch.setattr(image_work, "STRIP", 100)
    expected = np.rint(probability.astype(np.float64) * 65535).astype(np.uint16)
    np.testing.assert_array_equal(image_work._grey(probability), expected)
    np.testing.assert_array_equal(image_work._grey(probability > 0.5), np.where(probability > 0.5, 255, 0))
