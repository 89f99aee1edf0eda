"""Settings of a prediction. Every default is here and nowhere else; imports no torch."""

from __future__ import annotations

import dataclasses

from promise.runtime.settings import PRECISIONS, SPLITS, option


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Everything that decides a prediction."""

    ckpt: str | None = option(None, "checkpoint: ours (.safetensors) or the original's (.pt, .pth)", group="net")
    net: str | None = option(None, "net that an original file holds", group="net")
    sam: str | None = option(None, "backbone, where the checkpoint does not name it", group="net")
    sam_checkpoint: str | None = option(None, "SAM's weight file, where it is not the published one", group="net")

    images: tuple[str, ...] = option((), "files, folders, patterns, CSVs, lists", group="data")
    recursive: bool = option(False, "also what lies in folders below the given ones", group="data")
    data_root: str | None = option(None, "folder that paths in CSVs and lists are re-rooted onto", group="data")
    split: str | None = option(
        None, "of CSVs with a column train_type, only these rows; default: all", choices=SPLITS, group="data"
    )
    batch_size: int = option(8, "images a step", group="data")
    workers: int = option(2, "threads that read, and as many that write", group="data")

    prompts_from: str | None = option(
        None, "prompts.json of an earlier run, corrected or not; default: the net's own prompts", group="masks"
    )
    postprocess: str | None = option(
        None,
        "none, open:5, close:7, and behind commas threshold:0.45, fill, largest; default: what was tuned into the "
        "checkpoint, else none",
        group="masks",
    )

    output: str | None = option(None, "folder for masks and prompts.json", group="output")
    probability: bool = option(False, "also maps of 16 bits, 65535 for certain foreground", group="output")
    overlay: bool = option(False, "also pictures with outline and prompts", group="output")
    contour: bool = option(False, "also contours.json, outlines as COCO has them", group="output")
    overwrite: bool = option(False, "make again what is there", group="output")

    precision: str = option(
        "auto", "auto: bf16 where the device has instructions for it", choices=PRECISIONS, group="run"
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="run")
    quiet: bool = option(False, "no progress bars, warnings only", group="run")
