"""How rows of a table become batches, the same whatever the order, batch or worker count; knows no model.

An item is asked for as ``(epoch, index)``: the epoch travels in the index, so that worker processes that
outlive an epoch draw new augmentations without being told anything.
"""

from __future__ import annotations

import hashlib
import itertools
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from promise.data.images import read_image, read_mask
from promise.data.table import Row
from promise.data.transforms.recipes import Transform
from promise.runtime.errors import UserError
from promise.types import Batch

Prefetch = Callable[[tuple[int, int]], None]  # called with an item some time before it is loaded

__all__ = ["EpochSampler", "Sample", "SegmentationDataset", "build_loader", "collate", "sample_seed"]


@dataclass(frozen=True)
class Sample:
    """One picture, ready to be batched."""

    image: Tensor  # (3, S, S) float32, normalised
    mask: Tensor  # (1, S, S) float32, 0 or 1
    name: str
    index: int  # place in the dataset's rows


def sample_seed(seed: int, epoch: int, name: str) -> int:
    """The seed of one sample in one epoch: 63 bits of a hash that no platform or run changes."""
    text = f"{seed}\n{epoch}\n{name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class SegmentationDataset(Dataset[Sample]):
    """Rows, read and transformed one at a time.

    Items are asked for as ``(epoch, index)``, or as ``index`` for epoch 0.
    """

    def __init__(self, rows: Sequence[Row], transform: Transform, *, seed: int) -> None:
        self.rows = tuple(rows)
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        """One sample.

        Raises:
            UserError: a file that cannot be read, or an image and a mask of different size.
        """
        epoch, index = item if isinstance(item, tuple) else (0, item)
        row = self.rows[index]
        image, mask = read_image(row.image), read_mask(row.mask)
        if image.shape[:2] != mask.shape:
            raise UserError(
                f"line {row.line}: {row.image} is {image.shape[1]}×{image.shape[0]} but its mask "
                f"{row.mask} is {mask.shape[1]}×{mask.shape[0]}."
            )
        # Only the CPU generator is forked and seeded: torch.manual_seed would also reset the GPU's.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(sample_seed(self.seed, epoch, row.name))
            pair = self.transform(
                torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask).to(torch.uint8)[None]
            )
        return Sample(pair[0], pair[1], row.name, index)


def collate(samples: Sequence[Sample]) -> Batch:
    """B samples of one size to a batch."""
    return Batch(
        image=torch.stack([s.image for s in samples]),
        mask=torch.stack([s.mask for s in samples]),
        name=tuple(s.name for s in samples),
        index=torch.tensor([s.index for s in samples], dtype=torch.int64),
    )


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields ``(epoch, index)``: in order, or shuffled by a generator seeded with (seed, epoch)."""

    def __init__(
        self, size: int, *, shuffle: bool, seed: int, prefetch: Prefetch | None = None, distance: int = 0
    ) -> None:
        """Order ``size`` rows; ``prefetch`` is called with each item while the one ``distance`` before it is loaded."""
        self.size = size
        self.shuffle = shuffle
        self.seed = seed
        self.prefetch = prefetch
        self.distance = distance
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = list(range(self.size))
        if self.shuffle:
            generator = torch.Generator().manual_seed(sample_seed(self.seed, self.epoch, "order"))
            order = torch.randperm(self.size, generator=generator).tolist()
        items = [(self.epoch, index) for index in order]
        if self.prefetch is None:
            return iter(items)
        return self._prefetching(items, self.prefetch)

    def _prefetching(self, items: list[tuple[int, int]], prefetch: Prefetch) -> Iterator[tuple[int, int]]:
        for item in items[: self.distance]:
            prefetch(item)
        for item, later in itertools.zip_longest(items, items[self.distance :]):
            if later is not None:
                prefetch(later)
            yield item


def start_worker(_worker: int) -> None:
    """A worker is one thread: several of them share the machine. It ends with its loader, not by a signal to all."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def build_loader(
    dataset: Dataset[Any],
    *,
    collate_fn: Callable[[Any], Batch] = collate,
    batch_size: int,
    shuffle: bool,
    seed: int,
    workers: int,
    pin_memory: bool = False,
    drop_last: bool = False,
) -> DataLoader[Any]:
    """A loader that yields :class:`promise.types.Batch`; call ``loader.sampler.set_epoch(e)`` first.

    Args:
        dataset: asked for ``(epoch, index)``; its ``prefetch``, where it has one, is called with each item two batches earlier.
        collate_fn: B of its items to a batch.
        batch_size: B, at least 1.
        shuffle: whether each epoch has its own order.
        seed: of the order.
        workers: worker processes; 0 reads in this one. They live as long as the loader.
        pin_memory: as in torch.
        drop_last: leave out a last batch that is not full.
    """
    # Not `shuffle=`: torch would draw the order from its global generator.
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(
            len(dataset),  # type: ignore[arg-type]
            shuffle=shuffle,
            seed=seed,
            prefetch=getattr(dataset, "prefetch", None),
            distance=2 * batch_size,
        ),
        num_workers=workers,
        collate_fn=collate_fn,
        pin_memory=pin_memory,
        drop_last=drop_last,
        worker_init_fn=start_worker,
        persistent_workers=workers > 0,
        # The loader draws a base seed at each start; its own generator keeps it from the global one.
        generator=torch.Generator().manual_seed(seed),
    )
