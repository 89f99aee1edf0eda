"""Features from the disk: the same training and the same scores as without, whatever happened to the disk."""

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

from promise.data.dataset import SegmentationDataset, collate
from promise.data.table import read_table
from promise.data.transforms.recipes import build_transform
from promise.evaluation.config import EvalConfig
from promise.evaluation.evaluate import evaluate
from promise.features import dataset as items
from promise.features import loader as cached
from promise.features.dataset import CachedDataset, collate_cached
from promise.features.fill import fill
from promise.features.loader import CacheOptions, cached_or_raw
from promise.features.store import FeatureSpace, files, list_spaces
from promise.runtime.errors import UserError
from promise.training.config import TrainConfig
from promise.training.trainer import train
from promise.types import Encoded

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")

SMALL: dict[str, Any] = {
    "net": "APM_IPS_resnet",
    "num_points": 4,
    "epochs": 3,
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


def told(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("net", ["APM_IPS_resnet", "IPS_GT"])
def test_training_from_features_is_training_from_pixels_bit_for_bit(net, run, own_features) -> None:
    plain = run("plain", net=net, cache="off")
    assert not own_features.exists()
    first, again = run("first", net=net, cache="all"), run("again", net=net, cache="all", workers=1)
    assert sum(space.entries for space in list_spaces(own_features)) == 9  # train and val rows share a space
    for folder in (first, again):
        assert all(torch.equal(learned(folder)[name], value) for name, value in learned(plain).items())
        assert told(folder) == told(plain)


@pytest.mark.parametrize(("stored", "precision"), [("bf16", "fp32"), ("fp32", "bf16"), ("bf16", "bf16")])
def test_features_stored_in_another_precision_train_to_nearly_the_same_scores(stored, precision, run) -> None:
    plain, other = run("plain"), run("other", cache="all", cache_dtype=stored, precision=precision)
    for a, b in zip(told(plain), told(other), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=2e-2)
        assert b["val_dice"] == pytest.approx(a["val_dice"], abs=5e-2)


def test_the_default_caches_validation_rows_only(run, own_features) -> None:
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


# --- filling --------------------------------------------------------------------------------------


@pytest.fixture
def dataset(phantoms: Path) -> Callable[..., SegmentationDataset]:
    def dataset(recipe: str = "basic_color") -> SegmentationDataset:
        transform = build_transform(recipe, image_size=64, pixels="imagenet")
        return SegmentationDataset(read_table(phantoms).split("train"), transform, seed=3)

    return dataset


class Encoder:
    """Stands for a net: the features are the pixels, so that every mistake shows; counts, and fails on demand."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.seen = 0
        self.fail_at = fail_at

    def __call__(self, image: Tensor) -> Encoded:
        if self.fail_at is not None and self.seen >= self.fail_at:
            raise KeyboardInterrupt
        self.seen += len(image)
        return Encoded(image, (image[:, :1],))


def open_space(folder: Path) -> FeatureSpace:
    return FeatureSpace(folder, {"made": "by a test"}, taps=True)


def test_a_batch_of_features_is_the_batch_of_pixels(dataset, tmp_path) -> None:
    rows = dataset()
    served = CachedDataset(rows, open_space(tmp_path))
    assert fill(served, Encoder(), batch_size=4, workers=0, quiet=True) == 6
    ours, theirs = collate_cached([served[(5, i)] for i in (4, 1)]), collate([rows[(5, i)] for i in (4, 1)])
    assert isinstance(ours.image, Encoded)
    assert torch.equal(ours.image.embedding, theirs.image)
    assert torch.equal(ours.image.taps[0], theirs.image[:, :1])
    assert torch.equal(ours.mask, theirs.mask)
    assert ours.name == theirs.name
    assert torch.equal(ours.index, theirs.index)


def test_views_are_the_first_epochs_augmentations_image_and_mask(dataset, tmp_path) -> None:
    rows = dataset("train2_color")
    served = CachedDataset(rows, open_space(tmp_path), views=3)
    assert fill(served, Encoder(), batch_size=4, workers=0, quiet=True) == 18
    for epoch in range(6):
        for index in range(6):
            pixels, entry = rows[(epoch % 3, index)], served[(epoch, index)].entry
            assert torch.equal(entry.embedding, pixels.image)
            assert torch.equal(entry.mask, pixels.mask)
    assert not torch.equal(served[(0, 0)].entry.embedding, served[(1, 0)].entry.embedding)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_filling_goes_on_where_it_was(workers, dataset, tmp_path) -> None:
    served = CachedDataset(dataset(), open_space(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        fill(served, Encoder(fail_at=4), batch_size=2, workers=workers, quiet=True)
    encoder = Encoder()
    assert fill(served, encoder, batch_size=2, workers=workers, quiet=True) == encoder.seen <= 4
    assert fill(served, encoder, batch_size=2, workers=workers, quiet=True) == 0
    assert torch.equal(served[5].entry.embedding, served.dataset[5].image)


def test_what_is_damaged_is_made_again_with_a_warning(dataset, tmp_path, caplog) -> None:
    served = CachedDataset(dataset(), open_space(tmp_path))
    fill(served, Encoder(), batch_size=2, workers=0, quiet=True)
    paths = sorted(files(served.space.folder))
    paths[0].write_bytes(paths[0].read_bytes()[:-7])
    whole = paths[-1].read_bytes()
    paths[-1].write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]))
    with pytest.raises(UserError, match="made again at the start"):
        [served[i] for i in range(6)]
    with caplog.at_level(logging.WARNING):
        assert fill(served, Encoder(), batch_size=2, workers=0, quiet=True) == 2
    assert caplog.text.count("It is made again") == 2
    assert all(torch.equal(served[i].entry.embedding, served.dataset[i].image) for i in range(6))


def test_processes_share_the_work_whatever_is_there_already(dataset, tmp_path) -> None:
    served = CachedDataset(dataset(), open_space(tmp_path))
    made = [fill(served, Encoder(), batch_size=4, workers=0, share=(i, 4), quiet=True) for i in range(4)]
    assert made == [2, 2, 1, 1]
    assert served.space.missing(served.items()) == []


def test_the_same_picture_in_two_rows_is_encoded_once(dataset, tmp_path) -> None:
    rows = dataset()
    rows.rows = (*rows.rows, rows.rows[0])
    encoder = Encoder()
    fill(CachedDataset(rows, open_space(tmp_path)), encoder, batch_size=4, workers=0, quiet=True)
    assert encoder.seen == 6


def test_another_mask_is_another_entry(dataset, tmp_path, monkeypatch) -> None:
    before = CachedDataset(dataset(), open_space(tmp_path)).keys
    real = items.content_hash
    monkeypatch.setattr(items, "content_hash", lambda p: "other" if "masks" in str(p) else real(p))
    assert not set(map(tuple, before)) & set(map(tuple, CachedDataset(dataset(), open_space(tmp_path)).keys))


# --- what may be cached, and where ----------------------------------------------------------------


def offer(build, dataset, folder: Path, *, policy: str, training: bool, recipe: str = "basic_color", **other: Any):
    net = build("IPS_GT", freeze=other.pop("freeze", "FZ0"), **other)
    settings = CacheOptions(policy, folder, workers=0, quiet=True)
    served, _ = cached_or_raw(
        dataset(recipe), net, settings, recipe=recipe, training=training, device=torch.device("cpu")
    )
    return served


def test_the_disk_is_asked_before_the_first_byte(build, dataset, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cached, "free_bytes", lambda _: 10_000)
    with pytest.raises(UserError, match=r"features of 6 images want .* GiB .*--cache-dir.*promise-cache prune"):
        offer(build, dataset, tmp_path / "f", policy="all", training=True)
    assert isinstance(offer(build, dataset, tmp_path / "f", policy="eval", training=False), SegmentationDataset)
    assert not (tmp_path / "f").exists()
    # What is there already needs no room.
    monkeypatch.setattr(cached, "free_bytes", lambda _: 10**9)
    offer(build, dataset, tmp_path / "f", policy="all", training=True)
    monkeypatch.setattr(cached, "free_bytes", lambda _: 0)
    assert isinstance(offer(build, dataset, tmp_path / "f", policy="eval", training=False), CachedDataset)


def test_a_folder_that_cannot_be_written_to_costs_the_cache_only(build, dataset, tmp_path, caplog) -> None:
    (tmp_path / "file").touch()
    plain = offer(build, dataset, tmp_path / "file/f", policy="eval", training=False)
    assert isinstance(plain, SegmentationDataset)
    assert "not cached: features cannot be written to" in caplog.text
    with pytest.raises(UserError, match=r"cannot be written to .*--cache-dir, or --cache off"):
        offer(build, dataset, tmp_path / "file/f", policy="all", training=True)


def test_the_estimate_is_the_size(build, dataset, tmp_path, monkeypatch) -> None:
    wanted = []
    monkeypatch.setattr(cached, "_has_room", lambda *_, needed, **__: wanted.append(needed) or True)
    offer(build, dataset, tmp_path, policy="all", training=True)
    (space,) = list_spaces(tmp_path)
    assert wanted[0] <= space.size < wanted[0] + 6 * 600  # six headers


def test_a_trained_encoder_is_not_cached(build, dataset, tmp_path) -> None:
    with pytest.raises(UserError, match="--freeze FZ4 trains it"):
        offer(build, dataset, tmp_path, policy="all", training=True, freeze="FZ4")
    plain = offer(build, dataset, tmp_path, policy="eval", training=False, freeze="FZ4")
    assert isinstance(plain, SegmentationDataset)


def test_fixed_views_of_an_augmenting_recipe_are_told(build, dataset, tmp_path, caplog) -> None:
    caplog.set_level(logging.WARNING)
    offer(build, dataset, tmp_path, policy="all", training=True, recipe="train2_color")
    assert "augmentation draws nothing new after epoch 1" in caplog.text
    caplog.clear()
    offer(build, dataset, tmp_path, policy="all", training=True)
    assert caplog.text == ""


def test_another_sam_precision_or_normalisation_is_another_space(build, dataset, tmp_path) -> None:
    offer(build, dataset, tmp_path, policy="all", training=True)
    offer(build, dataset, tmp_path, policy="all", training=True)
    assert len(list_spaces(tmp_path)) == 1
    offer(build, dataset, tmp_path, policy="all", training=True, precision="bf16")
    offer(build, dataset, tmp_path, policy="all", training=True, recipe="basic_gray")
    assert len(list_spaces(tmp_path)) == 3
    net = build("IPS_GT")
    with torch.no_grad():
        net.sam.image_encoder.neck[0].weight[0, 0] += 1e-6
    settings = CacheOptions("all", tmp_path, workers=0, quiet=True)
    cached_or_raw(dataset(), net, settings, recipe="basic_color", training=True, device=torch.device("cpu"))
    assert len(list_spaces(tmp_path)) == 4
