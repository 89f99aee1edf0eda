"""Find images that occur both in training and in evaluation data, by the content of the files. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from promise.data.images import content_hash
from promise.data.table import Row
from promise.runtime.notices import SHARED, USES, Notice
from promise.runtime.workers import default_workers, ordered_map


def hash_images(rows: Sequence[Row]) -> list[str]:
    """The content hash of the image of each row; see :func:`promise.data.images.content_hash`."""
    return list(ordered_map(lambda row: content_hash(row.image), rows, workers=default_workers()))


def hash_data(rows: Sequence[Row], images: Sequence[str]) -> str:
    """Hash of the contents of all images and masks, in the order of the rows: 16 hexadecimal digits.

    Args:
        rows: rows of a table.
        images: the result of :func:`hash_images` for the same rows.
    """
    masks = ordered_map(lambda row: content_hash(row.mask), rows, workers=default_workers())
    pairs = " ".join(f"{image}-{mask}" for image, mask in zip(images, masks, strict=True))
    return hashlib.blake2b(pairs.encode(), digest_size=8).hexdigest()


def count_seen(images: Sequence[str], seen: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """For each split of a checkpoint's record, the number of images that belong to it.

    Args:
        images: content hashes of the images.
        seen: split → content hashes of the images that the checkpoint was trained, selected or tuned on.
    """
    known = {split: frozenset(hashes) for split, hashes in seen.items()}
    return {split: sum(image in hashes for image in images) for split, hashes in known.items()}


def find_seen(dataset: str, counts: Mapping[str, int], images: int | None) -> list[Notice]:
    """Notices about scored images that the checkpoint was trained, selected or tuned on.

    Args:
        dataset: name of the data set.
        counts: result of :func:`count_seen`.
        images: number of scored images.
    """
    return [
        Notice(code, {"dataset": dataset, "split": split, "images": counts[split], "of": images})
        for split, (_, code) in USES.items()
        if counts.get(split)
    ]


def find_shared(train: Sequence[str], val: Sequence[str]) -> list[Notice]:
    """A notice if training and validation images, compared by content hash, overlap; else an empty list."""
    known = set(train)
    shared = sum(image in known for image in val)
    return [Notice(SHARED, {"images": shared, "of": len(val)})] if shared else []
