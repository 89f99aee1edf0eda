"""Computing missing and corrupted entries."""

from __future__ import annotations

import logging

import pytest
import torch

from promise.features.dataset import CachedDataset
from promise.features.fill import fill
from promise.features.store import files


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_fill_resumes(workers, dataset, space, encoder) -> None:
    cached = CachedDataset(dataset(), space)
    with pytest.raises(KeyboardInterrupt):
        fill(cached, encoder(fail_at=4), batch_size=2, workers=workers, quiet=True)
    second = encoder()
    assert fill(cached, second, batch_size=2, workers=workers, quiet=True) == second.seen <= 4
    assert fill(cached, second, batch_size=2, workers=workers, quiet=True) == 0
    assert torch.equal(cached[5].entry.embedding, cached.dataset[5].image)


def test_corrupted_entries_are_recomputed_with_a_warning(dataset, space, encoder, caplog, user_error) -> None:
    cached = CachedDataset(dataset(), space)
    fill(cached, encoder(), batch_size=2, workers=0, quiet=True)
    paths = sorted(files(space.folder))
    paths[0].write_bytes(paths[0].read_bytes()[:-7])
    whole = paths[-1].read_bytes()
    paths[-1].write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]))
    with user_error("corrupt-features"):
        [cached[i] for i in range(6)]
    with caplog.at_level(logging.WARNING):
        assert fill(cached, encoder(), batch_size=2, workers=0, quiet=True) == 2
    assert len(caplog.records) == 2
    assert all(str(path) in caplog.text for path in (paths[0], paths[-1]))
    assert all(torch.equal(cached[i].entry.embedding, cached.dataset[i].image) for i in range(6))


def test_processes_compute_disjoint_parts(dataset, space, encoder) -> None:
    cached = CachedDataset(dataset(), space)
    counts = [fill(cached, encoder(), batch_size=4, workers=0, shard=(i, 4), quiet=True) for i in range(4)]
    assert counts == [2, 2, 1, 1]
    assert space.missing(cached.items()) == []


def test_an_image_in_two_rows_is_encoded_once(dataset, space, encoder) -> None:
    rows = dataset()
    rows.rows = (*rows.rows, rows.rows[0])
    encode = encoder()
    fill(CachedDataset(rows, space), encode, batch_size=4, workers=0, quiet=True)
    assert encode.seen == 6
