"""A dataset that reads cached features instead of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from promise.data.dataset import SegmentationDataset, sample_seed, share
from promise.data.images import content_hash
from promise.features.store import CorruptEntry, Entry, FeatureSpace, entry_key
from promise.runtime.errors import UserError
from promise.runtime.progress import progress_bar
from promise.runtime.settings import FEATURE_AUGMENTS
from promise.types import Batch, join

# Symmetries of the square that each setting draws from: bit 0 mirrors left and right, bit 1 top and bottom, bit 2
# transposes.
SYMMETRIES = dict(zip(FEATURE_AUGMENTS, (1, 4, 8, 8), strict=True))


@dataclass(frozen=True)
class CachedSample:
    """Features and mask of one row."""

    entry: Entry
    name: str
    index: int


class CachedDataset(Dataset[CachedSample]):
    """The rows of a dataset, with cached features instead of pixels.

    An item is an index or ``(epoch, index)``, as in the dataset itself. With V views, epoch e reads view ``e mod V``,
    where view v is the row as the dataset augments it in epoch v.
    """

    def __init__(
        self, dataset: SegmentationDataset, space: FeatureSpace, *, views: int = 1, augment: str = "none"
    ) -> None:
        """Compute the key of every entry from the content of image and mask.

        Args:
            dataset: rows, transform and seed.
            space: feature space of the entries; its description includes the transform.
            views: V, augmented views per image; ignored (1) if the transform is deterministic.
            augment: a key of :data:`SYMMETRIES`: features and mask are mirrored and transposed together, at random in
                each epoch. This approximates the features of the mirrored image: an encoder with absolute positions
                is not equivariant.
        """
        self.symmetries = SYMMETRIES[augment]
        self.dataset = dataset
        self.space = space
        self._held: dict[str, Entry] = {}
        random = not dataset.transform.deterministic
        self.views = views if random else 1
        self.keys = [
            [entry_key(image, mask, (dataset.seed, view, row.name) if random else None) for view in range(self.views)]
            for row, image, mask in ((row, content_hash(row.image), content_hash(row.mask)) for row in dataset.rows)
        ]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int | tuple[int, int]) -> CachedSample:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        key = self.keys[index][epoch % self.views]
        entry = self._held.get(key) or self._read(key)
        name = self.dataset.rows[index].name
        if self.symmetries > 1:
            entry = mirror(entry, sample_seed(self.dataset.seed, epoch, name) % self.symmetries)
        return CachedSample(entry, name, index)

    def _read(self, key: str) -> Entry:
        try:
            return self.space.get(key)
        except CorruptEntry as error:
            raise UserError(
                f"{error}. Run the command again: corrupted entries are recomputed at the start.",
                code="corrupt-features",
            ) from error

    def hold(self, device: torch.device, *, quiet: bool = True) -> None:
        """Read every entry once, and keep its features in the memory of a device; masks stay on the CPU.

        Batches are then composed on the device, and equal those that are read from the files.

        Args:
            device: usually that of the net.
            quiet: no progress bar.

        Raises:
            UserError: an entry is truncated or missing.
        """
        keys = self.items()
        for key in progress_bar(keys, total=len(keys), name="reading features", unit="image", quiet=quiet):
            entry = self._read(key)
            self._held[key] = entry.map(lambda x: x.to(device))

    @property
    def held(self) -> bool:
        """Whether the features are kept in memory; see :meth:`hold`."""
        return bool(self._held)

    def prefetch(self, item: tuple[int, int]) -> None:
        """Start reading the files of an item into memory, because it will be loaded soon."""
        epoch, index = item
        if not self.held:
            self.space.prefetch(self.keys[index][epoch % self.views])

    def items(self, shard: tuple[int, int] = (0, 1)) -> dict[str, tuple[int, int]]:
        """Return the key of every entry and the ``(view, index)`` from which it is computed.

        An image that occurs in several rows has one entry. Shards do not depend on which entries exist.

        Args:
            shard: ``(i, n)`` for the i-th of n disjoint parts.
        """
        rows = {key: (view, index) for index, keys in enumerate(self.keys) for view, key in enumerate(keys)}
        return dict(list(rows.items())[shard[0] :: shard[1]])


def mirror(entry: Entry, symmetry: int) -> Entry:
    """Apply one of the 8 symmetries of the square to the features and the mask of an entry; see :data:`SYMMETRIES`."""

    def change(x: Tensor) -> Tensor:
        x = x.flip(-1) if symmetry & 1 else x
        x = x.flip(-2) if symmetry & 2 else x
        return x.transpose(-1, -2) if symmetry & 4 else x

    return replace(entry.map(change), mask=change(entry.mask))


def collate_cached(samples: Sequence[CachedSample]) -> Batch:
    """Collate B samples into a batch whose ``image`` is ``Encoded``."""
    return share(
        Batch(
            image=join([s.entry.as_batch() for s in samples]),
            mask=torch.stack([s.entry.mask for s in samples]),
            name=tuple(s.name for s in samples),
            index=torch.tensor([s.index for s in samples], dtype=torch.int64),
        )
    )
