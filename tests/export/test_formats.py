"""What must be installed is told before anything slow."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from promise.errors import MissingFileError, UserError
from promise.export.formats import check_packages


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(MissingFileError, match=r"needs onnxscript: pip install 'promise-sam\[export\]'"):
        check_packages("onnx")
    check_packages("torch")


@pytest.mark.parametrize(
    ("version", "good"), [("2.4.1+cpu", False), ("2.8.0", False), ("2.9.0a0", True), ("3.0", True)]
)
def test_an_older_torch_is_refused(monkeypatch: pytest.MonkeyPatch, version: str, good: bool) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    if good:
        check_packages("torch")
        return
    with pytest.raises(UserError, match=r"needs torch 2\.9 or newer"):
        check_packages("torch")
