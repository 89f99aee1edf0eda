"""Settings of an evaluation, with their defaults. Imports no torch."""

from __future__ import annotations

import dataclasses

from promise.runtime.settings import (
    CACHE_DIR_HELP,
    CACHE_DTYPE_HELP,
    CACHE_DTYPES,
    CACHES,
    CKPT_HELP,
    DATA_ROOT_HELP,
    DEVICE_HELP,
    LESION_SETTINGS_HELP,
    MAX_LESIONS_HELP,
    MAX_SEED,
    MAX_WORKERS,
    PRECISION_HELP,
    PRECISIONS,
    SPLITS,
    option,
)

# Values of ``--empty-masks`` and their effect on overlap metrics (rows of METRICS with ``overlap=True``).
EMPTY_RULES = {
    "one": "where the ground truth is empty, overlap scores are 1 for an empty prediction and 0 otherwise",
    "skip": "images with an empty ground truth are excluded from overlap scores",
    "zero": "where the ground truth is empty, overlap scores are 0",
}


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """All settings of an evaluation."""

    ckpt: str | None = option(None, f"{CKPT_HELP}; default: an untrained net", metavar="FILE", group="net")
    net: str | None = option(
        None,
        "net; required without --ckpt and for checkpoints of the reference implementation",
        metavar="NAME",
        group="net",
    )
    sam: str | None = option(None, "backbone, if the checkpoint does not name it", metavar="NAME", group="net")
    sam_checkpoint: str | None = option(
        None, "weight file of SAM; default: the published weights", metavar="FILE", group="net"
    )
    num_points: int | None = option(
        None,
        "points drawn from the ground truth; default: as stored in the checkpoint, else 16",
        group="net",
    )

    split_csv: tuple[str, ...] = option((), "split CSVs, one per data set", group="data")
    data_root: str | None = option(None, DATA_ROOT_HELP, metavar="FOLDER", group="data")
    split: str | None = option(
        None, "rows to score; default: test rows if there are any, else val rows", choices=SPLITS, group="data"
    )
    check: str = option(
        "full",
        "check of all files before scoring: read completely, or headers only",
        choices=("full", "header"),
        group="data",
    )
    recipe: str | None = option(
        None,
        "pixel recipe without augmentation; default: as stored in the checkpoint, else basic_color",
        metavar="NAME",
        group="data",
    )
    batch_size: int = option(8, "images per step", group="data", least=1)
    workers: int = option(2, "loader processes; 0: load in the main process", group="data", least=0, most=MAX_WORKERS)

    cache: str = option(
        "eval",
        "cache of features on disk: off, or eval: used if the disk has room",
        choices=CACHES[:2],
        group="features",
    )
    cache_dir: str | None = option(None, CACHE_DIR_HELP, metavar="FOLDER", group="features")
    cache_dtype: str = option("auto", CACHE_DTYPE_HELP, choices=CACHE_DTYPES, group="features")

    prompts: str | None = option(
        None,
        "source of prompts. auto: the prompter of the net; gt: points drawn from the ground truth; gt-box: the box of "
        "the ground truth; centre: the centre of the image; none: no prompt; file:prompts.json: prompts of an earlier "
        "evaluation or of another program. Default: auto for nets with a prompter, else gt",
        metavar="SOURCE",
        group="scoring",
    )
    gt_points: str | None = option(
        None,
        "numbers of foreground and background points drawn from the ground truth, such as 8+8",
        metavar="N+N",
        group="scoring",
    )
    gt_box: bool = option(False, "add the box of the ground truth to the points", group="scoring")
    prompt_seeds: int = option(
        1, "number of draws of the points per image, with consecutive seeds", group="scoring", most=1000
    )
    max_lesions: int | None = option(None, MAX_LESIONS_HELP, group="scoring", least=1)
    lesion_settings: str | None = option(None, LESION_SETTINGS_HELP, metavar="NAME=VALUE,…", group="scoring")
    postprocess: str | None = option(
        None,
        "none, open:5 or close:7, optionally followed by threshold:0.45, fill, largest, separated by commas; or the "
        "word default: open:5 in the reference protocol and none in the native protocol. Without this flag: as "
        "default, but with the postprocessing stored in the checkpoint, if any, in the native protocol",
        metavar="STEPS",
        group="scoring",
    )
    tune_postprocess: bool = option(
        False,
        "do not score: choose the postprocessing on the val rows and store it in the checkpoint; of nets that find "
        "lesions also threshold, fuse, min_probability, min_score and min_share",
        group="scoring",
    )
    empty_masks: str = option(
        "one",
        "native and soft scores of images with an empty ground truth: one (1 for an empty prediction, else 0), skip, "
        "or zero",
        choices=tuple(EMPTY_RULES),
        group="scoring",
    )
    clicks: int = option(
        0,
        "clicks per image to correct the mask with, each at the centre of its largest error: reports Dice after 0 to N "
        "clicks and the clicks to Dice 0.85 and 0.9, beside frozen SAM from an empty mask. The clicks read the ground "
        "truth. With --prompts none the net starts from an empty mask too. Uses the first draw of prompts",
        metavar="N",
        group="scoring",
        least=0,
        most=100,
    )
    seed: int | None = option(
        None,
        "random seed of drawn prompts; default: as stored in the checkpoint",
        group="scoring",
        least=0,
        most=MAX_SEED,
    )

    precision: str = option("auto", PRECISION_HELP, choices=PRECISIONS, group="run")
    compile: bool = option(False, "use torch.compile: faster batches after a slow first one", group="run")
    device: str = option("auto", DEVICE_HELP, metavar="NAME", group="run")
    output: str | None = option(
        None, "folder for the results; default: eval in the folder of the checkpoint", metavar="FOLDER", group="run"
    )
    overlays: int = option(0, "overlays to write per data set, for the first rows", group="run", least=0)
    gallery: int = option(
        4, "best, median and worst images to show per data set, so many of each; 0: none", group="run", least=0
    )
    beside: tuple[str, ...] = option((), "earlier summary.json files to include in the printed table", group="run")
    brief: bool = option(
        False, "print only prompts, native Dice with its interval, IoU, NSD and missed images", group="run"
    )
    overwrite: bool = option(False, "replace existing results in --output", group="run")
    quiet: bool = option(False, "hide progress bars and messages other than warnings", group="run")
