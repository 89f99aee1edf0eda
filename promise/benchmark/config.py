"""Settings and constants of a benchmark. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from promise.runtime.errors import UserError, raise_all
from promise.runtime.settings import DEVICE_HELP, PRECISIONS, option

NETS = ("IPS_GT", "APM_IPS_resnet")  # without and with a prompter
PROMPTER_NET = NETS[1]  # measured where one net suffices
NUM_POINTS = 16
IMAGE_SIDE = 512  # of synthetic images, in pixels
PLAIN_RECIPE, RANDOM_RECIPE = "basic_color", "train2_color"
MEMORY_BATCH_SIZES = (1, 8, 16)


@dataclass(frozen=True)
class PublishedTraining:
    """Size of the trainings in the paper."""

    train_images: int = 1450
    validation_images: int = 798
    epochs: int = 200


PUBLISHED = PublishedTraining()


@dataclass(frozen=True)
class Settings:
    """Workload of a benchmark, as recorded in ``bench.json``."""

    sam: str = "vit_b"
    sam_checkpoint: str | None = "auto"  # None: random weights, which are as fast
    batch_size: int = 8
    repeats: int = 3
    images: int = 16  # of loader, cached epoch and evaluation
    device: str = "auto"
    precision: str = "auto"


DEFAULT = Settings()
QUICK = Settings(sam="lite_medsam", batch_size=2, repeats=1, images=4)


@dataclass(frozen=True)
class BenchConfig:
    """All settings of ``promise-bench``. ``None``: as in :data:`DEFAULT`, or with ``quick`` as in :data:`QUICK`."""

    quick: bool = option(False, "measure LiteMedSAM with a small batch and one repetition", group="workload")
    sam: str | None = option(
        None, f"backbone; default: {DEFAULT.sam}, with --quick {QUICK.sam}", metavar="NAME", group="workload"
    )
    sam_checkpoint: str = option(
        "random", "weight file of SAM; random weights are as fast", metavar="FILE", group="workload"
    )
    batch_size: int | None = option(
        None, f"images per step; default: {DEFAULT.batch_size}, with --quick {QUICK.batch_size}", group="workload"
    )
    repeats: int | None = option(
        None,
        f"repetitions of each comparison; default: {DEFAULT.repeats}, with --quick {QUICK.repeats}",
        group="workload",
    )
    images: int | None = option(
        None,
        f"images of loader, epoch and evaluation; default: {DEFAULT.images}, with --quick {QUICK.images}",
        group="workload",
    )
    parts: tuple[str, ...] = option(
        (),
        "parts to measure; default: all comparisons with the baseline. Also available: growth:images, growth:views, "
        "growth:points, growth:batch, growth:size, growth:scoring, and memory (peak memory at batch sizes "
        f"{', '.join(map(str, MEMORY_BATCH_SIZES))})",
        metavar="PART",
        group="workload",
    )
    device: str = option("auto", DEVICE_HELP, metavar="NAME", group="run")
    precision: str = option(
        "auto", "precision of the optimised variants; the baseline uses fp32", choices=PRECISIONS, group="run"
    )
    output: str | None = option(None, "folder for bench.json and bench.md", metavar="FOLDER", group="run")
    quiet: bool = option(False, "hide messages", group="run")


MAX_COUNT = 10_000  # images are generated before the first measurement


def resolve_settings(config: BenchConfig) -> Settings:
    """Return the workload of a configuration.

    Raises:
        UserError: batch size, repetitions or images are less than 1 or too many.
    """
    base = QUICK if config.quick else DEFAULT
    names = ("sam", "batch_size", "repeats", "images", "device", "precision")
    explicit = {name: value for name in names if (value := getattr(config, name)) is not None}
    checkpoint = None if config.sam_checkpoint == "random" else config.sam_checkpoint
    settings = dataclasses.replace(base, sam_checkpoint=checkpoint, **explicit)
    raise_all(
        [
            UserError(
                f"--{name.replace('_', '-')} must be at least 1 and at most {MAX_COUNT}.",
                code=f"{name.replace('_', '-')}-out-of-range",
            )
            for name in ("batch_size", "repeats", "images")
            if not 1 <= getattr(settings, name) <= MAX_COUNT
        ]
    )
    return settings
