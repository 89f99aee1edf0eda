"""Load rows of a table as batches; samples do not depend on the order, the batch size or the number of workers.

The key of an item is ``(epoch, index)``. The epoch is part of the key so that persistent worker processes draw new
augmentations in each epoch.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from promise.data.images import read_image
from promise.data.masks import read_mask, size_mismatch
from promise.data.table import Row
from promise.data.transforms.recipes import Transform
from promise.runtime.signals import ignore_signals
from promise.types import Batch, Encoded

Prefetch = Callable[[tuple[int, int]], None]  # called with an item some time before it is loaded

__all__ = ["EpochSampler", "Sample", "SegmentationDataset", "build_loader", "collate", "sample_seed"]


@dataclass(frozen=True)
class Sample:
    """One image and its mask, ready to be collated."""

    image: Tensor  # (3, S, S) float32, normalised
    mask: Tensor  # (1, S, S) float32, 0 or 1
    name: str
    index: int  # index in the rows of the data set


def sample_seed(seed: int, epoch: int, name: str) -> int:
    """The seed of one sample in one epoch: a 63-bit hash, the same on every platform and in every run."""
    text = f"{seed}\n{epoch}\n{name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class SegmentationDataset(Dataset[Sample]):
    """Samples read from the files of ``rows`` and transformed on access.

    The key of an item is ``(epoch, index)``, or ``index`` for epoch 0.
    """

    def __init__(self, rows: Sequence[Row], transform: Transform, *, seed: int) -> None:
        self.rows = tuple(rows)
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        """Read and transform one sample.

        Raises:
            UserError: a file cannot be read (see :mod:`promise.data.images`), or image and mask differ in size
                (``image-size-mismatch``).
        """
        epoch, index = item if isinstance(item, tuple) else (0, item)
        row = self.rows[index]
        image, mask = read_image(row.image), read_mask(row.mask)
        if image.shape[:2] != mask.shape:
            raise size_mismatch(row.image, image.shape[:2], row.mask, mask.shape, place=f"line {row.line}: ")
        # Fork and seed only the CPU generator: torch.manual_seed would also reset the generators of GPUs.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(sample_seed(self.seed, epoch, row.name))
            pair = self.transform(
                torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask).to(torch.uint8)[None]
            )
        return Sample(pair[0], pair[1], row.name, index)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack B samples of the same size into a batch."""
    return share(
        Batch(
            image=torch.stack([s.image for s in samples]),
            mask=torch.stack([s.mask for s in samples]),
            name=tuple(s.name for s in samples),
            index=torch.tensor([s.index for s in samples], dtype=torch.int64),
        )
    )


def share(batch: Batch) -> Batch:
    """Move a batch of a worker process to shared memory.

    Torch would do so in a thread of the worker, where a full /dev/shm loses the batch: the loader would wait for ever.
    """
    if get_worker_info() is not None:
        image = batch.image
        features = image.tensors if isinstance(image, Encoded) else (image,)
        for tensor in (*features, batch.mask, batch.index):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    return batch


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields ``(epoch, index)``: in order, or shuffled by a generator seeded with (seed, epoch)."""

    def __init__(
        self, size: int, *, shuffle: bool, seed: int, prefetch: Prefetch | None = None, distance: int = 0
    ) -> None:
        """Create a sampler.

        Args:
            size: number of rows.
            shuffle: whether each epoch has its own random order; else rows are in order.
            seed: seed of the order.
            prefetch: called with each item, ``distance`` items before the item is yielded.
            distance: number of items, at least 0.
        """
        self.size = size
        self.shuffle = shuffle
        self.seed = seed
        self.prefetch = prefetch
        self.distance = distance
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
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
    """Initialize a worker process: one thread, since several workers share the machine; signals are ignored.

    A signal to the process group must not end the workers before their loader does.
    """
    ignore_signals()
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
    """A loader that yields :class:`promise.types.Batch`; call ``loader.sampler.set_epoch(epoch)`` before each epoch.

    Args:
        dataset: its keys are ``(epoch, index)``. If it has a method ``prefetch``, that is called with each key two
            batches before the item is loaded.
        collate_fn: stacks B items into a batch.
        batch_size: B, at least 1.
        shuffle: whether each epoch has its own random order.
        seed: seed of the order.
        workers: number of worker processes, which persist as long as the loader; 0 loads in the calling process.
        pin_memory: as in torch.
        drop_last: drop the last batch if it has fewer than B items.
    """
    # Not `shuffle=`, with which torch draws the order from its global generator.
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
        # The loader draws a base seed in each epoch; a separate generator leaves the global one unchanged.
        generator=torch.Generator().manual_seed(seed),
    )
