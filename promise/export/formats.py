"""File formats of graphs: writing to a file, and running from it with ONNX Runtime or torch.export."""

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

from promise.export.graphs import MAX_SIZES, Graph
from promise.runtime.errors import MissingFileError, UserError

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Mapping[str, Tensor]], Arrays]  # named inputs → named outputs

OPSET = 18  # native opset of the exporter, supported since ONNX Runtime 1.14 (2023)
SINGLE_FILE_BYTES = 1_900_000_000  # weights of larger ONNX graphs are stored in a second file, name.onnx.data
NEEDED_TORCH = (2, 9)  # the first release in which this exporter is the default of torch.onnx.export
PACKAGES = ("onnx", "onnxruntime", "onnxscript")  # of the ONNX format
EXAMPLE = "onnx_example.py"


@dataclass(frozen=True)
class Format:
    """A row of :data:`FORMATS`."""

    suffix: str
    write: Callable[[Graph, Path], None]
    open: Callable[[Graph, Path], Runner]
    runtime: str  # name in messages
    alternative: str  # name of the format to try if this one fails
    packages: tuple[str, ...] = ()  # required to write and run it
    opset: int | None = None
    example: Path | None = None  # program that is copied to the output folder


def check_packages(name: str) -> None:
    """Check that torch is recent enough and that the packages of a format are installed.

    Args:
        name: format, a key of :data:`FORMATS`.

    Raises:
        MissingFileError: packages are missing.
        UserError: torch is too old.
    """
    installed = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if installed < NEEDED_TORCH:
        raise UserError(
            f"promise-export needs torch {'.'.join(map(str, NEEDED_TORCH))} or newer, not {torch.__version__}: "
            "pip install --upgrade torch torchvision. Checkpoints written with an older torch can be exported.",
            code="torch-too-old",
        )
    missing = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingFileError(
            f"exporting to ONNX needs {', '.join(missing)}: pip install 'promise-sam[export]', or use --format torch.",
            code="missing-package",
        )


def _shapes(graph: Graph) -> tuple[Any, ...]:
    sizes = {name: torch.export.Dim(name, min=1, max=most) for name, most in MAX_SIZES.items()}
    free = tuple({axis: sizes[size] for axis, size in graph.free.get(name, {}).items()} for name in graph.inputs)
    parameters = list(inspect.signature(graph.module.forward).parameters.values())
    if parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL:  # *taps is one input of the exporter
        first = len(parameters) - 1
        return (*free[:first], free[first:]) if len(free) > first else free
    return free


def _write_onnx(graph: Graph, path: Path) -> None:
    with _quiet():
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
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # leave the cores to the threads of PyTorch
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> Arrays:
        with _explain(path, "onnxruntime"):
            found = session.run(list(graph.outputs), {name: value.numpy() for name, value in inputs.items()})
        return dict(zip(graph.outputs, map(np.asarray, found), strict=True))

    return run


def _write_torch(graph: Graph, path: Path) -> None:
    with _quiet():
        program = torch.export.export(
            graph.module, tuple(graph.inputs.values()), dynamic_shapes=_shapes(graph), strict=False
        )
        torch.export.save(program, path)


def _open_torch(graph: Graph, path: Path) -> Runner:
    with _quiet():
        module = torch.export.load(path).module()

    def run(inputs: Mapping[str, Tensor]) -> Arrays:
        with _explain(path, "torch.export"), torch.no_grad():
            found = module(*inputs.values())
        return {name: value.numpy() for name, value in zip(graph.outputs, found, strict=True)}

    return run


@contextmanager
def _explain(path: Path, runtime: str) -> Iterator[None]:
    """Convert the errors of a runtime into a message of one line."""
    try:
        yield
    except Exception as error:  # runtimes have no common base class of errors
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path.name} was written, but {runtime} cannot run it, so nothing was kept: {reason}",
            code="graph-does-not-run",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the log messages and warnings of the exporters."""
    verbose = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in verbose]
    try:
        for logger in verbose:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(verbose, levels, strict=True):
            logger.setLevel(level)


FORMATS: dict[str, Format] = {
    "onnx": Format(
        ".onnx",
        _write_onnx,
        _open_onnx,
        runtime="onnxruntime",
        alternative="torch",
        packages=PACKAGES,
        opset=OPSET,
        example=Path(__file__).with_name(EXAMPLE),
    ),
    "torch": Format(".pt2", _write_torch, _open_torch, runtime="torch.export", alternative="onnx"),
}
