"""Loaders of cached features: equal results with and without a cache, and when rows are cached."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from promise.data.dataset import SegmentationDataset
from promise.evaluation.config import EvalConfig
from promise.evaluation.evaluate import evaluate
from promise.features import loader as module
from promise.features.dataset import CachedDataset
from promise.features.loader import CacheOptions, cached_or_raw
from promise.features.store import list_spaces
from promise.training.config import TrainConfig
from promise.training.run import train

pytestmark = [
    pytest.mark.filterwarnings("ignore:SAM .* has random weights"),
    pytest.mark.usefixtures("undrawn_curves"),
]

SMALL: dict[str, Any] = {
    "net": "APM_IPS_cross",  # a thousandth of the ResNet head, whose files take seconds to write
    "num_points": 4,
    "epochs": 2,
    "batch_size": 2,
    "augment": "basic_color",
    "workers": 0,
    "device": "cpu",
    "precision": "fp32",
    "seed": 5,
    "tensorboard": False,
    "quiet": True,
}


@pytest.fixture
def run(tiny_vit: str, phantoms: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, **other: Any) -> Path:
        settings = {**SMALL, "sam": tiny_vit, "split_csv": str(phantoms), "output": str(tmp_path / name), **other}
        return train(TrainConfig(**settings)).folder

    return run


def learned(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "last.safetensors")


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("net", ["APM_IPS_cross", "IPS_GT"])
def test_training_from_features_equals_training_from_pixels(net, run, own_features) -> None:
    plain = run("plain", net=net, cache="off")
    assert not own_features.exists()
    first, again = run("first", net=net, cache="all"), run("again", net=net, cache="all", workers=1)
    assert sum(space.entries for space in list_spaces(own_features)) == 9  # train and val rows are in one space
    for folder in (first, again):
        assert all(torch.equal(learned(folder)[name], value) for name, value in learned(plain).items())
        assert logged(folder) == logged(plain)


def test_features_in_another_precision_give_similar_scores(run) -> None:
    plain = logged(run("plain"))
    for stored, precision in (("bf16", "fp32"), ("fp32", "bf16"), ("bf16", "bf16")):
        other = run(f"{stored}-{precision}", cache="all", cache_dtype=stored, precision=precision)
        for a, b in zip(plain, logged(other), strict=True):
            assert b["train_loss"] == pytest.approx(a["train_loss"], rel=2e-2), (stored, precision)
            assert b["val_dice"] == pytest.approx(a["val_dice"], abs=5e-2), (stored, precision)


def test_default_caches_validation_rows_only(run, own_features) -> None:
    run("default")
    assert [space.entries for space in list_spaces(own_features)] == [3]


def test_scores_from_features_equal_scores_from_pixels(run, tmp_path, phantoms, own_features) -> None:
    ckpt = str(run("trained", epochs=1, cache="off") / "best.safetensors")
    common: dict[str, Any] = {"ckpt": ckpt, "split_csv": (str(phantoms),), "workers": 0, "device": "cpu", "quiet": True}
    means = []
    for name, cache in (("off", "off"), ("fresh", "eval"), ("found", "eval")):
        result = evaluate(EvalConfig(**common, cache=cache, precision="fp32", output=str(tmp_path / name)))
        means.append(result.summary["datasets"]["split"]["means"]["native"])
    assert means[0] == means[1] == means[2]


# --- when rows are cached -------------------------------------------------------------------------


def load(build, dataset, folder: Path, *, policy: str, training: bool, recipe: str = "basic_color", **other: Any):
    net = build("IPS_GT", freeze=other.pop("freeze", "FZ0"), **other)
    settings = CacheOptions(policy, folder, workers=0, quiet=True)
    loaded, _ = cached_or_raw(
        dataset(recipe), net, settings, recipe=recipe, training=training, device=torch.device("cpu")
    )
    return loaded


def test_free_space_is_checked_before_writing(build, dataset, tmp_path, monkeypatch, user_error) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _: 10_000)
    with user_error("cache-too-large") as caught:
        load(build, dataset, tmp_path / "f", policy="all", training=True)
    for fact in ("6 images", "GiB", str(tmp_path / "f"), "--cache-dir", "promise-cache prune", "--cache off"):
        assert fact in str(caught.value)
    assert isinstance(load(build, dataset, tmp_path / "f", policy="eval", training=False), SegmentationDataset)
    assert not (tmp_path / "f").exists()
    # Existing features need no room.
    monkeypatch.setattr(module, "free_bytes", lambda _: 10**9)
    load(build, dataset, tmp_path / "f", policy="all", training=True)
    monkeypatch.setattr(module, "free_bytes", lambda _: 0)
    assert isinstance(load(build, dataset, tmp_path / "f", policy="eval", training=False), CachedDataset)


def test_a_folder_that_is_not_writable_disables_the_cache(build, dataset, tmp_path, caplog, user_error) -> None:
    (tmp_path / "file").touch()
    plain = load(build, dataset, tmp_path / "file/f", policy="eval", training=False)
    assert isinstance(plain, SegmentationDataset)
    assert all(fact in caplog.text for fact in ("not cached", str(tmp_path / "file/f"), "--cache-dir"))
    with user_error("cache-not-writable") as caught:
        load(build, dataset, tmp_path / "file/f", policy="all", training=True)
    assert all(fact in str(caught.value) for fact in (str(tmp_path / "file/f"), "--cache-dir", "--cache off"))


@pytest.mark.parametrize("policy", ["eval", "all"])
def test_features_that_fit_into_a_gpu_are_held(policy: str, build, dataset, tmp_path, monkeypatch) -> None:
    def held(free: int, **other: Any) -> bool:
        monkeypatch.setattr(module, "free_gpu_memory", lambda _: free)
        settings = CacheOptions(policy, tmp_path, workers=0, quiet=True, **other)
        device = torch.device("cpu")
        rows, net = dataset("basic_color"), build("IPS_GT")
        cached, _ = cached_or_raw(rows, net, settings, recipe="basic_color", training=policy == "all", device=device)
        assert isinstance(cached, CachedDataset)
        return cached.held

    assert held(10**9) == (policy == "all")
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert held(3 * size) == (policy == "all")
    assert not held(2 * size)  # half of it would be taken
    assert not held(0)  # no GPU
    assert not held(10**9, memory="off")


def test_estimated_size_is_the_size_on_disk(build, dataset, tmp_path, monkeypatch) -> None:
    estimates = []
    monkeypatch.setattr(module, "_has_room", lambda *_, needed, **__: estimates.append(needed) or True)
    load(build, dataset, tmp_path, policy="all", training=True)
    (space,) = list_spaces(tmp_path)
    assert estimates[0] <= space.size < estimates[0] + 6 * 600  # six headers


def test_a_trained_encoder_is_not_cached(build, dataset, tmp_path, user_error) -> None:
    with user_error("cache-of-trained-encoder") as caught:
        load(build, dataset, tmp_path, policy="all", training=True, freeze="FZ4")
    assert all(fact in str(caught.value) for fact in ("--cache all", "--freeze FZ4", "--cache off"))
    plain = load(build, dataset, tmp_path, policy="eval", training=False, freeze="FZ4")
    assert isinstance(plain, SegmentationDataset)


def test_fixed_views_of_a_random_recipe_cause_a_warning(build, dataset, tmp_path, caplog) -> None:
    caplog.set_level(logging.WARNING)
    load(build, dataset, tmp_path, policy="all", training=True, recipe="train2_color")
    assert all(fact in caplog.text for fact in ("--cache all", "1 fixed view ", "epoch 1,"))
    caplog.clear()
    load(build, dataset, tmp_path, policy="all", training=True)
    assert caplog.text == ""


def test_weights_precision_and_normalisation_select_the_space(build, dataset, tmp_path) -> None:
    load(build, dataset, tmp_path, policy="all", training=True)
    load(build, dataset, tmp_path, policy="all", training=True)
    assert len(list_spaces(tmp_path)) == 1
    load(build, dataset, tmp_path, policy="all", training=True, precision="bf16")
    load(build, dataset, tmp_path, policy="all", training=True, recipe="basic_gray")
    assert len(list_spaces(tmp_path)) == 3
    net = build("IPS_GT")
    with torch.no_grad():
        net.sam.image_encoder.neck[0].weight[0, 0] += 1e-6
    settings = CacheOptions("all", tmp_path, workers=0, quiet=True)
    cached_or_raw(dataset(), net, settings, recipe="basic_color", training=True, device=torch.device("cpu"))
    assert len(list_spaces(tmp_path)) == 4


@pytest.mark.parametrize("fault", ["full", "file"])
def test_a_cache_that_cannot_be_written_does_not_cost_the_run(fault, run, request, monkeypatch, caplog) -> None:
    folder = request.getfixturevalue("small_disk" if fault == "full" else "tmp_path") / "features"
    if fault == "full":
        (folder.parent / "filler").write_bytes(bytes(2**20 - 4096))
        monkeypatch.setitem(module.MAX_FRACTION, "eval", 1e9)  # the room is lost while features are written
    else:
        folder.write_text("a file, below which nothing can be written")
    plain = run("plain", cache="off", epochs=1, net="IPS_GT")
    cached = run("cached", cache="eval", epochs=1, net="IPS_GT", cache_dir=str(folder))
    assert "features are not cached" in caplog.text
    assert logged(cached) == logged(plain)


def test_without_a_home_nothing_is_cached(run, monkeypatch, caplog, user_error) -> None:
    for name in ("HOME", "PROMISE_FEATURES", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # an arbitrary uid of a container
    assert run("run", epochs=1, cache="eval").is_dir()
    assert "no home folder for the cache" in caplog.text
    with user_error("cache-not-writable"):
        run("all", epochs=1, cache="all")
