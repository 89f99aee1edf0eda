"""Write a checkpoint's net as graphs that run without this package, and stand by them only if they say the same.

The recipe; knows no flags.
"""

from __future__ import annotations

import logging
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import torch

from promise.data.transforms.recipes import IMAGENET_MEAN, IMAGENET_STD, Transform, build_transform, plain_recipe
from promise.export.checks import ALL_GRAPHS, LEAST_DICE, ONE_GRAPH, Check, Picture, check_graphs, make_pictures
from promise.export.formats import FORMATS, OPSET, PACKAGES, Format, Runner, check_packages
from promise.export.graphs import Graph, build_graphs
from promise.inference.postprocess import Postprocess
from promise.models import checkpoint
from promise.models.promise import Promise
from promise.models.sam.weights import file_sha256
from promise.runtime.environment import describe_environment
from promise.runtime.errors import UserError, unknown_name
from promise.runtime.files import check_output_dir, staged, write_json
from promise.runtime.progress import progress_bar

__all__ = ["Exported", "Settings", "export"]

log = logging.getLogger(__name__)

LAYOUT = "promise-export/1"
MANIFEST = "manifest.json"
EXAMPLE = "onnx_example.py"
NAMES = ("encoder", "prompter", "decoder", "image")
# Whatever an earlier export may have left.
OURS = (MANIFEST, EXAMPLE, *(f"{name}{end}" for name in NAMES for end in (".onnx", ".onnx.data", ".pt2")))
TURNS = 3  # of which the median time is told
_MEAN_STD = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "none": ((0.0,) * 3, (1.0,) * 3),
}


@dataclass(frozen=True)
class Settings:
    """What is exported, and how."""

    ckpt: str
    output: str
    format: str = "onnx"
    net: str | None = None  # as checkpoint.load takes it
    sam: str | None = None
    sam_checkpoint: str | None = None
    postprocess: str | None = None  # None: the checkpoint's own, else none
    images: int = 3  # pictures of the check
    overwrite: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    manifest: Mapping[str, Any]


def export(settings: Settings) -> Exported:
    """Write the graphs, compare them with PyTorch, and put them into place; or leave everything as it was.

    Raises:
        UserError: settings or files that cannot be used, packages that are missing, or graphs that differ.
    """
    if settings.format not in FORMATS:
        raise unknown_name("format", settings.format, FORMATS)
    if settings.images < 1:
        raise UserError("--images must be at least 1: without a picture nothing is checked.")
    given = None if settings.postprocess in (None, "default") else Postprocess.parse(settings.postprocess or "")
    folder = check_output_dir(Path(settings.output).expanduser(), OURS, overwrite=settings.overwrite)
    check_packages(settings.format)
    net, metadata = checkpoint.load(
        settings.ckpt, net_name=settings.net, sam=settings.sam, sam_checkpoint=settings.sam_checkpoint
    )
    postprocess = given or Postprocess.parse(metadata.postprocess or "none")
    backbone = net.sam.backbone
    recipe = plain_recipe(metadata.config.get("augment"))
    transform = build_transform(recipe, image_size=backbone.image_size, pixels=backbone.pixels)
    graphs = build_graphs(net, pixels=transform.pixels, threshold=postprocess.threshold)
    if net.needs_prompts:
        log.info("%s places no prompts of its own: there is no prompter and no image-to-mask graph.", metadata.net)
    kind = FORMATS[settings.format]
    with staged(folder, replaced=OURS, last=MANIFEST) as stage:
        runners = _write(graphs, kind, stage, quiet=settings.quiet)
        log.info("comparing with PyTorch on %d synthetic pictures", settings.images)
        pictures = make_pictures(net, transform, count=settings.images)
        checks = check_graphs(net, runners, pictures, threshold=postprocess.threshold)
        _refuse(checks, kind)
        manifest = {
            **_describe(settings, net, metadata, transform, postprocess),
            "graphs": _describe_graphs(graphs, kind, stage, runners, _inputs(graphs, pictures[0], runners)),
            "checks": {
                "pictures": settings.images,
                "bounds": {"one_graph": ONE_GRAPH, "all_graphs": ALL_GRAPHS, "dice": LEAST_DICE},
                "found": [check.as_dict() for check in checks],
            },
            "pytorch_seconds": _seconds(lambda: net.sam.encode(pictures[0].image)),
        }
        if "image" in runners and settings.format == "onnx":
            shutil.copyfile(Path(__file__).with_name(EXAMPLE), stage / EXAMPLE)
        write_json(stage / MANIFEST, manifest)
    return Exported(folder, manifest)


