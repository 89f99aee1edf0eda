"""Export of a net as ONNX graphs or ``torch.export`` programs. Names are imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["ExportConfig", "Exported", "Settings", "export"]

if TYPE_CHECKING:
    from promise.export.config import ExportConfig
    from promise.export.config import ExportConfig as Settings
    from promise.export.exporter import Exported, export

# Public name → module and name there.
_HOME = {
    "ExportConfig": ("promise.export.config", "ExportConfig"),
    "Settings": ("promise.export.config", "ExportConfig"),  # earlier name
    "Exported": ("promise.export.exporter", "Exported"),
    "export": ("promise.export.exporter", "export"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(importlib.import_module(module), attribute)
