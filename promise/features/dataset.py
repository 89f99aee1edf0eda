"""Rows whose features come from a store, in place of their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from promise.data.dataset import SegmentationDataset
from promise.data.images import content_hash
from promise.features.store import DamagedEntry, Entry, FeatureSpace, entry_key
from promise.runtime.errors import UserError
from promise.types import Batch, Encoded, join


@dataclass(frozen=True)
class CachedSample:
    """One row's features, ready to be batched."""

    entry: Entry
    name: str
    index: int


class CachedDataset(Dataset[CachedSample]):
    """The rows of a dataset, with features in place of pixels.

    Items are asked for as the dataset's own: ``(epoch, index)``. With V views, epoch e takes view ``e mod V``: view v
    is what the dataset's augmentation makes of the row in epoch v.
    """

    def __init__(self, dataset: SegmentationDataset, space: FeatureSpace, *, views: int = 1) -> None:
        """Name the entries.

        Args:
            dataset: rows, transform and seed.
            space: where entries lie; its description tells the transform.
            views: V, augmented views of each image; 1 where the transform draws nothing.
        """
        self.dataset = dataset
        self.space = space
        self.views = 1 if dataset.transform.deterministic else views
        drawn = not dataset.transform.deterministic
        self.keys = [
            [entry_key(image, mask, (dataset.seed, view, row.name) if drawn else None) for view in range(self.views)]
            for row, image, mask in ((row, content_hash(row.image), content_hash(row.mask)) for row in dataset.rows)
        ]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int | tuple[int, int]) -> CachedSample:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        try:
            entry = self.space.get(self.keys[index][epoch % self.views])
        except DamagedEntry as error:
            raise UserError(f"{error}. Run this again: what is damaged is made again at the start.") from error
        return CachedSample(entry, self.dataset.rows[index].name, index)

    def prefetch(self, item: tuple[int, int]) -> None:
        """Have an item's files brought into memory; it is asked for soon."""
        epoch, index = item
        self.space.prefetch(self.keys[index][epoch % self.views])

    def items(self, share: tuple[int, int] = (0, 1)) -> dict[str, tuple[int, int]]:
        """Every entry's key, and the ``(view, index)`` that it is made from; ``(i, n)`` gives the i-th of n shares.

        A picture that stands in several rows is there once. The shares depend on nothing that lies on the disk.
        """
        rows = {key: (view, index) for index, keys in enumerate(self.keys) for view, key in enumerate(keys)}
        return dict(list(rows.items())[share[0] :: share[1]])


def collate_cached(samples: Sequence[CachedSample]) -> Batch:
    """B samples to a batch that holds features instead of pixels."""
    return Batch(
        image=join([Encoded(s.entry.embedding[None], tuple(tap[None] for tap in s.entry.taps)) for s in samples]),
        mask=torch.stack([s.entry.mask for s in samples]),
        name=tuple(s.name for s in samples),
        index=torch.tensor([s.index for s in samples], dtype=torch.int64),
    )
