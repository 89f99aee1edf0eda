"""Settings of a training run. Every default is here and nowhere else; imports no torch."""

from __future__ import annotations

import dataclasses

from promise.runtime.errors import UserError
from promise.runtime.settings import (
    CACHE_DIR_HELP,
    CACHE_DTYPE_HELP,
    CACHE_DTYPES,
    CACHES,
    PRECISIONS,
    option,
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run."""

    net: str = option("APM_IPS_resnet", "net of the table, see --list-nets", group="net")
    sam: str | None = option(None, "backbone: lite_medsam (default), vit_b, vit_l, vit_h, medsam_vit_b", group="net")
    sam_checkpoint: str | None = option(
        None, "SAM's weight file; default: cached or fetched; 'random' for tests", group="net"
    )
    num_points: int = option(16, "point prompts an image: 1 or an even number", group="net")
    point_labels: str | None = option(
        None, "labels of automatic prompts, such as 1-1-0-0; default: half 1, half 0", group="net"
    )
    freeze: str = option(
        "FZ0",
        "what of SAM stays frozen: FZ0 all, FZ1 image encoder and mask decoder, FZ2 both encoders, "
        "FZ3 image encoder, FZ4 nothing",
        choices=("FZ0", "FZ1", "FZ2", "FZ3", "FZ4"),
        group="net",
    )

    split_csv: str | None = option(None, "CSV with image_name,train_type,mask_name", group="data")
    data_root: str | None = option(None, "folder that the CSV's paths are re-rooted onto", group="data")
    check: str = option("full", "how far files are opened before training", choices=("full", "header"), group="data")
    augment: str = option(
        "train2_color",
        "recipe for training rows: basic_color, basic_gray, basic_color_nonorm, train1_color, train2_color",
        group="data",
    )
    workers: int = option(2, "loader processes; 0 loads in the main one", group="data")
    pin_memory: bool = option(True, "page-locked batches, where there is a GPU", group="data")
    drop_last: bool = option(False, "drop the last, smaller batch of an epoch", group="data")
    shuffle: bool = option(True, "shuffle training rows every epoch", group="data")

    cache: str = option(
        "eval",
        "features kept on disk: off; eval: of validation rows, which is exact, where the disk allows; all: of training "
        "rows too",
        choices=CACHES,
        group="features",
    )
    cache_views: int = option(
        1,
        "with --cache all: fixed augmented views of each training image; 1 with an augmenting recipe: one drawing, for "
        "all epochs",
        group="features",
    )
    cache_dir: str | None = option(None, CACHE_DIR_HELP, group="features")
    cache_dtype: str = option("auto", CACHE_DTYPE_HELP, choices=CACHE_DTYPES, group="features")

    epochs: int = option(30, "passes over the training rows", group="training")
    batch_size: int = option(8, "images a step and process", group="training")
    loss: str = option("bce_dice", "bce, bce_dice, or reference (the original's)", group="training")
    optimizer: str = option("adam", "adam, adamw or sgd", group="training")
    lr: float = option(3e-4, "first learning rate", group="training")
    weight_decay: float = option(0.0, "decay of the weights", group="training")
    momentum: float = option(0.9, "of sgd", group="training")
    scheduler: str = option(
        "cosine",
        "constant (LR), cosine, or restarts; the original's LR_200_1e-7 is understood",
        group="training",
    )
    min_lr: float = option(0.0, "where cosine ends", group="training")
    restart_epochs: int = option(10, "length of a cycle of restarts", group="training")
    warmup_epochs: float = option(0.0, "linear warm-up", group="training")
    accumulate: int = option(1, "batches whose gradients make one step", group="training")
    clip_norm: float = option(0.0, "largest gradient norm; 0: no clipping", group="training")
    gradient_checkpointing: bool = option(
        False, "compute inner values again in the backward pass: less memory, more time", group="training"
    )
    precision: str = option(
        "auto", "auto: bf16 where the device has instructions for it", choices=PRECISIONS, group="training"
    )
    compile: bool = option(False, "torch.compile: faster steps after a slow first one", group="training")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="training")
    seed: int | None = option(None, "default: drawn, and recorded in the run", group="training")

    validate_every: int = option(1, "epochs between validations", group="selection")
    select: str = option("iou", "what the best epoch has most of", choices=("iou", "dice"), group="selection")
    early_stopping: int = option(
        0, "stop after this many validations without a better one; 0: never", group="selection"
    )

    output: str | None = option(None, "run folder; default: runs/<net>-<backbone>", group="run")
    resume: bool = option(False, "go on with the run in --output", group="run")
    overwrite: bool = option(False, "replace the run in --output", group="run")
    tensorboard: bool = option(True, "write TensorBoard events, where it is installed", group="run")
    quiet: bool = option(False, "no progress bars, warnings only", group="run")


def check_train(config: TrainConfig) -> None:
    """Raise one ``UserError`` with all settings that make no sense."""
    faults = [
        f"--{name.replace('_', '-')} must be at least {least}, got {getattr(config, name)}"
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("accumulate", 1),
            ("validate_every", 1),
            ("cache_views", 1),
            ("restart_epochs", 1),
            ("workers", 0),
            ("early_stopping", 0),
            ("warmup_epochs", 0),
            ("clip_norm", 0),
            ("weight_decay", 0),
            ("min_lr", 0),
        )
        if getattr(config, name) < least
    ]
    if not config.lr > 0:
        faults.append(f"--lr must be above 0, got {config.lr}")
    if config.split_csv is None:
        faults.append("--split-csv is missing: which images? (data_format/README.md shows the format)")
    if config.resume and config.overwrite:
        faults.append("--resume and --overwrite exclude each other")
    if faults:
        raise UserError("; ".join(faults) + ".")


def parse_labels(text: str | None) -> tuple[int, ...] | None:
    """``1-1-0-0`` (or with commas or blanks) → (1, 1, 0, 0)."""
    if text is None:
        return None
    try:
        return tuple(int(v) for v in text.replace(",", "-").replace(" ", "-").split("-") if v)
    except ValueError:
        raise UserError(f"--point-labels wants 0s and 1s such as 1-1-0-0, got {text!r}.") from None
