"""Progress bars on stderr: live on a terminal, one line every ten seconds in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    items: Iterable[Any] | None = None, *, total: int, name: str, unit: str, done: int = 0, quiet: bool = False
) -> Any:
    """Return a progress bar, which is removed when it is complete.

    Args:
        items: items to iterate over; ``None`` for a bar that is updated by its ``update`` method.
        total: number of items.
        name: label of the bar.
        unit: name of one item, such as ``"image"``.
        done: number of items before these.
        quiet: whether the bar is hidden.
    """
    seconds = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(items, total=total, desc=name, unit=unit, initial=done, disable=quiet, leave=False, mininterval=seconds)
