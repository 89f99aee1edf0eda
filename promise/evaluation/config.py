"""Settings of an evaluation. Every default is here and nowhere else; imports no torch."""

from __future__ import annotations

import dataclasses

from promise.runtime.settings import (
    CACHE_DIR_HELP,
    CACHE_DTYPE_HELP,
    CACHE_DTYPES,
    CACHES,
    PRECISIONS,
    SPLITS,
    option,
)

EMPTY_RULES = {
    "one": "where the truth is empty, overlap scores are 1 for an empty prediction and 0 otherwise",
    "skip": "rows whose truth is empty are left out of overlap scores",
    "zero": "where the truth is empty, overlap scores are 0",
}


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Everything that decides an evaluation."""

    ckpt: str | None = option(
        None,
        "checkpoint: ours (.safetensors) or the original's (.pt, .pth); none: an untrained net",
        group="net",
    )
    net: str | None = option(None, "net to evaluate as; required for original files and without --ckpt", group="net")
    sam: str | None = option(None, "backbone, where the checkpoint does not name it", group="net")
    sam_checkpoint: str | None = option(None, "SAM's weight file, where it is not the published one", group="net")
    num_points: int | None = option(
        None, "points drawn from the ground truth; default: the checkpoint's, else 16", group="net"
    )

    split_csv: tuple[str, ...] = option((), "one or more split CSVs, each a data set", group="data")
    data_root: str | None = option(None, "folder that the CSVs' paths are re-rooted onto", group="data")
    split: str | None = option(
        None, "rows to score; default: test where there are any, else val", choices=SPLITS, group="data"
    )
    check: str = option("full", "how far files are opened before scoring", choices=("full", "header"), group="data")
    recipe: str | None = option(
        None, "pixel recipe, one without augmentation; default: the checkpoint's, else basic_color", group="data"
    )
    batch_size: int = option(8, "images a step", group="data")
    workers: int = option(2, "loader processes; 0 loads in the main one", group="data")

    cache: str = option(
        "eval", "features kept on disk: off; eval: where the disk allows", choices=CACHES[:2], group="features"
    )
    cache_dir: str | None = option(None, CACHE_DIR_HELP, group="features")
    cache_dtype: str = option("auto", CACHE_DTYPE_HELP, choices=CACHE_DTYPES, group="features")

    prompts: str | None = option(
        None,
        "auto: the net's own; gt: points from the ground truth; gt-box: its box; centre: the image's middle; none: no "
        "prompt; file:prompts.json: what an earlier evaluation or somebody else wrote; default: what the net is meant "
        "for",
        group="scoring",
    )
    gt_points: str | None = option(
        None, "foreground+background points drawn from the ground truth, such as 8+8", group="scoring"
    )
    gt_box: bool = option(False, "the ground truth's box beside the points", group="scoring")
    prompt_seeds: int = option(1, "draws of the points for the same images, with consecutive seeds", group="scoring")
    postprocess: str | None = option(
        None,
        "none, open:5, close:7, and behind commas threshold:0.45, fill, largest; the word default: open:5 in the "
        "reference protocol, none in the native; without this flag also that, but for what was tuned into the "
        "checkpoint, in the native",
        group="scoring",
    )
    tune_postprocess: bool = option(
        False,
        "score nothing: choose the postprocessing on the val rows and store it in the checkpoint",
        group="scoring",
    )
    empty_masks: str = option(
        "one",
        "native and soft scores where the truth is empty: one (1 for an empty prediction, else 0), skip, zero",
        choices=tuple(EMPTY_RULES),
        group="scoring",
    )
    seed: int | None = option(None, "of drawn prompts; default: the checkpoint's", group="scoring")

    precision: str = option(
        "auto", "auto: bf16 where the device has instructions for it", choices=PRECISIONS, group="run"
    )
    compile: bool = option(False, "torch.compile: faster batches after a slow first one", group="run")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="run")
    output: str | None = option(None, "folder for the results; default: eval beside the checkpoint", group="run")
    overlays: int = option(0, "pictures a data set, of its first rows", group="run")
    gallery: int = option(4, "pictures each of the best, median and worst a data set; 0: none", group="run")
    beside: tuple[str, ...] = option((), "earlier summary.json files to show in the same table", group="run")
    overwrite: bool = option(False, "replace the results in --output", group="run")
    quiet: bool = option(False, "no progress bars, warnings only", group="run")
