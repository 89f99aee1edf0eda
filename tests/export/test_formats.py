"""What must be installed is told before anything slow."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from promise.export.formats import FORMATS, check_packages
from promise.export.graphs import Graph
from promise.runtime.errors import MissingFileError, UserError


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


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (2 * x,)


def test_a_program_comes_back_and_what_it_cannot_take_is_one_line(tmp_path: Path) -> None:
    graph = Graph("doubled", Doubled(), {"x": torch.rand(2, 3)}, {"x": {0: "batch"}}, ("y",))
    path = tmp_path / "doubled.pt2"
    FORMATS["torch"].write(graph, path)
    run = FORMATS["torch"].open(graph, path)
    assert (run({"x": torch.ones(5, 3)})["y"] == np.full((5, 3), 2)).all()
    with pytest.raises(UserError, match=r"^doubled\.pt2 was written, but torch\.export cannot run it, .*$") as caught:
        run({"x": torch.ones(5, 4)})
    assert "\n" not in str(caught.value)
