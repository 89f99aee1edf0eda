"""Memory of the process: allocator settings, peak use, out-of-memory errors."""

from __future__ import annotations

import ctypes
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from promise.runtime.errors import UserError, is_out_of_memory

if TYPE_CHECKING:
    import torch


def keep_freed_memory() -> bool:
    """Configure glibc to keep large freed blocks instead of returning them to the system.

    A forward pass on a CPU allocates and frees the same tens of megabytes hundreds of times. With the default settings
    of glibc each allocation is a system call with thousands of page faults, which more than doubles the time of a
    LiteMedSAM pass. Results do not change. The process keeps the size of its peak.

    Returns:
        Whether the settings were applied; ``False`` if the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    never_mmap, never_trim = (-4, 0), (-1, 2**31 - 1)  # M_MMAP_MAX, M_TRIM_THRESHOLD
    pad = (-2, 2**28)  # M_TOP_PAD
    return all(mallopt(*setting) == 1 for setting in (never_mmap, never_trim, pad))


def return_freed_memory() -> None:
    """Return freed memory to the system, after work on something large; only where the C library is glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory(device: torch.device) -> float:
    """Return the peak memory of this process in GiB: allocated by torch on a GPU, resident memory otherwise.

    ``nan`` where the system does not report it.
    """
    import torch

    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    try:  # Linux. getrusage would include the memory of the parent process.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return round(int(status.split("VmHWM:")[1].split()[0]) / 2**20, 2)
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, else kilobytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2)


def free_gpu_memory(device: torch.device) -> int:
    """Free memory of a CUDA device in bytes; 0 for other devices."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


@contextmanager
def explain_out_of_memory(batch_size: int, *, advice: str = "") -> Iterator[None]:
    """Convert an out-of-memory error into a message that suggests a smaller batch size.

    Args:
        batch_size: current ``--batch-size``.
        advice: text appended to the suggestion.

    Raises:
        UserError: out of memory.
    """
    import torch

    try:
        yield
    except (RuntimeError, MemoryError) as error:  # RuntimeError is the base class of torch.OutOfMemoryError
        _explain_workers(error)
        if not isinstance(error, torch.OutOfMemoryError) and not is_out_of_memory(error):
            raise
        if batch_size == 1:
            suggestion = "one image does not fit. Use a smaller --sam, or --precision bf16"
        else:
            suggestion = f"try --batch-size {batch_size // 2}{advice}"
        raise UserError(f"out of memory with --batch-size {batch_size}: {suggestion}.", code="out-of-memory") from error


def _explain_workers(error: BaseException) -> None:
    """Raise ``UserError`` if worker processes had too little shared memory, or one of them was killed."""
    text = str(error)
    bus_error = "killed by signal: Bus error" in text
    if bus_error or "unable to allocate shared memory" in text or "unable to write to file </torch_" in text:
        try:
            size = f" ({shutil.disk_usage('/dev/shm').total / 2**20:.0f} MB)"
        except OSError:
            size = ""
        raise UserError(
            f"/dev/shm{size} is full: use --workers 0, or start the container with docker run --shm-size 2g.",
            code="shared-memory-full",
        ) from error
    if "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text):
        raise UserError(
            f"a worker process died ({text.partition('. ')[0]}), perhaps for lack of memory: use fewer --workers.",
            code="worker-died",
        ) from error
