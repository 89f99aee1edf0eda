"""Find images that occur both in training and in evaluation data, by the content of the files. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promise.data.images import content_hash
from promise.data.table import Row
from promise.runtime.workers import default_workers, ordered_map

# split of a checkpoint's record → code of the warning about scoring its images
_SEEN_CODES = {
    "train": "scored-images-trained-on",
    "val": "scored-images-selected-on",
    "tune": "scored-images-tuned-on",
}
_SHARED_CODE = "validation-images-trained-on"
_NO_TEST = "{images} of the {of} scored images; their scores do not measure generalization."
_TEXTS = {
    "scored-images-trained-on": "{dataset}: the net was trained on " + _NO_TEST,
    "scored-images-selected-on": "{dataset}: the net was selected on " + _NO_TEST,
    "scored-images-tuned-on": "{dataset}: the postprocessing was chosen on " + _NO_TEST,
    _SHARED_CODE: (
        "{images} of the {of} validation images {verb} also in the training split (identical content): the validation "
        "score of the selected epoch is biased. Remove them from one of the two splits."
    ),
}


@dataclass(frozen=True)
class LeakWarning:
    """A warning about images that are used twice. Programs match ``code`` and read ``data``; people read ``text``."""

    code: str  # a key of _TEXTS
    data: Mapping[str, Any]  # images: number used twice, of: number checked; dataset and split, if images are scored

    @property
    def text(self) -> str:
        """The warning as a sentence."""
        return _TEXTS[self.code].format(verb="is" if self.data["images"] == 1 else "are", **self.data)


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


def find_seen(dataset: str, counts: Mapping[str, int], images: int) -> list[LeakWarning]:
    """Warnings about scored images that the checkpoint was trained, selected or tuned on.

    Args:
        dataset: name of the data set.
        counts: result of :func:`count_seen`.
        images: number of scored images.
    """
    return [
        LeakWarning(code, {"dataset": dataset, "split": split, "images": counts[split], "of": images})
        for split, code in _SEEN_CODES.items()
        if counts.get(split)
    ]


def find_shared(train: Sequence[str], val: Sequence[str]) -> list[LeakWarning]:
    """A warning if training and validation images, compared by content hash, overlap; else an empty list."""
    known = set(train)
    shared = sum(image in known for image in val)
    return [LeakWarning(_SHARED_CODE, {"images": shared, "of": len(val)})] if shared else []


def describe_seen(dataset: str, counts: Mapping[str, int], images: int) -> list[str]:
    """The texts of :func:`find_seen`."""
    return [warning.text for warning in find_seen(dataset, counts, images)]


def describe_shared(train: Sequence[str], val: Sequence[str]) -> list[str]:
    """The text of :func:`find_shared`, if any."""
    return [warning.text for warning in find_shared(train, val)]
