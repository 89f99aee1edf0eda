"""Speed and memory of this package, compared with a baseline. Names are imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["GROWTH", "MEMORY", "PARTS", "Bench", "BenchConfig", "Settings", "benchmark"]

if TYPE_CHECKING:
    from promise.benchmark.bench import Bench
    from promise.benchmark.config import BenchConfig, Settings
    from promise.benchmark.runner import GROWTH, MEMORY, PARTS, benchmark

# Public name → the module that defines it.
_HOME = {
    "Bench": "promise.benchmark.bench",
    "BenchConfig": "promise.benchmark.config",
    "Settings": "promise.benchmark.config",
    **dict.fromkeys(("GROWTH", "MEMORY", "PARTS", "benchmark"), "promise.benchmark.runner"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
