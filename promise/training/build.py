"""The parts of a trainer and how they are built from plain values: accelerator, seed, rows, loaders, options."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from promise.data.check import check_files
from promise.data.table import Row, SplitTable, read_table
from promise.data.transforms.recipes import plain_recipe
from promise.features.loader import CacheOptions, LoaderOptions, ProcessGroup, row_loader
from promise.models.promise import Promise
from promise.runtime.errors import UserError
from promise.training.losses import Criterion
from promise.training.noisy_prompts import NoisyDraw
from promise.training.selection import Selection
from promise.types import Batch, Prompts

log = logging.getLogger(__name__)


def build_accelerator(device: torch.device, *, precision: str, accumulate: int) -> Accelerator:
    """Build the accelerator of this process.

    Args:
        device: of the net; with several processes, ``accelerate`` assigns the GPUs.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        accumulate: batches per optimiser step.
    """
    # Without GPUs, `accelerate launch --num_processes 2` sets a master address, but starts one process.
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        log.warning(
            "accelerate launch has started one process instead of several. Without GPUs, use torchrun "
            "--nproc_per_node N -m promise.cli.train."
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        # The net applies autocast itself; the accelerator only scales the gradients of fp16.
        mixed_precision="fp16" if precision == "fp16" else "no",
        gradient_accumulation_steps=accumulate,
    )
    if not accelerator.is_main_process:
        logging.getLogger("promise").setLevel(logging.WARNING)
    return accelerator


def agree_on_seed(seed: int | None) -> int:
    """The seed of the main process: one that was drawn at random differs from process to process."""
    seeds = [seed]
    broadcast_object_list(seeds)
    assert seeds[0] is not None
    return seeds[0]


def read_rows(path: str, *, data_root: str | None, check: str, quiet: bool) -> tuple[SplitTable, list[str]]:
    """Read a split CSV and check the files of its train and val rows.

    Args:
        path: of the CSV.
        data_root: folder that the paths in it are relative to.
        check: ``full`` decodes the files, ``header`` reads their headers.
        quiet: no progress bar.

    Returns:
        The table, and warnings.

    Raises:
        UserError: no train rows, code ``no-train-rows``; or files that cannot be used.
    """
    table = read_table(path, data_root=data_root)
    if not table.split("train"):
        raise UserError(
            f"{table.path}: no row has train_type 'train'; there is nothing to train on.", code="no-train-rows"
        )
    rows = (*table.split("train"), *table.split("val"))
    warnings = [*table.notes, *check_files(rows, csv_path=table.path, level=check, progress=not quiet)]
    if not table.split("val"):
        warnings.append(
            f"{table.path}: no row has train_type 'val': no epoch can be selected, best.safetensors is the last one."
        )
    return table, warnings


@dataclass(frozen=True)
class Loader:
    """Batches of one split."""

    batches: Any  # accelerate's loader: yields Batch on the CPU, this process's part of each global batch
    steps: int  # batches per epoch


@dataclass(frozen=True)
class TrainingData:
    """Batches, and the prompts that are given to the net with them."""

    train: Loader
    val: Loader | None  # None: no validation rows
    # (batch, epoch=…) → prompts in input pixels; None: the net makes its own. Epoch 0 is validation.
    draw_prompts: Callable[..., Prompts | None]


@dataclass(frozen=True)
class Stage:
    """A number of epochs in which the same weights learn by the same loss."""

    epochs: int
    schedule: Callable[[float], float]  # time in epochs since the start of the stage, with fractions → learning rate
    name: str = ""  # in the log, if there are several stages
    trains: tuple[str, ...] = ("",)  # weights whose names start with one of these learn; the others are frozen
    criterion: Criterion | None = None  # loss of the training batches; None: that of the trainer
    draw_prompts: Callable[..., Prompts | NoisyDraw | None] | None = None  # None: that of the data
    augment: Callable[[Batch], Batch] | None = None  # of the training batches, besides that of the data
    wrap: Callable[[Promise], nn.Module] | None = None  # the net → the model that is trained; None: the net


@dataclass(frozen=True)
class TrainerOptions:
    """How a :class:`promise.training.Trainer` trains."""

    stages: tuple[Stage, ...]  # in order; at least one
    selection: Selection = field(default_factory=Selection)
    seed: int = 0
    clip_norm: float = 0.0  # largest gradient norm; 0: no clipping
    ema: float = 0.0  # decay of the moving average of the weights that is validated and saved; 0: none
    validate_every: int = 1  # epochs between validations; the last epoch is always validated
    save_every: float = 10.0  # minutes between two savings of the state within an epoch; 0: none
    skip_bad_batches: int = 0  # batches with an infinite or NaN loss whose steps are skipped
    quiet: bool = False  # no progress bars

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)


@dataclass(frozen=True)
class LoaderBuilder:
    """Builds the loaders of one run."""

    net: Promise  # encodes the images of cached features; on the device of the accelerator
    accelerator: Accelerator
    loader: LoaderOptions
    cache: CacheOptions
    recipe: str  # augmentation recipe of the training rows
    seed: int

    def train(self, rows: tuple[Row, ...]) -> Loader:
        """A loader of training rows.

        Raises:
            UserError: ``drop_last`` leaves no batch, code ``no-batch``; or features that cannot be cached.
        """
        loader = self._build(rows, self.loader, self.recipe, training=True)
        if loader.steps == 0:
            raise UserError(
                f"--drop-last leaves no batch: {len(rows)} rows are fewer than --batch-size {self.loader.batch_size}.",
                code="no-batch",
            )
        return loader

    def val(self, rows: tuple[Row, ...]) -> Loader | None:
        """A loader of validation rows, in order and without augmentation; ``None`` if there are none."""
        if not rows:
            return None
        options = LoaderOptions(self.loader.batch_size, self.loader.workers, pin_memory=self.loader.pin_memory)
        return self._build(rows, options, plain_recipe(self.recipe), training=False)

    def _build(self, rows: tuple[Row, ...], options: LoaderOptions, recipe: str, *, training: bool) -> Loader:
        accelerator = self.accelerator
        loader = row_loader(
            rows,
            self.net,
            options,
            self.cache,
            recipe=recipe,
            seed=self.seed,
            device=accelerator.device,
            training=training,
            processes=ProcessGroup(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone),
        )
        # Distributes the rows among the processes. Batches stay on the CPU, where prompts are drawn from their masks.
        prepared = accelerator.prepare_data_loader(loader, device_placement=False)
        return Loader(prepared, len(prepared))
