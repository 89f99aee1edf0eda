"""Ordered map in threads."""

from __future__ import annotations

import threading
import time

import pytest

from promise.runtime.workers import default_workers, ordered_map


def test_results_are_ordered_and_computed_in_several_threads() -> None:
    seen = set()

    def work(item: int) -> int:
        seen.add(threading.get_ident())
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(ordered_map(work, range(40), workers=4)) == [i * i for i in range(40)]
    assert len(seen) > 1
    assert threading.get_ident() not in seen


def test_an_error_cancels_pending_items() -> None:
    started = []

    def work(item: int) -> int:
        started.append(item)
        return 1 // (item - 3)

    with pytest.raises(ZeroDivisionError):
        list(ordered_map(work, range(10_000), workers=2))
    assert len(started) < 30


def test_closing_the_iterator_cancels_pending_items() -> None:
    started = []
    results = ordered_map(started.append, range(10_000), workers=2)
    next(results)
    results.close()
    assert len(started) < 30


def test_default_number_of_workers() -> None:
    assert 1 <= default_workers() <= 8
