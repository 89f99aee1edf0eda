"""The limits of the machine, measured: speed of matrix products and of copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from promise.models.cpu.winograd import plain_convolutions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # of the square matrices; the fastest size counts
COPIED = {"cpu": 2**28, "cuda": 2**31}  # bytes
REPEATS = 5


def matrix_peak(device: torch.device, precision: str) -> float:
    """Measure the floating-point operations per second of square matrix products; TF32 as the process has set it.

    Args:
        device: where to measure.
        precision: a key of :data:`DTYPES`.
    """
    best = 0.0
    for side in SIDES.get(device.type, SIDES["cpu"]):
        a, b = (torch.rand(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
        best = max(best, 2 * side**3 / _fastest(partial(torch.matmul, a, b), device))
    return best


def copy_bandwidth(device: torch.device) -> float:
    """Measure the bytes per second of a copy within the memory of the device, read and written bytes together."""
    size = COPIED.get(device.type, COPIED["cpu"])
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source), device)


def count_flop(work: Callable[[], object]) -> int:
    """The floating-point operations of matrix products, attention and convolutions in a call, as PyTorch counts them.

    Winograd's convolutions count as many operations as those of PyTorch, which they replace.
    """
    with FlopCounterMode(display=False) as counter, plain_convolutions():
        work()
    return int(counter.get_total_flops())


def synchronize(device: torch.device) -> None:
    """Wait for the work of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(1 + REPEATS):  # the first warms up
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
