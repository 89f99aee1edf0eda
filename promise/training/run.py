"""A training run, as a configuration describes it: the same for ``promise-train`` and from Python."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Collection, Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from promise.data.leaks import find_shared, hash_images
from promise.data.table import SplitTable
from promise.models.checkpoint import read_metadata
from promise.models.promise import Promise
from promise.runtime.device import resolve_device
from promise.runtime.lock import exclusive
from promise.runtime.memory import explain_out_of_memory
from promise.runtime.notices import describe
from promise.training import from_config
from promise.training.batch_size import find_batch_size
from promise.training.build import (
    agree_on_seed,
    build_accelerator,
    read_rows,
)
from promise.training.callbacks import Callback, CallbackList
from promise.training.config import TrainConfig
from promise.training.resolve import resolve_config
from promise.training.resume_state import Progress, check_same_sam
from promise.training.run_folder import RunFolder
from promise.training.run_record import RunRecord
from promise.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Result of a training run."""

    folder: Path
    progress: Progress
    seconds: float
    main_process: bool  # whether this process is the one that prints
    select: str  # validation score that selected the best epoch


def train(
    config: TrainConfig,
    *,
    explicit: Collection[str] = (),
    callbacks: Sequence[Callback] = (),
    trainer_class: type[Trainer] = Trainer,
) -> TrainResult:
    """Train a net as a configuration describes.

    Args:
        config: all settings.
        explicit: names of settings that the user set; a resumed run rejects those that differ from its own.
        callbacks: called at fixed points of the run, in order.
        trainer_class: a subclass of :class:`Trainer`.

    Raises:
        UserError: settings, files or weights that cannot be used, before anything is written; or training diverged.
    """
    started = time.monotonic()
    extra_scores = (*trainer_class.score_names, *CallbackList(callbacks).score_names)
    config = resolve_config(config, explicit, extra_scores=extra_scores)
    folder = RunFolder(Path(config.output or ""))
    folder.check(resume=config.resume, overwrite=config.overwrite)  # before a missing folder is created
    with exclusive(folder.path):
        folder.check(resume=config.resume, overwrite=config.overwrite)
        return _train(config, folder, callbacks, trainer_class, started)


def _train(
    config: TrainConfig,
    folder: RunFolder,
    callbacks: Sequence[Callback],
    trainer_class: type[Trainer],
    started: float,
) -> TrainResult:
    table, warnings = read_rows(
        config.split_csv or "", data_root=config.data_root, check=config.check, quiet=config.quiet
    )
    for warning in warnings:
        log.warning(warning)
    accelerator = build_accelerator(
        resolve_device(config.device), precision=config.precision, accumulate=config.accumulate
    )
    config = dataclasses.replace(config, seed=agree_on_seed(config.seed))
    net = from_config.net_of(config)
    if config.auto_batch_size and not config.resume:
        config = find_batch_size(config, net, accelerator)
    record = _make_record(config, folder, table, net)
    model, optimizer = accelerator.prepare(net, from_config.optimizer_of(config, net, accelerator.device))
    if config.compile:
        net.compile_parts()
    trainer = trainer_class(
        model,
        accelerator=accelerator,
        optimizer=optimizer,
        criterion=from_config.criterion_of(config),
        data=from_config.data_of(config, table, net, accelerator),
        options=from_config.options_of(config),
        record=record,
        callbacks=callbacks,
    )
    main = accelerator.is_main_process
    with closing(trainer):
        _start(trainer, record, config)
        with (
            record.open(trainer.progress, steps=trainer.steps_of_epoch) if main else nullcontext(),
            explain_out_of_memory(config.batch_size, advice="; --accumulate keeps the step as large"),
        ):
            trainer.fit()
    before, after = record.metadata.sam_sha256, net.sam.weights_sha256()
    if main:
        record.finish(after, accelerator.device, skipped=trainer.progress.skipped)
    if config.freeze == "FZ0" and after != before:
        raise RuntimeError(f"frozen SAM has changed: SHA-256 {before} before, {after} after training.")
    return TrainResult(folder.path, trainer.progress, time.monotonic() - started, main, config.select)


def _make_record(config: TrainConfig, folder: RunFolder, table: SplitTable, net: Promise) -> RunRecord:
    """The record of a run, with the hashes of SAM's weights and of the images."""
    sam_sha256 = net.sam.weights_sha256()
    log.info("SHA-256 of SAM's weights: %s", sam_sha256)
    # Evaluation compares its images with these, and warns if it scores images of the training or the selection.
    seen = {split: hash_images(table.split(split)) for split in ("train", "val")}
    if config.init_from is not None:  # its images too
        for split, hashes in read_metadata(config.init_from).seen.items():
            seen[split] = [*seen.get(split, ()), *hashes]
    metadata = from_config.metadata_of(config, sam_sha256=sam_sha256, seen=seen)
    epochs = from_config.options_of(config).epochs
    return RunRecord(folder, metadata=metadata, epochs=epochs, tensorboard=config.tensorboard)


def _start(trainer: Trainer, record: RunRecord, config: TrainConfig) -> None:
    """Restore a resumed run, or prepare the folder of a new one; log what is about to be trained."""
    if config.resume:
        progress, state = record.folder.load_state()
        check_same_sam(state, record.metadata.sam_sha256, record.folder.path)
        trainer.restore(progress, state)
        trainer.repair_checkpoints()
    device = trainer.accelerator.device
    from_config.log_settings(config, trainer.net, trainer.accelerator)
    if not trainer.accelerator.is_main_process:
        return
    notices = find_shared(record.metadata.seen["train"], record.metadata.seen["val"])
    for notice in notices:
        log.warning(describe(notice))
    if not config.resume:
        record.start(config, trainer.net, device, notices=notices)
