"""Memory of the process: the C library's settings, the peak, errors when it runs out."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from promise.runtime.errors import UserError

if TYPE_CHECKING:
    import torch


def keep_freed_memory() -> bool:
    """Let the C library keep large freed blocks instead of giving them back to the system at once.

    A CPU pass frees and asks again for the same tens of megabytes hundreds of times; with glibc's defaults each
    time is a system call and thousands of page faults, which more than doubles the time of a LiteMedSAM pass. No
    value is computed otherwise. Costs: the process stays as large as it has once been.

    Returns:
        Whether the C library took the setting; ``False`` where it is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    never_mmap, never_trim = (-4, 0), (-1, 2**31 - 1)  # M_MMAP_MAX, M_TRIM_THRESHOLD
    pad = (-2, 2**28)  # M_TOP_PAD
    return all(mallopt(*setting) == 1 for setting in (never_mmap, never_trim, pad))


def peak_memory(device: torch.device) -> float:
    """GiB that were in use at most: allocated on a GPU, else resident of this process."""
    import torch

    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    try:  # Linux: of this program; getrusage counts the memory of the one that started it, too
        told = Path("/proc/self/status").read_text(encoding="utf-8")
        return round(int(told.split("VmHWM:")[1].split()[0]) / 2**20, 2)
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    # In kilobytes, on a Mac in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2)


@contextmanager
def explain_out_of_memory(batch_size: int, *, advice: str = "") -> Iterator[None]:
    """Turn running out of memory into an error that names a batch size to try.

    Raises:
        UserError: memory ran out.
    """
    import torch

    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        if batch_size == 1:
            words = "even one image is too much: take a smaller --sam, or --precision bf16"
        else:
            words = f"try --batch-size {batch_size // 2}{advice}"
        raise UserError(f"memory ran out with --batch-size {batch_size}: {words}.") from error
