"""An export: its files, their results, and invalid input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from promise import checkpoint
from promise.data.phantom import make_phantom
from promise.data.transforms.recipes import build_transform
from promise.evaluation.metrics import evaluate_pair
from promise.export import ExportConfig, Settings, export
from promise.export.exporter import MANIFEST
from promise.export.formats import EXAMPLE, FORMATS, Format
from promise.export.graphs import Graph, LesionsToMask
from promise.inference.postprocess import Postprocess, probability_at
from promise.models.prompters.dense import DensePrompter
from promise.models.prompters.lesions import LesionSettings
from promise.models.sam.weights import file_sha256
from promise.runtime.errors import ExistingRunError
from promise.types import Encoded, Points, Prompts

Expect = Callable[..., Any]


def load(ckpt: Path) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return checkpoint.load(ckpt)


def session(folder: Path, name: str) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])


def test_the_manifest_describes_the_files(exported: Any, ckpt: Path) -> None:
    manifest = json.loads((exported.folder / MANIFEST).read_text())
    files = {graph["file"] for graph in manifest["graphs"].values()}
    assert {path.name for path in exported.folder.iterdir()} == files | {MANIFEST, EXAMPLE}
    assert files == {"encoder.onnx", "prompter.onnx", "decoder.onnx", "image.onnx"}
    for graph in manifest["graphs"].values():
        path = exported.folder / graph["file"]
        assert (graph["bytes"], graph["sha256"]) == (path.stat().st_size, file_sha256(path))
        assert graph["seconds"] > 0
    assert manifest["checkpoint_sha256"] == file_sha256(ckpt)
    assert manifest["sam_sha256"] == load(ckpt)[1].sam_sha256
    assert manifest["normalisation"]["mean"] == [0.485, 0.456, 0.406]
    assert manifest["postprocess"]["text"] == load(ckpt)[1].postprocess
    assert manifest["postprocess"]["kernel"] == 3
    assert manifest["graphs"]["decoder"]["inputs"]["points"] == {"type": "float32", "shape": ["batch", "points", 2]}
    assert all(check["passed"] for check in manifest["checks"]["found"])


@pytest.mark.parametrize("batch", [1, 3])
def test_encoder_takes_an_image_and_the_prompter_any_batch(exported: Any, ckpt: Path, batch: int) -> None:
    net, _ = load(ckpt)
    image = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        encoded = net.encode(image)
        points = net.prompt(encoded).prompts.points
    names = ("embedding", "tap_1", "tap_2", "tap_3")
    encode = session(exported.folder, "encoder")
    each = [encode.run(names, {"image": one[None].numpy()}) for one in image]
    found = {name: np.concatenate(maps) for name, maps in zip(names, zip(*each, strict=True), strict=True)}
    for name, expected in zip(names, (encoded.embedding, *encoded.taps), strict=True):
        np.testing.assert_allclose(found[name], expected.numpy(), rtol=0, atol=1e-4)
    xy, label = session(exported.folder, "prompter").run(None, {name: found[name] for name in names[1:]})
    np.testing.assert_allclose(xy, points.xy.numpy(), rtol=0, atol=1e-3)
    assert (label == points.label.numpy()).all()


@pytest.mark.parametrize(("batch", "count", "box"), [(1, 1, False), (3, 7, False), (2, 0, True), (1, 4, True)])
def test_decoder_takes_any_number_of_points_and_boxes(
    exported: Any, ckpt: Path, batch: int, count: int, box: bool
) -> None:
    net, _ = load(ckpt)
    rng = np.random.default_rng(count)
    embedding = rng.normal(size=(batch, 32, 4, 4)).astype(np.float32)
    xy = rng.uniform(0, 64, (batch, count, 2)).astype(np.float32)
    label = rng.integers(0, 2, (batch, count))
    boxes = np.tile(np.array([5, 9, 40, 51], np.float32), (batch, 1)) if box else None
    with torch.no_grad():
        expected = net.decode(
            Encoded(torch.from_numpy(embedding)),
            Prompts(
                Points(torch.from_numpy(xy), torch.from_numpy(label)),
                None if boxes is None else torch.from_numpy(boxes),
            ),
        )
    more = np.zeros((batch, 1, 2), np.float32) if boxes is None else boxes.reshape(batch, 2, 2)
    kinds = np.tile([[-1]] if boxes is None else [[2, 3]], (batch, 1))
    inputs = {
        "embedding": embedding,
        "points": np.concatenate((xy, more), axis=1),
        "labels": np.concatenate((label, kinds), axis=1),
    }
    logits, iou = session(exported.folder, "decoder").run(["logits", "iou"], inputs)
    assert logits.shape == (batch, 3, 16, 16)
    np.testing.assert_allclose(logits[:, :1], expected.mask_logits.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(iou[:, :1], expected.iou.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (90, 150), (41, 33)])
def test_the_example_writes_the_mask_of_pytorch(
    exported: Any, ckpt: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    pixels, _ = make_phantom(seed=5, index=0, size=(200, 200))
    pixels = np.ascontiguousarray(pixels[: size[0], : size[1]])
    cv2.imwrite(str(tmp_path / "image.png"), pixels[:, :, ::-1])
    command = [sys.executable, str(exported.folder / EXAMPLE), "image.png", "mask.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    mask = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == size
    assert set(np.unique(mask)) <= {0, 255}
    net, metadata = load(ckpt)
    transform = build_transform("basic_color", image_size=64, pixels="imagenet")
    image, _ = transform(torch.from_numpy(pixels).permute(2, 0, 1), torch.zeros(1, *size, dtype=torch.uint8))
    with torch.no_grad():
        prediction = net(image[None])
    probability = probability_at(prediction.mask_logits[0, 0].numpy(), *size)
    expected = Postprocess.parse(metadata.postprocess)(probability)
    assert 0 < expected.mean() < 1
    assert evaluate_pair(mask > 0, expected)["dice"] >= 0.999


def test_the_example_is_short_and_reports_unreadable_images(exported: Any, tmp_path: Path) -> None:
    lines = (exported.folder / EXAMPLE).read_text().splitlines()
    assert len(lines) <= 40
    imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert imported == {"json", "sys", "pathlib", "cv2", "numpy", "onnxruntime"}
    (tmp_path / "text.png").write_text("no image")
    command = [sys.executable, str(exported.folder / EXAMPLE), "text.png", "mask.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "text.png: " in done.stderr
    assert not (tmp_path / "mask.png").exists()


def test_a_net_without_a_prompter_as_torch_programs(save_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "torch"
    manifest = export(
        ExportConfig(str(save_checkpoint("IPS_GT")), str(folder), format="torch", images=1, quiet=True)
    ).manifest
    assert {path.name for path in folder.iterdir()} == {"encoder.pt2", "decoder.pt2", MANIFEST}
    assert manifest["opset"] is None
    assert all(check["passed"] for check in manifest["checks"]["found"])
    module = torch.export.load(folder / "encoder.pt2").module()
    assert module(torch.zeros(1, 3, 64, 64))[0].shape == (1, 32, 4, 4)


def wrong(graph: Any, _path: Path) -> Any:
    """Return a runner with wrong results."""

    def run(inputs: Any) -> Any:
        found = graph.module(*inputs.values())
        return {name: value.numpy() + 0.5 for name, value in zip(graph.outputs, found, strict=True)}

    return run


@pytest.mark.parametrize("before", [False, True])
def test_graphs_that_differ_leave_nothing(
    save_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: bool,
    user_error: Expect,
) -> None:
    broken = Format(
        ".onnx", lambda _graph, path: path.write_text("x"), wrong, runtime="onnxruntime", alternative="torch"
    )
    monkeypatch.setitem(FORMATS, "onnx", broken)
    folder = tmp_path / "new" / "out"
    if before:
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text("of before")
    with user_error("graph-differs") as caught:
        export(ExportConfig(str(save_checkpoint("IPS_GT")), str(folder), images=1, overwrite=before, quiet=True))
    assert re.search(r"encoder: embedding .*\d\.\de-01.*1e-04", str(caught.value))
    assert "--format torch" in str(caught.value)
    left = sorted(path.name for path in tmp_path.rglob("*"))
    assert left == ([MANIFEST, "new", "out"] if before else [])
    assert not before or (folder / MANIFEST).read_text() == "of before"


def test_existing_files_are_not_replaced(ckpt: Path, tmp_path: Path, user_error: Expect) -> None:
    (tmp_path / "encoder.pt2").write_text("precious")
    with user_error("existing-output") as caught:
        export(ExportConfig(str(ckpt), str(tmp_path), quiet=True))
    assert isinstance(caught.value, ExistingRunError)
    assert all(fact in str(caught.value) for fact in ("encoder.pt2", "--overwrite"))
    assert (tmp_path / "encoder.pt2").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "code", "fact"),
    [
        ({"format": "onxx"}, "unknown-format", "Did you mean 'onnx'"),
        ({"images": 0}, "images-out-of-range", "--images"),
        ({"postprocess": "shut:5"}, None, "shut:5"),
        ({"max_lesions": 2}, "net-without-lesions", "--max-lesions 2"),
        ({"lesion_settings": "fuse=2"}, "invalid-lesion-settings", "fuse"),
        ({"ckpt": "absent.safetensors"}, None, "absent.safetensors"),
    ],
)
def test_invalid_input_leaves_no_folder(
    ckpt: Path, tmp_path: Path, change: dict[str, Any], code: str | None, fact: str, user_error: Expect
) -> None:
    config = ExportConfig(**{"ckpt": str(ckpt), "output": str(tmp_path / "out"), "format": "torch", **change})
    with user_error(*([code] if code else [])) as caught:
        export(config)
    assert fact in str(caught.value)
    assert not (tmp_path / "out").exists()


class MapOfEmbedding(torch.nn.Module):
    """The first channels of an embedding as map of lesions."""

    def forward(self, embedding: torch.Tensor, _taps: object) -> torch.Tensor:
        return torch.nn.functional.pixel_shuffle(embedding[:, :4], 2)


def embedding_of(*lesions: tuple[int, int, int, int]) -> torch.Tensor:
    """An embedding (1, 32, 4, 4) with rectangles x0, y0, x1, y1 in its map (8, 8), both ends included."""
    embedding = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(len(lesions)))
    maps = torch.full((1, 1, 8, 8), -4.0)
    for strength, (x0, y0, x1, y1) in enumerate(lesions, start=5):
        maps[:, :, y0 : y1 + 1, x0 : x1 + 1] = strength
    embedding[:, :4] = torch.nn.functional.pixel_unshuffle(maps, 2)
    return embedding


LESIONS = {
    0: (),
    1: ((2, 1, 5, 3),),
    2: ((0, 0, 1, 2), (4, 4, 7, 5)),
    5: ((0, 0, 0, 0), (3, 0, 4, 1), (7, 0, 7, 2), (0, 4, 1, 7), (4, 5, 6, 6)),
}


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=pytest.mark.slow), "torch"])
def test_any_number_of_lesions_is_decoded_as_by_the_net(build: Callable[..., Any], tmp_path: Path, format: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the [export] extra")
        pytest.importorskip("onnxscript", reason="needs the [export] extra")
    net = build("APM_IPS_dense").eval()
    settings = LesionSettings(max_lesions=4, min_score=0.0, fuse=0.3)
    net.apm = DensePrompter(MapOfEmbedding(), num_points=2, image_size=64, settings=settings)
    module = LesionsToMask(net).requires_grad_(False)
    graph = Graph("lesions", module, {"embedding": embedding_of()}, {}, ("logits", "iou", *module.outputs))
    path = tmp_path / f"lesions{FORMATS[format].suffix}"
    FORMATS[format].write(graph, path)
    run = FORMATS[format].open(graph, path)
    for count, lesions in LESIONS.items():
        embedding = embedding_of(*lesions)
        with torch.no_grad():
            expected = net.decode(Encoded(embedding))
        found = run({"embedding": embedding})
        assert len(expected.boxes) == min(count, 4)
        np.testing.assert_allclose(found["logits"], expected.mask_logits.numpy(), rtol=0, atol=1e-4)
        np.testing.assert_allclose(found["iou"], expected.iou.numpy(), rtol=0, atol=1e-4)
        kept = found["scores"] > 0
        np.testing.assert_allclose(found["boxes"][kept].reshape(-1, 4), expected.boxes.numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["APM_dense", "APM_hybrid"])
def test_a_net_that_finds_lesions_is_exported(net: str, save_lesion_net: Callable[..., Path], tmp_path: Path) -> None:
    ckpt = save_lesion_net(tmp_path / "net.safetensors", net, prompts="box+points")
    config = ExportConfig(
        str(ckpt),
        str(tmp_path / "out"),
        format="torch",
        max_lesions=2,
        lesion_settings="prompts=box",
        images=2,
        quiet=True,
    )
    manifest = export(config).manifest
    assert (manifest["lesions"]["max_lesions"], manifest["lesions"]["prompts"]) == (2, "box")
    assert manifest["graphs"]["prompter"]["outputs"] == ["map", "boxes", "scores"]
    assert manifest["graphs"]["decoder"]["outputs"] == ["logits", "iou"]
    assert {"mask", "boxes", "scores", "map"} < set(manifest["graphs"]["image"]["outputs"])
    assert all(check["passed"] for check in manifest["checks"]["found"])
    assert {"map", "boxes"} < {check["what"] for check in manifest["checks"]["found"] if check["graph"] == "image"}


def test_points_of_lesions_are_refused_before_anything_is_written(
    save_lesion_net: Callable[..., Path], tmp_path: Path, user_error: Expect
) -> None:
    ckpt = save_lesion_net(tmp_path / "net.safetensors", "APM_dense", prompts="box+points")
    with user_error("export-of-lesion-points") as caught:
        export(ExportConfig(str(ckpt), str(tmp_path / "out"), format="torch", quiet=True))
    assert all(fact in str(caught.value) for fact in ("prompts=box+points", "--lesion-settings", "prompts=box "))
    assert not (tmp_path / "out").exists()


def test_the_earlier_name_of_the_settings_is_kept() -> None:
    assert Settings is ExportConfig
