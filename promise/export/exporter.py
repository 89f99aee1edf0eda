"""Export a net as graphs that run without this package, and verify them against PyTorch."""

from __future__ import annotations

import logging
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from promise.data.transforms.recipes import IMAGENET_MEAN, IMAGENET_STD, Transform, build_transform, plain_recipe
from promise.export.checks import ALL_GRAPHS, LEAST_DICE, ONE_GRAPH, Check, CheckImage, check_graphs, make_images
from promise.export.config import ExportConfig
from promise.export.formats import EXAMPLE, FORMATS, PACKAGES, Format, Runner, check_packages
from promise.export.graphs import Graph, build_graphs
from promise.inference.postprocess import Postprocess
from promise.models import checkpoint
from promise.models.promise import Promise
from promise.models.prompters.lesions import check_settings
from promise.models.registry import change_lesions
from promise.models.sam.weights import file_sha256
from promise.runtime.environment import describe_environment, package_version
from promise.runtime.errors import UserError, unknown_name
from promise.runtime.files import check_output_dir, staged, write_json
from promise.runtime.lock import exclusive
from promise.runtime.progress import progress_bar
from promise.runtime.reading import expand_home

log = logging.getLogger(__name__)

LAYOUT = "promise-export/1"
MANIFEST = "manifest.json"
NAMES = ("encoder", "prompter", "decoder", "image")
# Files of an earlier export, in any format.
OUTPUTS = (MANIFEST, EXAMPLE, *(f"{name}{end}" for name in NAMES for end in (".onnx", ".onnx.data", ".pt2")))
REPEATS = 3  # timings of each graph; the median is reported
_MEAN_STD = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "none": ((0.0,) * 3, (1.0,) * 3),
}


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    folder: Path
    manifest: Mapping[str, Any]


def export(config: ExportConfig) -> Exported:
    """Write the graphs of a net and compare them with PyTorch. The output folder is unchanged if anything fails.

    Raises:
        UserError: a setting or the checkpoint is invalid, a package is missing, torch cannot export the net, or a graph
            differs from PyTorch.
        ExistingRunError: the output folder contains an export and ``overwrite`` is false.
    """
    if config.format not in FORMATS:
        raise unknown_name("format", config.format, FORMATS)
    if config.images < 1:
        raise UserError("--images must be at least 1: graphs are compared on these images.", code="images-out-of-range")
    explicit = None if config.postprocess in (None, "default") else Postprocess.parse(config.postprocess or "")
    lesion_values = check_settings(config.lesion_settings)
    if config.max_lesions is not None:
        lesion_values["max_lesions"] = config.max_lesions
    folder = check_output_dir(expand_home(config.output), OUTPUTS, overwrite=config.overwrite)
    check_packages(config.format)
    net, metadata = checkpoint.load(
        config.ckpt, net_name=config.net, sam=config.sam, sam_checkpoint=config.sam_checkpoint
    )
    if lesion_values:
        change_lesions(net, lesion_values, net_name=metadata.net)
    if net.lesions is not None and net.lesions.prompts != "box":
        raise UserError(
            f"{metadata.net} prompts its lesions with prompts={net.lesions.prompts}, and graphs place boxes only. Add "
            "prompts=box to --lesion-settings, or use promise-predict.",
            code="export-of-lesion-points",
        )
    postprocess = explicit or Postprocess.parse(metadata.postprocess or "none")
    backbone = net.sam.backbone
    recipe = plain_recipe(metadata.config.get("augment"))
    transform = build_transform(recipe, image_size=backbone.image_size, pixels=backbone.pixels)
    graphs = build_graphs(net, pixels=transform.pixels, threshold=postprocess.threshold)
    if net.needs_prompts:
        log.info("%s has no prompter: its graphs are encoder and decoder only.", metadata.net)
    kind = FORMATS[config.format]
    with exclusive(folder), staged(folder, replaced=OUTPUTS, last=MANIFEST) as stage:
        runners = _write(graphs, kind, stage, quiet=config.quiet)
        log.info("comparing with PyTorch on %d synthetic images", config.images)
        images = make_images(net, transform, count=config.images)
        if net.lesions is not None and not any(len(net.prompt(image.encoded).prompts) for image in images):
            log.warning(
                "the net finds no lesion in these images: decoding of lesions in image%s is unchecked", kind.suffix
            )
        checks = check_graphs(net, runners, images, threshold=postprocess.threshold)
        _require_equal(checks, kind)
        manifest = {
            "layout": LAYOUT,
            "format": config.format,
            "opset": kind.opset,
            **_describe(config, net, metadata, transform, postprocess),
            "graphs": _describe_graphs(graphs, kind, stage, runners, _inputs(graphs, images[0])),
            "checks": {
                "pictures": config.images,
                "bounds": {"one_graph": ONE_GRAPH, "all_graphs": ALL_GRAPHS, "dice": LEAST_DICE},
                "found": [check.as_dict() for check in checks],
            },
            "pytorch_seconds": _seconds(lambda: net.sam.encode(images[0].image)),
        }
        if "image" in runners and kind.example is not None:
            shutil.copyfile(kind.example, stage / EXAMPLE)
        write_json(stage / MANIFEST, manifest)
    return Exported(folder, manifest)


