"""Settings: frozen dataclasses, YAML files, overrides; knows no registry and no torch, so that --help is instant.

Every default stands here and nowhere else. A field's metadata gives its help text and, where the choice is closed,
its choices; the commands make their flags from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from promise.errors import MissingFileError, UserError
from promise.files import write_text

Config = TypeVar("Config", bound="TrainConfig | EvalConfig | PredictConfig")


def option(default: Any, text: str, *, choices: tuple[str, ...] | None = None, group: str = "") -> Any:
    """A field with its default, its help text and its choices."""
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices, "group": group})


SPLITS = ("train", "val", "test")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
EMPTY_RULES = ("one", "skip", "zero")
CACHES = ("off", "eval", "all")
CACHE_DTYPES = ("auto", "fp32", "bf16")
_CACHE_DIR = "folder of cached features; default: $PROMISE_FEATURES, else promise/features in the user's cache folder"
_CACHE_DTYPE = "what features are stored in; auto: what they are computed in, so that nothing is lost"


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
    cache_dir: str | None = option(None, _CACHE_DIR, group="features")
    cache_dtype: str = option("auto", _CACHE_DTYPE, choices=CACHE_DTYPES, group="features")

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
    cache_dir: str | None = option(None, _CACHE_DIR, group="features")
    cache_dtype: str = option("auto", _CACHE_DTYPE, choices=CACHE_DTYPES, group="features")

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
        choices=EMPTY_RULES,
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


_FIELDS = {
    command: {f.name for f in dataclasses.fields(kind)}
    for command, kind in (("promise-train", TrainConfig), ("promise-eval", EvalConfig))
}


def read_yaml(path: Path, kind: type[Config]) -> dict[str, Any]:
    """Read settings from a YAML file, checked against the fields of ``kind``.

    Raises:
        MissingFileError: no such file.
        UserError: not a mapping, unknown keys (with the nearest known) or values of the wrong type, all at once.
    """
    if not path.is_file():
        raise MissingFileError(f"no configuration at {path}. Is the path right?")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} must hold 'key: value' lines, it holds {type(loaded).__name__}.")
    own, command = (
        {f.name for f in dataclasses.fields(kind)},
        "promise-eval" if kind is TrainConfig else "promise-train",
    )
    strange = [str(key) for key in loaded if key not in own]
    if len(strange) > 1 and all(key in _FIELDS[command] for key in strange):
        raise UserError(f"{path} is a configuration for {command} (it sets {', '.join(strange[:4])}).")
    return check_values(loaded, kind, origin=str(path))


def check_values(values: Mapping[str, Any], kind: type[Config], *, origin: str) -> dict[str, Any]:
    """Bring values to the types of ``kind``'s fields; all faults are raised at once."""
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    checked: dict[str, Any] = {}
    faults = []
    for key, value in values.items():
        if key not in fields:
            known = {**{name: name for name in fields}, **{a: n for a, n in _OTHER_NAMES.items() if n in fields}}
            near = [known[n] for n in difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)]
            faults.append(f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else ""))
            continue
        try:
            checked[key] = _coerce(value, hints[key])
        except (TypeError, ValueError, OverflowError):
            faults.append(f"{key}: {value!r} is not {_type_name(hints[key])}")
            continue
        choices = fields[key].metadata["choices"]
        if choices and checked[key] is not None and checked[key] not in choices:
            faults.append(f"{key}: {value!r} is none of {', '.join(choices)}")
    if faults:
        raise UserError(f"{origin}: {'; '.join(faults)}.")
    return checked


# What others call it, for the hint.
_OTHER_NAMES = {"learning_rate": "lr", "backbone": "sam", "model": "net", "model_name": "net", "num_workers": "workers"}


def _coerce(value: Any, hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return None if value is None else _coerce(value, next(a for a in get_args(hint) if a is not type(None)))
    if get_origin(hint) is tuple:
        return tuple(str(v) for v in ([value] if isinstance(value, str) else value))
    if hint is bool:
        if not isinstance(value, bool):
            raise TypeError
        return value
    if isinstance(value, bool) or value is None:
        raise TypeError
    if hint is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    return hint(value)  # float("1e-5") too: YAML 1.1 reads that as a text


def _type_name(hint: Any) -> str:
    inner = [a for a in get_args(hint) if a is not type(None)] or [hint]
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(inner[0], "a text")


def write_yaml(path: Path, config: TrainConfig | EvalConfig) -> None:
    """Write all settings as YAML, in the order of the fields."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


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
