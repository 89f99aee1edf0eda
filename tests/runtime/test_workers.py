from __future__ import annotations

import threading
import time

import pytest

from promise.runtime.workers import default_workers, ordered_map


def test_results_come_in_order_from_several_threads() -> None:
    seen = set()

    def work(item: int) -> int:
        seen.add(threading.get_ident())
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(ordered_map(work, range(40), workers=4)) == [i * i for i in range(40)]
    assert len(seen) > 1
    assert threading.get_ident() not in seen


def test_an_error_stops_what_has_not_begun() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        return 1 // (item - 3)

    with pytest.raises(ZeroDivisionError):
        list(ordered_map(work, range(10_000), workers=2))
    assert len(begun) < 30


def test_leaving_early_stops_too() -> None:
    begun = []
    results = ordered_map(begun.append, range(10_000), workers=2)
    next(results)
    results.close()
    assert len(begun) < 30


def test_there_is_a_worker() -> None:
    assert 1 <= default_workers() <= 8
