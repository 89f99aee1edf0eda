"""The nets that the page offers. A net is loaded when it is needed first, and is then kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promise.app.open_images import Session
from promise.runtime.errors import unknown_name


@dataclass(frozen=True)
class Net:
    """A net in memory."""

    encode: Callable[[NDArray[np.uint8]], Session]  # an image (H, W, 3) uint8 RGB → its session
    # ``title``; ``automatic``, whether it has a prompter; ``lesions``, whether it finds lesions; ``own_mask``, which of
    # SAM's three masks is its own output, or ``None``; ``estimates``, whether it has a learned estimate of the IoU.
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Offer:
    """A net that can be loaded."""

    name: str
    purpose: str  # what it segments, or an empty text
    load: Callable[[], Net]  # raises UserError


class Nets:
    """The nets of a server. Its methods may be called from any thread."""

    def __init__(self, offers: Sequence[Offer]) -> None:
        """Keep a list of nets, of which the first one is the default; none is loaded."""
        self._offers = {offer.name: offer for offer in offers}
        self._loaded: dict[str, Net] = {}  # the net that was used last is the last one
        self._lock = threading.Lock()

    def resolve(self, name: str | None) -> str:
        """The name of a net: ``name``, or the default.

        Raises:
            UserError: there is no such net (``unknown-net``).
        """
        if name is None:
            return next(iter(self._offers))
        if name not in self._offers:
            raise unknown_name("net", name, self._offers)
        return name

    def load(self, name: str) -> Net:
        """The net of a name, loaded if necessary. A net that could not be loaded is tried again the next time.

        Raises:
            UserError: the net cannot be loaded.
        """
        with self._lock:
            net = self._loaded.pop(name, None) or self._offers[name].load()
            self._loaded[name] = net
            return net

    def loaded(self) -> list[tuple[str, Net]]:
        """Name and net of all loaded nets; the one that was used last comes first."""
        return list(self._loaded.copy().items())[::-1]

    def describe(self) -> list[dict[str, Any]]:
        """Name, purpose and, of loaded nets, properties of all nets."""
        nets = self._loaded.copy()
        return [
            {"name": name, "purpose": offer.purpose, "about": nets[name].about if name in nets else None}
            for name, offer in self._offers.items()
        ]
