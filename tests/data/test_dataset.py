from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from promise.data.dataset import EpochSampler, SegmentationDataset, build_loader, collate
from promise.data.table import Row
from promise.data.transforms.recipes import Transform, build_transform
from promise.types import Batch

TRAIN = build_transform("train2_color", image_size=32, pixels="imagenet")


@pytest.fixture
def rows(pairs: Path) -> list[Row]:
    return [
        Row(s, pairs / f"images/{s}.png", pairs / f"masks/{s}.png", "train", line)
        for line, s in enumerate("abcdef", start=2)
    ]


def images_by_name(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {name: batch.image[i] for batch in batches for i, name in enumerate(batch.name)}


def run(rows: list[Row], *, epoch: int = 0, seed: int = 1, workers: int = 0, **options: object) -> list[Batch]:
    settings = {"batch_size": 4, "shuffle": False, "seed": seed, "workers": workers, **options}
    loader = build_loader(SegmentationDataset(rows, TRAIN, seed=seed), **settings)
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_a_sample_is_the_file(rows: list[Row]) -> None:
    plain: Transform = build_transform("basic_color_nonorm", image_size=32, pixels="imagenet")
    dataset = SegmentationDataset(rows, plain, seed=0)
    sample = dataset[2]
    assert len(dataset) == 6
    assert (sample.name, sample.index) == ("c", 2)
    assert sample.image.shape == (3, 32, 32)
    assert sample.mask.shape == (1, 32, 32)
    assert sample.mask[0, 8:24, 8:20].min() == 1  # 24 rows stretched to 32: rows 6–18 become 8–24
    assert sample.mask.sum() == 16 * 12


def test_a_batch_carries_names_and_indices(rows: list[Row]) -> None:
    first, second = run(rows)
    assert first.image.shape == (4, 3, 32, 32)
    assert first.mask.shape == (4, 1, 32, 32)
    assert second.name == ("e", "f")
    assert second.index.tolist() == [4, 5]
    assert second.index.dtype == torch.int64
    assert [len(b) for b in run(rows, drop_last=True)] == [4]


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"shuffle": True}, {"workers": 2}])
def test_samples_do_not_depend_on_batch_order_or_workers(rows: list[Row], options: dict[str, int]) -> None:
    assert same(images_by_name(run(rows, epoch=3)), images_by_name(run(rows, epoch=3, **options)))


def test_samples_do_not_depend_on_the_other_rows(rows: list[Row]) -> None:
    everything = images_by_name(run(rows, epoch=3))
    alone = images_by_name(run(rows[4:], epoch=3))
    assert torch.equal(everything["e"], alone["e"])


def test_epoch_seed_and_name_change_the_augmentation(rows: list[Row]) -> None:
    base = images_by_name(run(rows))
    assert not same(base, images_by_name(run(rows, epoch=1)))
    assert not same(base, images_by_name(run(rows, seed=2)))
    renamed = [Row(f"z{r.name}", r.image, r.mask, r.split, r.line) for r in rows]
    other = images_by_name(run(renamed))
    assert any(not torch.equal(base[r.name], other[f"z{r.name}"]) for r in rows)


def test_persistent_workers_see_the_new_epoch(rows: list[Row]) -> None:
    loader = build_loader(SegmentationDataset(rows, TRAIN, seed=1), batch_size=4, shuffle=True, seed=1, workers=1)
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        expected = run(rows, epoch=epoch, shuffle=True)
        assert [b.name for b in batches] == [b.name for b in expected]
        assert same(images_by_name(batches), images_by_name(expected))


def test_a_plain_index_is_epoch_zero(rows: list[Row]) -> None:
    dataset = SegmentationDataset(rows, TRAIN, seed=1)
    assert torch.equal(dataset[1].image, dataset[0, 1].image)
    assert torch.equal(collate([dataset[1]]).image[0], dataset[1].image)


def test_the_global_generator_is_left_alone(rows: list[Row]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(rows, shuffle=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_sampler_orders() -> None:
    in_order = EpochSampler(5, shuffle=False, seed=0)
    in_order.set_epoch(7)
    assert list(in_order) == [(7, i) for i in range(5)]
    shuffled = EpochSampler(50, shuffle=True, seed=0)
    first = list(shuffled)
    assert sorted(first) == [(0, i) for i in range(50)]
    assert first != sorted(first)
    assert list(shuffled) == first
    shuffled.set_epoch(1)
    assert [i for _, i in shuffled] != [i for _, i in first]
    assert list(EpochSampler(50, shuffle=True, seed=1)) != first
    assert len(shuffled) == 50


@pytest.mark.parametrize("distance", [1, 3, 9])
def test_items_are_prefetched_some_items_ahead(distance: int) -> None:
    fetched: list[tuple[int, int]] = []
    order = []
    for item in EpochSampler(5, shuffle=True, seed=0, prefetch=fetched.append, distance=distance):
        order.append(item)
        assert fetched[: len(order)] == order
        assert len(fetched) == min(len(order) + distance, 5)
    assert fetched == order == list(EpochSampler(5, shuffle=True, seed=0))


def test_a_loader_prefetches_two_batches_ahead(rows: list[Row]) -> None:
    class Prefetching(SegmentationDataset):
        fetched: list[tuple[int, int]] = []  # noqa: RUF012

        def prefetch(self, item: tuple[int, int]) -> None:
            self.fetched.append(item)

    loader = build_loader(Prefetching(rows, TRAIN, seed=1), batch_size=1, shuffle=False, seed=1, workers=0)
    next(iter(loader))
    assert Prefetching.fetched == [(0, 0), (0, 1), (0, 2)]


def test_image_and_mask_of_different_size(rows: list[Row], user_error: Callable[..., Any]) -> None:
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(rows[0].mask)
    with user_error("image-size-mismatch") as caught:
        SegmentationDataset(rows, TRAIN, seed=0)[0]
    assert all(fact in str(caught.value) for fact in ("line 2: ", "images/a.png", "32×24", "masks/a.png", "9×8"))


def test_a_full_shared_memory_ends_in_one_line(phantoms: Path, tmp_path: Path) -> None:
    code = """
import sys
from promise.cli.common import run
from promise.data.dataset import SegmentationDataset, build_loader
from promise.data.table import read_table
from promise.data.transforms.recipes import build_transform
from promise.runtime.memory import explain_out_of_memory

def work():
    transform = build_transform("none", image_size=512, pixels="imagenet")
    dataset = SegmentationDataset(read_table(sys.argv[1]).rows, transform, seed=0)
    with explain_out_of_memory(2):
        for _ in build_loader(dataset, batch_size=2, shuffle=False, seed=0, workers=2):
            pass
    return 0

sys.exit(run("loading", work))
"""
    if torch.__version__.startswith("2.4."):
        pytest.skip("torch 2.4 does not say why a worker ended")
    script = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs a mount namespace, which needs root")
    command = ["unshare", "-m", "bash", "-c", script, "x", sys.executable, "-W", "ignore", "-c", code, str(phantoms)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        ["loading: /dev/shm (1 MB) is full: use --workers 0, or start the container with docker run --shm-size 2g."],
    )
