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


@pytest.mark.parametrize("augment", ["none", "symmetries"])
def test_features_held_in_memory_equal_those_of_the_files(augment: str, dataset, space, encoder) -> None:
    rows = dataset("train2_color")
    cached, held = (CachedDataset(rows, space, views=2, augment=augment) for _ in range(2))
    fill(cached, encoder(), batch_size=4, workers=0, quiet=True)
    expected = [cached[(epoch, index)] for epoch in range(3) for index in range(6)]
    assert not held.held
    held.hold(torch.device("cpu"))
    for path in files(space.folder):
        path.unlink()
    assert held.held
    for item in [(0, 0), (1, 5)]:
        held.prefetch(item)  # reads no file
    for one, want in zip([held[(epoch, index)] for epoch in range(3) for index in range(6)], expected, strict=True):
        assert (one.name, one.index) == (want.name, want.index)
        assert torch.equal(one.entry.embedding, want.entry.embedding)
        assert all(map(torch.equal, one.entry.taps, want.entry.taps))
        assert torch.equal(one.entry.mask, want.entry.mask)


def test_held_features_are_on_the_device_and_masks_on_the_cpu(dataset, space, encoder) -> None:
    cached = CachedDataset(dataset(), space)
    fill(cached, encoder(), batch_size=4, workers=0, quiet=True)
    cached.hold(torch.device("meta"))
    batch = collate_cached([cached[(0, index)] for index in range(3)])
    assert isinstance(batch.image, Encoded)
    assert {tensor.device.type for tensor in (batch.image.embedding, *batch.image.taps)} == {"meta"}
    assert {batch.mask.device.type, batch.index.device.type} == {"cpu"}  # prompts are drawn there
