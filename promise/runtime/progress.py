"""Progress bars on stderr: live on a terminal, a line now and then in a log; knows nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(items: Iterable[Any] | None = None, *, total: int, name: str, unit: str, quiet: bool = False) -> Any:
    """A bar over items, or one to update by hand; it goes when it is done.

    Args:
        items: what to go through.
        total: how many.
        name: before the bar.
        unit: of what is counted.
        quiet: no bar.
    """
    seconds = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(items, total=total, desc=name, unit=unit, disable=quiet, leave=False, mininterval=seconds)
