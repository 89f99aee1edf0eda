"""Settings of a prediction, with all defaults. Imports no torch, so that ``--help`` is fast."""

from __future__ import annotations

import dataclasses

from promise.runtime.settings import PRECISIONS, SPLITS, option


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """All settings that determine a prediction."""

    ckpt: str | None = option(
        None,
        "checkpoint of promise-train (.safetensors) or of the reference implementation (.pt, .pth)",
        group="net",
    )
    net: str | None = option(None, "net in a file of the reference implementation", group="net")
    sam: str | None = option(None, "backbone, if the checkpoint does not name it", group="net")
    sam_checkpoint: str | None = option(None, "weight file of SAM, if it is not the published one", group="net")

    images: tuple[str, ...] = option((), "files, folders, glob patterns, CSVs, lists", group="data")
    recursive: bool = option(False, "also images in subfolders", group="data")
    data_root: str | None = option(None, "folder that paths in CSVs and lists are relative to", group="data")
    split: str | None = option(
        None, "of CSVs with a column train_type, use only these rows; default: all", choices=SPLITS, group="data"
    )
    batch_size: int = option(8, "images per step", group="data")
    workers: int = option(2, "threads that read images, and as many that write masks", group="data")

    prompts_from: str | None = option(
        None, "prompts.json of an earlier run, edited or not; default: the net's own prompts", group="masks"
    )
    postprocess: str | None = option(
        None,
        "none, open:5 or close:7, optionally followed by threshold:0.45, fill, largest, separated by commas; default: "
        "the one tuned into the checkpoint, else none",
        group="masks",
    )

    output: str | None = option(None, "folder for masks and prompts.json", group="output")
    probability: bool = option(False, "also write 16-bit probability maps (65535: probability 1)", group="output")
    overlay: bool = option(False, "also write images with outlines and prompts", group="output")
    contour: bool = option(False, "also write contours.json, the outlines in COCO format", group="output")
    overwrite: bool = option(False, "recompute and replace existing results", group="output")

    precision: str = option("auto", "auto: bf16 if the device supports it in hardware", choices=PRECISIONS, group="run")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="run")
    quiet: bool = option(False, "no progress bars, only warnings", group="run")
