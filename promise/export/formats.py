"""How a graph is written to a file, and run from it again: ONNX with its runtime, or a torch.export program.

Knows no net and judges nothing.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promise.export.graphs import MOST, Graph
from promise.runtime.errors import MissingFileError, UserError

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Mapping[str, Tensor]], Arrays]  # named inputs → named outputs

OPSET = 18  # the exporter's native one; ONNX Runtime 1.14 of 2023 knows it
SINGLE_FILE_BYTES = 1_900_000_000  # a larger ONNX file must keep its weights in a second one, name.onnx.data
NEEDED_TORCH = (2, 9)  # the release in which torch.onnx.export took this exporter for its default
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Format:
    """A kind of file."""

    suffix: str
    runtime: str  # its name, for people
    write: Callable[[Graph, Path], None]
    open: Callable[[Graph, Path], Runner]


def check_packages(name: str) -> None:
    """Refuse a format that cannot be written here.

    Raises:
        MissingFileError: a package is missing.
        UserError: an older torch.
    """
    have = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if have < NEEDED_TORCH:
        raise UserError(
            f"promise-export needs torch {'.'.join(map(str, NEEDED_TORCH))} or newer, here is {torch.__version__}: "
            "pip install --upgrade torch torchvision. The checkpoint itself may come from an older one."
        )
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if name == "onnx" and missing:
        raise MissingFileError(
            f"exporting to ONNX needs {', '.join(missing)}: pip install 'promise-sam[export]', or take --format torch."
        )


def _shapes(graph: Graph) -> tuple[Any, ...]:
    sizes = {name: torch.export.Dim(name, min=1, max=most) for name, most in MOST.items()}
    free = tuple({axis: sizes[size] for axis, size in graph.free.get(name, {}).items()} for name in graph.inputs)
    parameters = inspect.signature(graph.module.forward).parameters.values()
    return (free,) if any(p.kind is p.VAR_POSITIONAL for p in parameters) else free  # the exporter's own way with *taps


def _write_onnx(graph: Graph, path: Path) -> None:
    with _quietly():
        program = torch.onnx.export(
            graph.module,
            tuple(graph.inputs.values()),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=_shapes(graph),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        weights = sum(value.nbytes for value in graph.module.state_dict().values())
        program.save(str(path), external_data=weights > SINGLE_FILE_BYTES)


def _open_onnx(graph: Graph, path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # PyTorch's threads want the cores too
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> Arrays:
        with _told(path, "onnxruntime"):
            found = session.run(list(graph.outputs), {name: value.numpy() for name, value in inputs.items()})
        return dict(zip(graph.outputs, map(np.asarray, found), strict=True))

    return run


def _write_torch(graph: Graph, path: Path) -> None:
    with _quietly():
        program = torch.export.export(
            graph.module, tuple(graph.inputs.values()), dynamic_shapes=_shapes(graph), strict=False
        )
        torch.export.save(program, path)


def _open_torch(graph: Graph, path: Path) -> Runner:
    with _quietly():
        module = torch.export.load(path).module()

    def run(inputs: Mapping[str, Tensor]) -> Arrays:
        with _told(path, "torch.export"), torch.no_grad():
            found = module(*inputs.values())
        return {name: value.numpy() for name, value in zip(graph.outputs, found, strict=True)}

    return run


@contextmanager
def _told(path: Path, runtime: str) -> Iterator[None]:
    """Make one line of whatever a runtime says of a graph that it cannot run."""
    try:
        yield
    except Exception as error:  # runtimes have no common class of errors
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path.name} was written, but {runtime} cannot run it, so nothing was kept: {reason}"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' notes on their own insides."""
    chatty = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in chatty]
    try:
        for logger in chatty:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)


FORMATS = {
    "onnx": Format(".onnx", "onnxruntime", _write_onnx, _open_onnx),
    "torch": Format(".pt2", "torch.export", _write_torch, _open_torch),
}
