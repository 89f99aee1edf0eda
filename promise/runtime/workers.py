"""One function over many items in threads, results in order, stopped at once by an error; knows nothing else."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_workers() -> int:
    """As many threads as cores, at most 8."""
    return min(8, os.cpu_count() or 1)


def ordered_map(work: Callable[[Item], Result], items: Iterable[Item], *, workers: int) -> Iterator[Result]:
    """``map`` in threads; a few items ahead, so that an interrupt leaves nothing long to wait for.

    Args:
        work: called from several threads; OpenCV, PIL and numpy let go of the lock while they compute.
        items: what to go through.
        workers: threads, at least 1.
    """
    pool = ThreadPoolExecutor(workers)
    ahead: deque[Future[Result]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) >= 4 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
