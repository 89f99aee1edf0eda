"""The sample images: their thumbnails, and the estimated quality of their automatic masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promise.app.open_images import Session
from promise.app.responses import encode_thumbnail
from promise.models.quality import describe_quality
from promise.runtime.errors import UserError


@dataclass(frozen=True)
class Sample:
    """A sample image, which is read when it is needed."""

    name: str
    read: Callable[[], NDArray[np.uint8]]  # (H, W, 3) RGB; raises UserError


class Samples:
    """The sample images of a server. Of each, only a thumbnail and an estimate are kept."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples
        self._thumbnails: dict[int, bytes] = {}
        self._estimates: dict[str, list[dict[str, Any]]] = {}  # net → estimates, in the order of their computation

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> Sample:
        """The sample of a number.

        Raises:
            UserError: it does not exist (``unknown-sample``).
        """
        if number >= len(self._samples):
            raise UserError(f"Sample {number} does not exist.", code="unknown-sample")
        return self._samples[number]

    @property
    def names(self) -> list[str]:
        """File names of all samples."""
        return [sample.name for sample in self._samples]

    def thumbnail(self, number: int) -> bytes:
        """The thumbnail of a sample, a JPEG file."""
        if number not in self._thumbnails:
            self._thumbnails[number] = encode_thumbnail(self[number].read())
        return self._thumbnails[number]

    def estimates(self, net: str) -> list[dict[str, Any]]:
        """The estimates of a net, in the order of their computation."""
        return self._estimates.setdefault(net, [])

    def estimate(self, number: int, net: str, encode: Callable[[NDArray[np.uint8]], Session]) -> None:
        """Segment a sample and append the estimated IoU of its automatic mask to the estimates of the net.

        An estimate has ``number``, ``estimated_iou`` (``None`` without a lesion) and ``estimate``, the same in words.
        """
        try:
            found = encode(self[number].read()).automatic()
        except UserError:
            iou, words = None, "not estimated"
        else:
            iou = found.quality
            words = "no lesion found" if iou is None else describe_quality(iou)
        self.estimates(net).append({"number": number, "estimated_iou": iou, "estimate": words})