def _write(graphs: Sequence[Graph], kind: Format, stage: Path, *, quiet: bool) -> dict[str, Runner]:
    """Write every graph, and open it again from its file."""
    runners = {}
    for graph in progress_bar(graphs, total=len(graphs), name="exporting", unit="graph", quiet=quiet):
        log.info("writing %s%s", graph.name, kind.suffix)
        path = stage / f"{graph.name}{kind.suffix}"
        try:
            kind.write(graph, path)
            runners[graph.name] = kind.open(graph, path)
        except MemoryError as error:
            raise UserError(f"memory ran out while {path.name} was made: export on a larger machine.") from error
        except RuntimeError as error:  # of torch's exporters; what they say of it runs to pages
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(
                f"torch {torch.__version__} cannot export this {graph.name} as {path.name}: {reason}"
            ) from error
    return runners


def _refuse(checks: Sequence[Check], kind: Format) -> None:
    failed = [str(check) for check in checks if not check.passed]
    if failed:
        raise UserError(
            f"what {kind.runtime} computes is not what PyTorch computes, so nothing was written:\n  "
            + "\n  ".join(failed)
            + "\nAnother version of torch, onnxscript or onnxruntime may export this net rightly; --format "
            f"{'torch' if kind.suffix == '.onnx' else 'onnx'} is another way."
        )


def _inputs(graphs: Sequence[Graph], picture: Picture, runners: Mapping[str, Runner]) -> dict[str, dict[str, Any]]:
    """What each graph's time is taken on: one picture, and the prompts of the example."""
    sizes = {"image": picture.image, "picture": torch.from_numpy(picture.pixels)}
    return {g.name: {name: sizes.get(name, value[:1]) for name, value in g.inputs.items()} for g in graphs}


def _describe(
    settings: Settings, net: Promise, metadata: checkpoint.Metadata, transform: Transform, postprocess: Postprocess
) -> dict[str, Any]:
    backbone = net.sam.backbone
    mean, std = _MEAN_STD.get(transform.pixels, (None, None))
    label = getattr(net.apm, "label", None)
    return {
        "layout": LAYOUT,
        "format": settings.format,
        "opset": OPSET if settings.format == "onnx" else None,
        "net": metadata.net,
        "sam": metadata.sam,
        "sam_sha256": metadata.sam_sha256,
        "checkpoint": Path(settings.ckpt).name,
        "checkpoint_sha256": file_sha256(Path(settings.ckpt)),
        "epoch": metadata.epoch,
        "num_points": metadata.num_points,
        "point_labels": None if label is None else label.tolist(),
        "image_size": backbone.image_size,
        "embedding": [backbone.embedding_channels, backbone.embedding_side, backbone.embedding_side],
        "normalisation": {"pixels": transform.pixels, "mean": mean, "std": std},
        "postprocess": {**asdict(postprocess), "text": str(postprocess)},
        "environment": {
            **describe_environment(torch.device("cpu")),
            **{name: _version(name) for name in PACKAGES},
        },
    }


def _describe_graphs(
    graphs: Sequence[Graph],
    kind: Format,
    stage: Path,
    runners: Mapping[str, Runner],
    inputs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    told = {}
    for graph in graphs:
        path, given, run = stage / f"{graph.name}{kind.suffix}", inputs[graph.name], runners[graph.name]
        beside = path.with_name(f"{path.name}.data")
        told[graph.name] = {
            "file": path.name,
            "bytes": path.stat().st_size + (beside.stat().st_size if beside.exists() else 0),
            "sha256": file_sha256(path),
            "inputs": {name: _shape(value, graph.free.get(name, {})) for name, value in graph.inputs.items()},
            "outputs": list(graph.outputs),
            "seconds": _seconds(lambda run=run, given=given: run(given)),  # type: ignore[misc]
        }
    return told


def _shape(value: torch.Tensor, free: Mapping[int, str]) -> dict[str, Any]:
    return {
        "type": str(value.dtype).removeprefix("torch."),
        "shape": [free.get(axis, size) for axis, size in enumerate(value.shape)],
    }


def _seconds(work: Callable[[], Any]) -> float:
    """The median of some turns; the check before was the first."""
    times = []
    for _ in range(TURNS):
        started = time.perf_counter()
        with torch.no_grad():
            work()
        times.append(time.perf_counter() - started)
    return round(statistics.median(times), 4)


def _version(package: str) -> str | None:
    try:
        return packages.version(package)
    except packages.PackageNotFoundError:
        return None
