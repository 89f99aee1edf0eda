"""The dataset of cached features, item by item."""

from __future__ import annotations

import pytest
import torch

from promise.data.dataset import collate
from promise.features import dataset as module
from promise.features.dataset import CachedDataset, collate_cached
from promise.features.fill import fill
from promise.features.store import files
from promise.types import Encoded


def test_a_batch_of_features_equals_the_batch_of_pixels(dataset, space, encoder) -> None:
    rows = dataset()
    cached = CachedDataset(rows, space)
    assert fill(cached, encoder(), batch_size=4, workers=0, quiet=True) == 6
    features, pixels = collate_cached([cached[(5, i)] for i in (4, 1)]), collate([rows[(5, i)] for i in (4, 1)])
    assert isinstance(features.image, Encoded)
    assert torch.equal(features.image.embedding, pixels.image)
    assert torch.equal(features.image.taps[0], pixels.image[:, :1])
    assert torch.equal(features.mask, pixels.mask)
    assert features.name == pixels.name
    assert torch.equal(features.index, pixels.index)


def test_views_are_the_augmentations_of_the_first_epochs(dataset, space, encoder) -> None:
    rows = dataset("train2_color")
    cached = CachedDataset(rows, space, views=3)
    assert fill(cached, encoder(), batch_size=4, workers=0, quiet=True) == 18
    for epoch in range(6):
        for index in range(6):
            pixels, entry = rows[(epoch % 3, index)], cached[(epoch, index)].entry
            assert torch.equal(entry.embedding, pixels.image)
            assert torch.equal(entry.mask, pixels.mask)
    assert not torch.equal(cached[(0, 0)].entry.embedding, cached[(1, 0)].entry.embedding)


def test_another_mask_has_another_key(dataset, space, monkeypatch) -> None:
    before = CachedDataset(dataset(), space).keys
    content_hash = module.content_hash
    monkeypatch.setattr(module, "content_hash", lambda p: "other" if "masks" in str(p) else content_hash(p))
    assert not set(map(tuple, before)) & set(map(tuple, CachedDataset(dataset(), space).keys))


@pytest.mark.parametrize("count", [1, 4])
def test_shards_are_disjoint_and_complete(count: int, dataset, space) -> None:
    cached = CachedDataset(dataset("train2_color"), space, views=2)
    shards = [cached.items((i, count)) for i in range(count)]
    assert sum(map(len, shards)) == 12
    assert {key: item for shard in shards for key, item in shard.items()} == cached.items()


def test_a_truncated_entry_is_an_error_that_names_its_file(dataset, space, encoder, user_error) -> None:
    cached = CachedDataset(dataset(), space)
    fill(cached, encoder(), batch_size=2, workers=0, quiet=True)
    path = sorted(files(space.folder))[0]
    path.write_bytes(path.read_bytes()[:-7])
    with user_error("corrupt-features") as caught:
        [cached[i] for i in range(6)]
    assert str(path) in str(caught.value)


def test_features_are_mirrored_with_their_masks_anew_in_every_epoch(dataset, space, encoder) -> None:
    rows = dataset()
    plain, mirrored = CachedDataset(rows, space), CachedDataset(rows, space, augment="symmetries")
    fill(plain, encoder(), batch_size=4, workers=0, quiet=True)
    seen = set()
    for epoch in range(8):
        for index in range(len(rows)):
            entry, changed = plain[(epoch, index)].entry, mirrored[(epoch, index)].entry
            matching = [
                symmetry
                for symmetry in range(8)
                if torch.equal(module.mirror(entry, symmetry).embedding, changed.embedding)
            ]
            assert len(matching) == 1
            expected = module.mirror(entry, matching[0])
            assert torch.equal(changed.mask, expected.mask)
            assert all(torch.equal(a, b) for a, b in zip(changed.taps, expected.taps, strict=True))
            assert torch.equal(changed.embedding, mirrored[(epoch, index)].entry.embedding)
            seen.update(matching)
    assert seen == set(range(8))


def test_cutmix_joins_features_and_masks_of_two_rows_at_one_cut(dataset, space, encoder) -> None:
    rows = dataset()
    plain, mixed = CachedDataset(rows, space), CachedDataset(rows, space, cutmix=0.5)
    fill(plain, encoder(), batch_size=4, workers=0, quiet=True)
    entries = [plain[index].entry for index in range(len(rows))]
    joined, partners, dims = 0, set(), set()
    for epoch in range(20):
        for index, own in enumerate(entries):
            sample = mixed[(epoch, index)]
            again = mixed[(epoch, index)].entry
            assert sample.name == rows.rows[index].name
            assert all(torch.equal(a, b) for a, b in zip(tensors(sample.entry), tensors(again), strict=True))
            found = [
                (other, dim)
                for other, two in enumerate(entries)
                for dim in (1, 2)
                for cells in range(sample.entry.taps[0].shape[1] + 1)
                for pair in ((own, two), (two, own))
                if all(
                    torch.equal(mix, cut(a, b, cells / sample.entry.taps[0].shape[1], dim))
                    for mix, a, b in zip(tensors(sample.entry), *map(tensors, pair), strict=True)
                )
            ]
            assert found
            if not torch.equal(sample.entry.embedding, own.embedding):
                joined += 1
                partners.add(found[0][0])
                dims.add(found[0][1])
    assert 0.25 < joined / (20 * len(rows)) < 0.6  # a row may be its own partner
    assert len(partners) > 2
    assert dims == {1, 2}


def tensors(entry) -> list[torch.Tensor]:
    return [entry.embedding, *entry.taps, entry.mask]


def cut(one: torch.Tensor, two: torch.Tensor, fraction: float, dim: int) -> torch.Tensor:
    place = round(fraction * one.shape[dim])
    rest = one.shape[dim] - place
    return torch.cat([one.narrow(dim, 0, place), two.narrow(dim, place, rest)], dim)


def test_cutmix_reads_ahead_both_rows(dataset, space, encoder, monkeypatch) -> None:
    mixed = CachedDataset(dataset(), space, cutmix=1.0)
    fill(mixed, encoder(), batch_size=4, workers=0, quiet=True)
    ahead, read = [], []
    monkeypatch.setattr(space, "prefetch", ahead.append)
    get = space.get
    monkeypatch.setattr(space, "get", lambda key: read.append(key) or get(key))
    for index in range(6):
        mixed.prefetch((3, index))
        mixed[(3, index)]
    assert ahead == read
    assert len(read) == 12
