"""Encode rows whose features are missing or corrupted, and store them. Resumable; several processes can cooperate."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from promise.data.dataset import collate, start_worker
from promise.features.dataset import CachedDataset
from promise.features.store import FeatureSpace, find_corruption
from promise.runtime.progress import progress_bar
from promise.types import Encoded

log = logging.getLogger(__name__)

Encode = Callable[[Tensor], Encoded]


def find_corrupted(space: FeatureSpace, keys: Collection[str], *, quiet: bool) -> set[str]:
    """Return the keys of existing entries whose checksum is wrong, and log a warning for each file."""
    present = sorted(set(keys) - set(space.missing(keys)))
    paths = [(key, path) for key in present for path in space.paths(key)]
    corrupted = set()
    with ThreadPoolExecutor() as pool:
        pairs = zip(paths, pool.map(lambda item: find_corruption(item[1]), paths), strict=True)
        bar = progress_bar(pairs, total=len(paths), name="checking features", unit="file", quiet=quiet)
        for (key, _), fault in bar:
            if fault is not None:
                log.warning("%s. The entry is recomputed.", fault)
                corrupted.add(key)
    return corrupted


def fill(
    dataset: CachedDataset,
    encode: Encode,
    *,
    batch_size: int,
    workers: int,
    shard: tuple[int, int] = (0, 1),
    quiet: bool = False,
) -> int:
    """Compute the entries that are missing or corrupted. If interrupted, the next call computes the remaining ones.

    Args:
        dataset: dataset whose entries are computed.
        encode: (B, 3, S, S) images on the CPU → features of the batch.
        batch_size: B.
        workers: loader processes.
        shard: ``(i, n)``: this process computes the i-th of n disjoint parts.
        quiet: whether the progress bar is hidden.

    Returns:
        Number of entries that this process computed.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    items = dataset.items(shard)
    incomplete = {*dataset.space.missing(items), *find_corrupted(dataset.space, items, quiet=quiet)}
    todo = [(key, item) for key, item in items.items() if key in incomplete]
    if not todo:
        return 0
    loader: DataLoader[Any] = DataLoader(
        dataset.dataset,
        batch_size=batch_size,
        sampler=[item for _, item in todo],
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )
    keys = iter(key for key, _ in todo)
    with progress_bar(total=len(todo), name="encoding", unit="image", quiet=quiet) as bar:
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1) as writer:
            for batch in loader:
                encoded = encode(batch.image)
                if writing is not None:
                    writing.result()  # raises the errors of the writer, such as a full disk
                batch_keys = list(itertools.islice(keys, len(batch)))
                writing = writer.submit(_put_all, dataset.space, batch_keys, encoded, batch.mask)
                bar.update(len(batch))
            if writing is not None:
                writing.result()
    return len(todo)


def _put_all(space: FeatureSpace, keys: Sequence[str], encoded: Encoded, mask: Tensor) -> None:
    for i, key in enumerate(keys):
        space.put(key, encoded.map(itemgetter(slice(i, i + 1))), mask[i])
