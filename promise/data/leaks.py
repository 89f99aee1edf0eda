"""Which pictures stand on both sides of a line that should part them? By content, whatever their names; no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from promise.data.images import content_hash
from promise.data.table import Row
from promise.runtime.workers import default_workers, ordered_map

# What a net owes to the rows of a split: why scoring them again is no test.
_SERVED = {
    "train": "the net was trained on",
    "val": "the net was selected on",
    "tune": "the postprocessing was chosen on",
}


def hash_images(rows: Sequence[Row]) -> list[str]:
    """The content hash of every row's image."""
    return list(ordered_map(lambda row: content_hash(row.image), rows, workers=default_workers()))


def hash_data(rows: Sequence[Row], images: Sequence[str]) -> str:
    """16 hex digits of the contents of all images and masks, in the rows' order; ``images`` as hashed already."""
    masks = ordered_map(lambda row: content_hash(row.mask), rows, workers=default_workers())
    pairs = " ".join(f"{image}-{mask}" for image, mask in zip(images, masks, strict=True))
    return hashlib.blake2b(pairs.encode(), digest_size=8).hexdigest()


def count_seen(images: Sequence[str], seen: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """How many of the images, by content hash, served each split of a checkpoint's record."""
    known = {split: frozenset(hashes) for split, hashes in seen.items()}
    return {split: sum(image in hashes for image in images) for split, hashes in known.items()}


def describe_seen(dataset: str, counts: Mapping[str, int], images: int) -> list[str]:
    """A sentence for each split whose rows are being scored."""
    return [
        f"{dataset}: {_SERVED[split]} {counts[split]} of the {images} scored images; these scores are no test of it."
        for split in _SERVED
        if counts.get(split)
    ]


def describe_shared(train: Sequence[str], val: Sequence[str]) -> list[str]:
    """A sentence where training and validation images, by content hash, are the same."""
    known = set(train)
    shared = sum(image in known for image in val)
    if not shared:
        return []
    verb = "are" if shared != 1 else "is"
    return [
        f"{shared} of the {len(val)} validation images {verb} also trained on, by content: the epoch with the best "
        "validation score is no fair choice. Remove them from one of the two splits."
    ]
