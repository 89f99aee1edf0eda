"""Work in threads: in order, with few items waiting, and faults told."""

from __future__ import annotations

import time

import pytest

from promise.beside import beside


def test_results_come_in_the_items_order() -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(beside(work, range(40))) == [i * i for i in range(40)]


def test_items_are_made_as_they_are_needed() -> None:
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    results = beside(lambda item: item, items())
    assert next(results) == 0
    assert len(made) <= 20


def test_a_fault_in_the_work_is_told() -> None:
    with pytest.raises(ZeroDivisionError):
        list(beside(lambda item: 1 // item, [1, 0]))
