"""Settings of a training run. Every default is here and nowhere else; imports no torch."""

from __future__ import annotations

import dataclasses

from promise.runtime.errors import UserError, excerpt
from promise.runtime.settings import (
    CACHE_DIR_HELP,
    CACHE_DTYPE_HELP,
    CACHE_DTYPES,
    CACHES,
    DATA_ROOT_HELP,
    DEVICE_HELP,
    FEATURE_AUGMENTS,
    FREEZE_ALIASES,
    MAX_SEED,
    MAX_WORKERS,
    PRECISION_HELP,
    PRECISIONS,
    find_out_of_range,
    option,
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run."""

    net: str = option("APM_IPS_resnet", "name of the net; see --list-nets", metavar="NAME", group="net")
    sam: str | None = option(
        None, "backbone: lite_medsam (default), vit_b, vit_l, vit_h, medsam_vit_b", metavar="NAME", group="net"
    )
    sam_checkpoint: str | None = option(
        None, "weight file of SAM; default: cached or downloaded; 'random' for tests", metavar="FILE", group="net"
    )
    num_points: int = option(16, "point prompts per image: 1 or an even number", group="net")
    point_labels: str | None = option(
        None, "labels of automatic prompts, such as 1-1-0-0; default: half 1, half 0", metavar="LABELS", group="net"
    )
    freeze: str = option(
        "all",
        "which parts of SAM stay frozen: all, encoder+decoder (image encoder and mask decoder), encoders (image and "
        "prompt encoder), encoder (image encoder), none; FZ0 to FZ4 are aliases in this order",
        choices=(*FREEZE_ALIASES, *FREEZE_ALIASES.values()),
        group="net",
    )

    init_from: str | None = option(
        None,
        "start from the learned weights of a checkpoint of the same net and backbone: a file, or the name of a bundled "
        "checkpoint; APM_hybrid also starts from APM_dense; default: random weights",
        metavar="CKPT",
        group="net",
    )

    split_csv: str | None = option(None, "CSV with image_name,train_type,mask_name", metavar="FILE", group="data")
    data_root: str | None = option(None, DATA_ROOT_HELP, metavar="FOLDER", group="data")
    check: str = option(
        "full",
        "check of the files before training: decode them, or read their headers",
        choices=("full", "header"),
        group="data",
    )
    augment: str = option(
        "strong",
        "augmentation of the training rows: none, gray, unnormalized, light, strong; basic_color, basic_gray, "
        "basic_color_nonorm, train1_color, train2_color are aliases in this order",
        metavar="NAME",
        group="data",
    )
    workers: int = option(
        2, "data loading processes; 0: load in the main process", group="data", least=0, most=MAX_WORKERS
    )
    pin_memory: bool = option(True, "batches in page-locked memory, with a GPU", group="data")
    drop_last: bool = option(False, "drop the last, smaller batch of an epoch", group="data")
    shuffle: bool = option(True, "shuffle training rows every epoch", group="data")

    cache: str = option(
        "eval",
        "features stored on disk: off; eval: of the validation rows, which is exact, if the disk has room; all: of the "
        "training rows too",
        choices=CACHES,
        group="features",
    )
    cache_views: int = option(
        1,
        "with --cache all: number of fixed augmented views per training image, which are repeated in turn over the "
        "epochs",
        group="features",
        least=1,
        most=1000,
    )
    feature_augment: str = option(
        "none",
        "with --cache all: mirror (flips), or mirror and transpose (symmetries) cached features with their masks at "
        "random in every epoch; affine: also rotate, scale and shift them, for nets that predict a map of lesions; an "
        "approximation, since an encoder is not exactly equivariant",
        choices=FEATURE_AUGMENTS,
        group="features",
    )
    cache_dir: str | None = option(None, CACHE_DIR_HELP, metavar="FOLDER", group="features")
    cache_dtype: str = option("auto", CACHE_DTYPE_HELP, choices=CACHE_DTYPES, group="features")
    cache_memory: str = option(
        "auto",
        "with --cache all on a GPU: auto: features are kept in its memory if they take at most 40 % of what is free; "
        "off: they are read from the files",
        choices=("auto", "off"),
        group="features",
    )

    epochs: int = option(30, "passes over the training rows", group="training", least=1)
    shift_epochs: int | None = option(
        None,
        "passes over the training rows in the second stage of nets that train a token shift after a map of lesions, "
        "such as APM_IPS_dense; --epochs counts those of the first; default: 2",
        metavar="N",
        group="training",
        least=1,
    )
    batch_size: int = option(8, "images per batch and process", group="training", least=1)
    auto_batch_size: bool = option(
        False, "halve --batch-size before the first epoch until a batch fits into the memory", group="training"
    )
    loss: str = option(
        "bce_dice",
        "bce, bce_dice, or that of the reference implementation: reference",
        metavar="NAME",
        group="training",
    )
    prompt_loss: float = option(
        0.0,
        "weight of the loss that draws positive points into the lesion and negative points out of it; 0: off; for nets "
        "that predict points",
        metavar="W",
        group="training",
        least=0,
    )
    lesion_settings: str | None = option(
        None,
        "how lesions are found and decoded by nets that find lesions, such as max_lesions=1,threshold=0.4; stored in "
        "the checkpoint; the names are those of promise.models.prompters.lesions.LesionSettings",
        metavar="NAME=VALUE,…",
        group="training",
    )
    optimizer: str = option("adam", "adam, adamw or sgd", metavar="NAME", group="training")
    lr: float = option(3e-4, "initial learning rate", group="training")
    weight_decay: float = option(0.0, "weight decay", group="training", least=0)
    momentum: float = option(0.9, "momentum of sgd", group="training", least=0, most=1)
    scheduler: str = option(
        "cosine",
        "constant, cosine or restarts; the reference implementation's spelling, such as LR_200_1e-7, is accepted",
        metavar="NAME",
        group="training",
    )
    min_lr: float = option(0.0, "final learning rate of cosine and restarts", group="training", least=0)
    restart_epochs: int = option(10, "epochs per cycle of restarts", group="training", least=1)
    warmup_epochs: float = option(0.0, "epochs of linear warm-up", group="training", least=0)
    accumulate: int = option(
        1, "batches whose gradients are accumulated for one optimiser step", group="training", least=1
    )
    clip_norm: float = option(0.0, "largest gradient norm; 0: no clipping", group="training", least=0)
    skip_bad_batches: int = option(
        0,
        "skip the steps of at most this many batches whose loss is infinite or NaN; one more ends the training",
        group="training",
        least=0,
    )
    ema: float = option(
        0.0,
        "decay of a moving average of the weights, such as 0.995, which is validated and saved instead; 0: none",
        group="training",
    )
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, more time", group="training"
    )
    precision: str = option("auto", PRECISION_HELP, choices=PRECISIONS, group="training")
    compile: bool = option(False, "use torch.compile; the first step is slow", group="training")
    device: str = option("auto", DEVICE_HELP, metavar="NAME", group="training")
    seed: int | None = option(
        None, "default: drawn at random and recorded in the run", group="training", least=0, most=MAX_SEED
    )

    validate_every: int = option(1, "epochs between validations", group="selection", least=1)
    select: str = option(
        "iou",
        "validation score that selects the best epoch: iou or dice (highest), loss or one of its terms (lowest)",
        metavar="NAME",
        group="selection",
    )
    early_stopping: int = option(
        0, "stop after this many validations without improvement; 0: never", group="selection", least=0
    )

    output: str | None = option(None, "run folder; default: runs/<net>-<backbone>", metavar="FOLDER", group="run")
    resume: bool = option(False, "continue the run in --output", group="run")
    save_every: float = option(
        10.0,
        "minutes between two savings of the state within an epoch, from which --resume continues; 0: save it only at "
        "the end of an epoch",
        metavar="MINUTES",
        group="run",
        least=0,
    )
    overwrite: bool = option(False, "replace the run in --output", group="run")
    tensorboard: bool = option(True, "write TensorBoard events, if it is installed", group="run")
    quiet: bool = option(False, "no progress bars, warnings only", group="run")


def check_train(config: TrainConfig) -> None:
    """Check the values that need no other part of the package.

    Raises:
        UserError: values out of range, missing or contradictory, all in one error; its ``codes`` are
            ``out-of-range``, ``missing-split-csv``, ``feature-augment-without-cache`` and ``resume-and-overwrite``.
    """
    errors = find_out_of_range(config)
    faults: list[tuple[str, str]] = []
    if not config.lr > 0:
        faults.append(("out-of-range", f"--lr must be above 0, got {config.lr}"))
    if not 0 <= config.ema < 1:
        faults.append(("out-of-range", f"--ema must be at least 0 and below 1, got {config.ema}"))
    if config.feature_augment != "none" and config.cache != "all":
        faults.append(
            (
                "feature-augment-without-cache",
                f"--feature-augment {config.feature_augment} requires --cache all: only cached features are mirrored. "
                "Pixels are augmented by --augment",
            )
        )
    if config.split_csv is None:
        faults.append(
            ("missing-split-csv", "--split-csv is missing: which images? (data_format/README.md shows the format)")
        )
    if config.resume and config.overwrite:
        faults.append(("resume-and-overwrite", "--resume and --overwrite exclude each other"))
    errors += [UserError(message, code=code) for code, message in faults]
    if errors:
        raise UserError("; ".join(map(str, errors)) + ".", code=errors[0].code, errors=errors)


def parse_labels(text: str | None) -> tuple[int, ...] | None:
    """``1-1-0-0`` (or with commas or blanks) → (1, 1, 0, 0).

    Raises:
        UserError: the text contains something other than integers (code ``invalid-point-labels``).
    """
    if text is None:
        return None
    try:
        return tuple(int(v) for v in text.replace(",", "-").replace(" ", "-").split("-") if v)
    except ValueError:
        message = f"--point-labels must be 0s and 1s such as 1-1-0-0, got {excerpt(text)!r}."
        raise UserError(message, code="invalid-point-labels") from None
