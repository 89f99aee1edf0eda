"""Settings of a prediction, with their defaults. Imports no torch."""

from __future__ import annotations

import dataclasses

from promise.runtime.settings import (
    CKPT_HELP,
    DATA_ROOT_HELP,
    DEVICE_HELP,
    LESION_SETTINGS_HELP,
    MAX_LESIONS_HELP,
    MAX_WORKERS,
    PRECISION_HELP,
    PRECISIONS,
    SPLITS,
    option,
)


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """All settings of a prediction."""

    ckpt: str | None = option(
        None,
        CKPT_HELP,
        metavar="FILE",
        group="net",
    )
    net: str | None = option(None, "net, for checkpoints of the reference implementation", metavar="NAME", group="net")
    sam: str | None = option(None, "backbone, if the checkpoint does not name it", metavar="NAME", group="net")
    sam_checkpoint: str | None = option(
        None, "weight file of SAM; default: the published weights", metavar="FILE", group="net"
    )

    images: tuple[str, ...] = option((), "files, folders, patterns, CSVs or lists of images", group="data")
    recursive: bool = option(False, "include subfolders", group="data")
    data_root: str | None = option(None, DATA_ROOT_HELP, metavar="FOLDER", group="data")
    split: str | None = option(
        None, "rows of CSVs with a column train_type; default: all", choices=SPLITS, group="data"
    )
    batch_size: int = option(8, "images per step", group="data", least=1)
    workers: int = option(
        2, "threads that read images, and threads that write masks", group="data", least=1, most=MAX_WORKERS
    )

    prompts_from: str | None = option(
        None,
        "prompts.json of an earlier run, which may be edited; default: prompts from the prompter of the net",
        metavar="FILE",
        group="masks",
    )
    postprocess: str | None = option(
        None,
        "none, open:5 or close:7, optionally followed by threshold:0.45, fill, largest, separated by commas; default: "
        "as stored in the checkpoint, else none",
        metavar="STEPS",
        group="masks",
    )
    max_lesions: int | None = option(None, MAX_LESIONS_HELP, group="masks", least=1)
    lesion_settings: str | None = option(None, LESION_SETTINGS_HELP, metavar="NAME=VALUE,…", group="masks")

    output: str | None = option(None, "folder for masks and prompts.json", metavar="FOLDER", group="output")
    probability: bool = option(False, "also write probability maps (16-bit, 65535 is probability 1)", group="output")
    overlay: bool = option(False, "also write images with outlines and prompts", group="output")
    contour: bool = option(False, "also write contours.json, polygons in COCO format", group="output")
    review_below: float | None = option(
        None,
        "write review.csv: images whose estimated IoU is lower, 0 to 1, and images without a lesion",
        metavar="IOU",
        group="output",
    )
    overwrite: bool = option(False, "replace existing masks", group="output")

    precision: str = option("auto", PRECISION_HELP, choices=PRECISIONS, group="run")
    device: str = option("auto", DEVICE_HELP, metavar="NAME", group="run")
    quiet: bool = option(False, "hide progress bars and messages other than warnings", group="run")
