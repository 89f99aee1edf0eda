"""ProMISe: a frozen Segment Anything Model that prompts itself on medical images.

Everything heavy is imported on first use, so that ``import promise`` and ``--help`` are instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"
__all__ = [
    "Encoded",
    "Points",
    "Prediction",
    "Segmentation",
    "Segmenter",
    "Session",
    "__version__",
    "build_net",
    "checkpoint",
    "load",
    "losses",
    "metrics",
]

if TYPE_CHECKING:
    from promise import checkpoint, losses, metrics
    from promise.registry import build_net
    from promise.segmenter import Segmentation, Segmenter, Session, load
    from promise.types import Encoded, Points, Prediction

_HOME = {
    "build_net": "promise.registry",
    "load": "promise.segmenter",
    "Segmentation": "promise.segmenter",
    "Segmenter": "promise.segmenter",
    "Session": "promise.segmenter",
    "Points": "promise.types",
    "Encoded": "promise.types",
    "Prediction": "promise.types",
}
_MODULES = ("checkpoint", "losses", "metrics")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"promise.{name}")
    raise AttributeError(f"module 'promise' has no attribute {name!r}")
