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
    "UserError",
    "__version__",
    "build_net",
    "checkpoint",
    "load",
    "losses",
    "metrics",
]

if TYPE_CHECKING:
    from promise.evaluation import metrics
    from promise.inference.segmentation import Segmentation
    from promise.inference.segmenter import Segmenter, load
    from promise.inference.session import Session
    from promise.models import checkpoint
    from promise.models.registry import build_net
    from promise.runtime.errors import UserError
    from promise.training import losses
    from promise.types import Encoded, Points, Prediction

# Public name → the module that holds it.
_HOME = {
    "build_net": "promise.models.registry",
    "load": "promise.inference.segmenter",
    "Segmentation": "promise.inference.segmentation",
    "Segmenter": "promise.inference.segmenter",
    "Session": "promise.inference.session",
    "UserError": "promise.runtime.errors",
    "Points": "promise.types",
    "Encoded": "promise.types",
    "Prediction": "promise.types",
}
_MODULES = {
    "checkpoint": "promise.models.checkpoint",
    "losses": "promise.training.losses",
    "metrics": "promise.evaluation.metrics",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'promise' has no attribute {name!r}")
