"""Encode the rows whose features are missing or damaged, and store them; resumable, shared among processes."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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


def find_damage(space: FeatureSpace, keys: Collection[str], *, quiet: bool) -> set[str]:
    """Those of the keys whose entry is there but does not hold what was written; each is told."""
    present = sorted(set(keys) - set(space.missing(keys)))
    paths = [(key, path) for key in present for path in space.paths(key)]
    damaged = set()
    with ThreadPoolExecutor() as pool:
        pairs = zip(paths, pool.map(lambda item: find_corruption(item[1]), paths), strict=True)
        bar = progress_bar(pairs, total=len(paths), name="checking features", unit="file", quiet=quiet)
        for (key, _), fault in bar:
            if fault is not None:
                log.warning("%s. It is made again.", fault)
                damaged.add(key)
    return damaged


def fill(
    dataset: CachedDataset,
    encode: Encode,
    *,
    batch_size: int,
    workers: int,
    share: tuple[int, int] = (0, 1),
    quiet: bool = False,
) -> int:
    """Make the entries that are missing or damaged; may be killed at any moment and called again.

    Args:
        dataset: whose entries.
        encode: (B, 3, S, S) on the CPU → features of a batch.
        batch_size: B.
        workers: loader processes.
        share: (this process, processes): each looks after every n-th.
        quiet: no progress bar.

    Returns:
        How many this process made.
    """
    items = dataset.items(share)
    wanted = {*dataset.space.missing(items), *find_damage(dataset.space, items, quiet=quiet)}
    todo = [(key, item) for key, item in items.items() if key in wanted]
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
                    writing.result()  # a full disk is told here, not lost
                chosen = list(itertools.islice(keys, len(batch)))
                writing = writer.submit(_put_all, dataset.space, chosen, encoded, batch.mask)
                bar.update(len(batch))
            if writing is not None:
                writing.result()
    return len(todo)


def _put_all(space: FeatureSpace, keys: Sequence[str], encoded: Encoded, mask: Tensor) -> None:
    for i, key in enumerate(keys):
        one = Encoded(encoded.embedding[i : i + 1], tuple(tap[i : i + 1] for tap in encoded.taps))
        space.put(key, one, mask[i])