def _write(graphs: Sequence[Graph], kind: Format, stage: Path, *, quiet: bool) -> dict[str, Runner]:
    """Write every graph, and return a runner of each file."""
    runners = {}
    for graph in progress_bar(graphs, total=len(graphs), name="exporting", unit="graph", quiet=quiet):
        log.info("writing %s%s", graph.name, kind.suffix)
        path = stage / f"{graph.name}{kind.suffix}"
        try:
            kind.write(graph, path)
            runners[graph.name] = kind.open(graph, path)
        except MemoryError as error:
            raise UserError(
                f"out of memory while writing {path.name}. Export on a machine with more memory.", code="out-of-memory"
            ) from error
        except RuntimeError as error:  # from the exporters of torch, whose messages are several pages long
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(
                f"torch {torch.__version__} cannot export this {graph.name} as {path.name}: {reason}",
                code="export-failed",
            ) from error
    return runners


def _require_equal(checks: Sequence[Check], kind: Format) -> None:
    errors = [UserError(str(check), code="graph-differs") for check in checks if not check.passed]
    if errors:
        raise UserError(
            f"the results of {kind.runtime} differ from PyTorch, so nothing was written:\n  "
            + "\n  ".join(map(str, errors))
            + f"\nTry another version of torch, onnxscript or onnxruntime, or --format {kind.alternative}.",
            code="graph-differs",
            errors=errors,
        )


def _inputs(graphs: Sequence[Graph], image: CheckImage) -> dict[str, dict[str, Any]]:
    """Inputs with which each graph is timed: one image, and the example prompts of the graph."""
    images = {"image": image.image, "picture": torch.from_numpy(image.pixels)}
    return {g.name: {name: images.get(name, value[:1]) for name, value in g.inputs.items()} for g in graphs}


def _describe(
    config: ExportConfig, net: Promise, metadata: checkpoint.Metadata, transform: Transform, postprocess: Postprocess
) -> dict[str, Any]:
    backbone = net.sam.backbone
    mean, std = _MEAN_STD.get(transform.pixels, (None, None))
    label = getattr(net.apm, "label", None)
    return {
        "net": metadata.net,
        "sam": metadata.sam,
        "sam_sha256": metadata.sam_sha256,
        "checkpoint": Path(config.ckpt).name,
        "checkpoint_sha256": file_sha256(checkpoint.require(config.ckpt)),
        "epoch": metadata.epoch,
        "num_points": metadata.num_points,
        "point_labels": None if label is None else label.tolist(),
        "lesions": None if net.lesions is None else asdict(net.lesions),
        "image_size": backbone.image_size,
        "embedding": [backbone.embedding_channels, backbone.embedding_side, backbone.embedding_side],
        "normalisation": {"pixels": transform.pixels, "mean": mean, "std": std},
        "postprocess": {**asdict(postprocess), "text": str(postprocess)},
        "environment": {
            **describe_environment(torch.device("cpu")),
            **{name: package_version(name) for name in PACKAGES},
        },
    }


def _describe_graphs(
    graphs: Sequence[Graph],
    kind: Format,
    stage: Path,
    runners: Mapping[str, Runner],
    inputs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    described = {}
    for graph in graphs:
        path, graph_inputs, run = stage / f"{graph.name}{kind.suffix}", inputs[graph.name], runners[graph.name]
        weights = path.with_name(f"{path.name}.data")
        described[graph.name] = {
            "file": path.name,
            "bytes": path.stat().st_size + (weights.stat().st_size if weights.exists() else 0),
            "sha256": file_sha256(path),
            "inputs": {name: _shape(value, graph.free.get(name, {})) for name, value in graph.inputs.items()},
            "outputs": list(graph.outputs),
            "seconds": _seconds(lambda run=run, graph_inputs=graph_inputs: run(graph_inputs)),  # type: ignore[misc]
        }
    return described


def _shape(value: torch.Tensor, free: Mapping[int, str]) -> dict[str, Any]:
    return {
        "type": str(value.dtype).removeprefix("torch."),
        "shape": [free.get(axis, size) for axis, size in enumerate(value.shape)],
    }


def _seconds(work: Callable[[], Any]) -> float:
    """Median time of a few calls. The comparison before was the warm-up."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        with torch.no_grad():
            work()
        times.append(time.perf_counter() - started)
    return round(statistics.median(times), 4)
