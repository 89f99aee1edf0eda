"""The open, encoded images of all visitors.

An image is accessed by its key: a random text that cannot be guessed and is sent only to the page that opened the
image. An image is removed when its page closes, when it has been idle for some time, or when there are too many images,
of its visitor or in all; then the least recently used one is removed first.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from promise.inference.segmentation import Segmentation
from promise.prompts.sets import PromptSet


class Session(Protocol):
    """An encoded image that can be prompted, such as :class:`promise.Session`."""

    def automatic(self) -> Segmentation:
        """Segment the image with the net's own prompts."""

    def predict(
        self,
        points: NDArray[np.float64] | None = None,
        labels: NDArray[np.int64] | None = None,
        box: NDArray[np.float64] | None = None,
        mask: NDArray[np.float32] | None = None,
        mask_index: int | None = None,
        *,
        lesions: Sequence[PromptSet] | None = None,
        fuse: bool = False,
    ) -> Segmentation:
        """Segment the image with these prompts."""

    def correct(
        self, points: NDArray[np.float64], labels: NDArray[np.int64], *, before: Segmentation | None = None
    ) -> Segmentation:
        """Correct a mask of the image with clicks."""


@dataclass(frozen=True)
class OpenImage:
    """An image, and the session with its embedding."""

    name: str  # of the file
    pixels: NDArray[np.uint8]  # (H, W, 3) RGB
    session: Session

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


class OpenImages:
    """A store of open images by key. Its methods may be called from any thread."""

    def __init__(
        self, *, limit: int, limit_each: int, idle_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Create an empty store.

        Args:
            limit: largest number of images.
            limit_each: largest number of images of one visitor.
            idle_seconds: time without use after which an image is removed.
            clock: current time in seconds.
        """
        self._limit, self._limit_each = limit, limit_each
        self._idle = idle_seconds
        self._clock = clock
        self._lock = threading.Lock()
        # (time of last use, visitor, image), least recent first
        self._images: OrderedDict[str, tuple[float, str, OpenImage]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def add(self, image: OpenImage, visitor: str) -> str:
        """Add an image of a visitor, remove others if there are too many, and return the key."""
        key = secrets.token_urlsafe(24)
        with self._lock:
            self._images[key] = (self._clock(), visitor, image)
            self._remove_idle()
            own = [key for key, (_, owner, _) in self._images.items() if owner == visitor]
            for oldest in own[: -self._limit_each]:
                del self._images[oldest]
            while len(self._images) > self._limit:
                self._images.popitem(last=False)
        return key

    def get(self, key: str) -> OpenImage | None:
        """The image of a key, or ``None`` if there is none. Counts as a use."""
        with self._lock:
            self._remove_idle()
            if key not in self._images:
                return None
            _, visitor, image = self._images.pop(key)
            self._images[key] = (self._clock(), visitor, image)
            return image

    def close(self, key: str) -> None:
        """Remove an image, if the key exists."""
        with self._lock:
            self._images.pop(key, None)

    def remove_idle(self) -> None:
        """Remove the images that have been idle for too long."""
        with self._lock:
            self._remove_idle()

    def clear(self) -> None:
        """Remove all images."""
        with self._lock:
            self._images.clear()

    def _remove_idle(self) -> None:
        oldest = self._clock() - self._idle
        for key in [key for key, (used, _, _) in self._images.items() if used < oldest]:
            del self._images[key]
