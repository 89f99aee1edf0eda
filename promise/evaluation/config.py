"""Settings of an evaluation and their defaults. Imports no torch, so that ``--help`` is fast."""

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

#: Values of ``--empty-masks`` and their effect on overlap metrics (rows of METRICS with ``overlap=True``).
EMPTY_RULES = {
    "one": "where the ground truth is empty, overlap scores are 1 for an empty prediction and 0 otherwise",
    "skip": "images with an empty ground truth are excluded from overlap scores",
    "zero": "where the ground truth is empty, overlap scores are 0",
}


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The settings of an evaluation; one field per flag."""

    ckpt: str | None = option(
        None,
        "checkpoint of this package (.safetensors) or of the reference implementation (.pt, .pth); default: the net is "
        "untrained",
        group="net",
    )
    net: str | None = option(
        None,
        "net to evaluate; required without --ckpt and for checkpoints of the reference implementation",
        group="net",
    )
    sam: str | None = option(None, "backbone; default: the one stored in the checkpoint", group="net")
    sam_checkpoint: str | None = option(None, "file with SAM's weights; default: the published weights", group="net")
    num_points: int | None = option(
        None, "number of points drawn from the ground truth; default: that of the checkpoint, else 16", group="net"
    )

    split_csv: tuple[str, ...] = option((), "one or more split CSVs, each a data set", group="data")
    data_root: str | None = option(None, "folder that the paths in the CSVs are relative to", group="data")
    split: str | None = option(
        None, "rows to score; default: test if there are any, else val", choices=SPLITS, group="data"
    )
    check: str = option(
        "full",
        "check of the files before scoring: decode them, or read their headers only",
        choices=("full", "header"),
        group="data",
    )
    recipe: str | None = option(
        None, "pixel recipe without augmentation; default: that of the checkpoint, else basic_color", group="data"
    )
    batch_size: int = option(8, "images per batch", group="data")
    workers: int = option(2, "loader processes; 0: load in the main process", group="data")

    cache: str = option(
        "eval",
        "encoder features on disk; eval: reuse them, and store new ones if there is enough disk space",
        choices=CACHES[:2],
        group="features",
    )
    cache_dir: str | None = option(None, CACHE_DIR_HELP, group="features")
    cache_dtype: str = option("auto", CACHE_DTYPE_HELP, choices=CACHE_DTYPES, group="features")

    prompts: str | None = option(
        None,
        "auto: prompts of the net; gt: points drawn from the ground truth; gt-box: its bounding box; centre: the "
        "centre of the image; none: no prompt; file:prompts.json: prompts from a file; default: auto if the net has a "
        "prompter, else gt",
        group="scoring",
    )
    gt_points: str | None = option(
        None, "numbers of foreground and background points drawn from the ground truth, e.g. 8+8", group="scoring"
    )
    gt_box: bool = option(False, "add the bounding box of the ground truth to the points", group="scoring")
    prompt_seeds: int = option(1, "number of draws of the points per image, with consecutive seeds", group="scoring")
    postprocess: str | None = option(
        None,
        "none, open:5 or close:7, optionally followed by threshold:0.45, fill, largest, separated by commas; or "
        "default: open:5 in the reference protocol and none in the native one. Without this flag: default, but the "
        "native protocol uses the postprocessing stored in the checkpoint, if any",
        group="scoring",
    )
    tune_postprocess: bool = option(
        False,
        "instead of scoring, choose the postprocessing on the val rows and store it in the checkpoint",
        group="scoring",
    )
    empty_masks: str = option(
        "one",
        "overlap scores (native, soft) of images with an empty ground truth: one (1 for an empty prediction, else 0), "
        "skip (excluded), zero",
        choices=tuple(EMPTY_RULES),
        group="scoring",
    )
    seed: int | None = option(None, "seed of drawn prompts; default: that of the checkpoint", group="scoring")

    precision: str = option(
        "auto", "auto: bf16 if the device has instructions for it, else fp32", choices=PRECISIONS, group="run"
    )
    compile: bool = option(False, "use torch.compile: the first batch is slow, later ones are faster", group="run")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="run")
    output: str | None = option(
        None, "folder for the results; default: eval in the folder of the checkpoint", group="run"
    )
    overlays: int = option(0, "number of overlay images per data set, of its first rows", group="run")
    gallery: int = option(
        4, "number of overlay images per data set of each of the best, median and worst rows; 0: none", group="run"
    )
    beside: tuple[str, ...] = option((), "earlier summary.json files to print in the same table", group="run")
    overwrite: bool = option(False, "replace the results in --output", group="run")
    quiet: bool = option(False, "no progress bars; log warnings only", group="run")
