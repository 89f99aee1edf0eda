"""Training: the recipe, the trainer and its callbacks, losses, optimisers, selection of the best epoch, the run folder.

The names below are imported on first use, so that the settings (:mod:`promise.training.config`) need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["Callback", "TrainConfig", "TrainResult", "Trainer", "train"]

if TYPE_CHECKING:
    from promise.training.callbacks import Callback
    from promise.training.config import TrainConfig
    from promise.training.run import TrainResult, train
    from promise.training.trainer import Trainer

# Public name → the module that holds it.
_HOME = {
    "Callback": "promise.training.callbacks",
    "TrainConfig": "promise.training.config",
    "TrainResult": "promise.training.run",
    "Trainer": "promise.training.trainer",
    "train": "promise.training.run",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'promise.training' has no attribute {name!r}")
