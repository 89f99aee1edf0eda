"""Ordered parallel map over items in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_workers() -> int:
    """Number of threads used by default: the number of cores, at most 8."""
    return min(8, os.cpu_count() or 1)


def ordered_map(work: Callable[[Item], Result], items: Iterable[Item], *, workers: int) -> Iterator[Result]:
    """Apply a function to items in threads and yield the results in order.

    At most four items per thread are submitted ahead, so that an error or an interrupt stops the map quickly.

    Args:
        work: function, called from several threads. OpenCV, PIL and numpy release the GIL while they compute.
        items: arguments of the function.
        workers: number of threads, at least 1.
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
