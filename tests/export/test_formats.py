"""File formats and their requirements."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promise.export.formats import FORMATS, check_packages
from promise.export.graphs import Graph
from promise.runtime.errors import MissingFileError

Expect = Callable[..., Any]


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch, user_error: Expect) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with user_error("missing-package") as caught:
        check_packages("onnx")
    assert isinstance(caught.value, MissingFileError)
    assert "onnxscript: pip install 'promise-sam[export]'" in str(caught.value)
    assert "--format torch" in str(caught.value)
    check_packages("torch")


@pytest.mark.parametrize(
    ("version", "good"), [("2.4.1+cpu", False), ("2.8.0", False), ("2.9.0a0", True), ("3.0", True)]
)
def test_torch_must_be_recent(monkeypatch: pytest.MonkeyPatch, version: str, good: bool, user_error: Expect) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    if good:
        check_packages("torch")
        return
    with user_error("torch-too-old") as caught:
        check_packages("torch")
    assert all(fact in str(caught.value) for fact in ("torch 2.9", version, "pip install"))


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (2 * x,)


def test_a_program_runs_and_reports_invalid_input_in_one_line(tmp_path: Path, user_error: Expect) -> None:
    graph = Graph("doubled", Doubled(), {"x": torch.rand(2, 3)}, {"x": {0: "batch"}}, ("y",))
    path = tmp_path / "doubled.pt2"
    FORMATS["torch"].write(graph, path)
    run = FORMATS["torch"].open(graph, path)
    assert (run({"x": torch.ones(5, 3)})["y"] == np.full((5, 3), 2)).all()
    with user_error("graph-does-not-run") as caught:
        run({"x": torch.ones(5, 4)})
    assert all(fact in str(caught.value) for fact in ("doubled.pt2", "torch.export"))
    assert "\n" not in str(caught.value)
