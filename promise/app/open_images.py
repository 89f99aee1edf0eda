"""Which encoded images are open, and for whom; knows no HTTP and no nets.

Who holds an image's key may use it and nobody else: a key is drawn when the image is opened, cannot be guessed, and is
told to the page that opened it alone. Images are dropped when the page closes, when they lie idle, and when there are
too many: the one that was used longest ago first.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from promise.inference.segmenter import Segmentation


class Session(Protocol):
    """An encoded image that answers prompts, as ``Segmenter.session`` gives it."""

    def automatic(self) -> Segmentation:
        """What the net's own prompts give."""

    def predict(
        self,
        points: NDArray[np.float64] | None = None,
        labels: NDArray[np.int64] | None = None,
        box: NDArray[np.float64] | None = None,
        mask: NDArray[np.float32] | None = None,
        choice: int = 0,
    ) -> Segmentation:
        """What these prompts give."""


@dataclass(frozen=True)
class OpenImage:
    """An image, and its embedding behind ``session``."""

    name: str  # of the file
    picture: NDArray[np.uint8]  # (H, W, 3) RGB
    session: Session

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.picture.shape[1], self.picture.shape[0]


class OpenImages:
    """At most ``limit`` images, each under a key of its own; any thread may ask."""

    def __init__(self, *, limit: int, idle_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._idle = idle_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._images: OrderedDict[str, tuple[float, OpenImage]] = OrderedDict()  # last used last

    def __len__(self) -> int:
        return len(self._images)

    def add(self, image: OpenImage) -> str:
        """Keep an image, drop what is too much, and give the new image's key."""
        key = secrets.token_urlsafe(24)
        with self._lock:
            self._images[key] = (self._clock(), image)
            self._drop_idle()
            while len(self._images) > self._limit:
                self._images.popitem(last=False)
        return key

    def get(self, key: str) -> OpenImage | None:
        """The image of a key, which counts as a use; ``None`` for a key that is unknown or was dropped."""
        with self._lock:
            self._drop_idle()
            if key not in self._images:
                return None
            _, image = self._images.pop(key)
            self._images[key] = (self._clock(), image)
            return image

    def close(self, key: str) -> None:
        """Drop an image; an unknown key is none to drop."""
        with self._lock:
            self._images.pop(key, None)

    def drop_idle(self) -> None:
        """Drop the images that nobody has used for a while."""
        with self._lock:
            self._drop_idle()

    def clear(self) -> None:
        """Drop all."""
        with self._lock:
            self._images.clear()

    def _drop_idle(self) -> None:
        latest = self._clock() - self._idle
        for key in [key for key, (used, _) in self._images.items() if used < latest]:
            del self._images[key]
