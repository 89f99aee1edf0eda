"""The training recipe: read, build, train, select, write; knows no flags."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from promise.data.check import check_files
from promise.data.leaks import describe_shared, hash_images
from promise.data.table import Row, SplitTable, read_table
from promise.data.transforms.recipes import plain_recipe
from promise.features.loader import CacheOptions, LoaderOptions, ProcessGroup, row_loader
from promise.features.store import cache_folder
from promise.models import checkpoint
from promise.models.cpu import optimize_for_cpu
from promise.models.promise import Promise
from promise.models.registry import NETS, build_net
from promise.models.sam.weights import weights_setting
from promise.prompts.sampling import prompt_batch
from promise.runtime.device import resolve_device
from promise.runtime.environment import describe_environment
from promise.runtime.errors import UserError
from promise.runtime.files import remove_leftovers
from promise.runtime.memory import explain_out_of_memory, peak_memory
from promise.runtime.progress import progress_bar
from promise.runtime.settings import write_yaml
from promise.training.config import TrainConfig, parse_labels
from promise.training.loop import DrawPrompts, train_epoch, validate
from promise.training.losses import Criterion, get_loss
from promise.training.optim import build_optimizer, parse_schedule
from promise.training.resolve import resolve_config
from promise.training.run_folder import Progress, RunFolder
from promise.training.run_log import EpochRow, RunLog
from promise.types import Batch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a training run leaves."""

    folder: Path
    progress: Progress
    seconds: float
    main_process: bool  # one of several speaks


@dataclass(frozen=True)
class _Loader:
    batches: Any  # accelerate's loader: yields Batch
    steps: int


def train(config: TrainConfig, *, given: Collection[str] = ()) -> TrainResult:
    """Train a net as the configuration says.

    Args:
        config: every setting.
        given: names of settings that the user gave; a resumed run refuses those that differ from its own.

    Raises:
        UserError: settings, files or weights that cannot be used; nothing has been written then.
    """
    started = time.monotonic()
    config = resolve_config(config, given)
    folder = RunFolder(Path(config.output or ""))
    folder.check(resume=config.resume, overwrite=config.overwrite)
    table, notes = _read_rows(config)
    for note in notes:
        log.warning(note)
    trainer = _Trainer(config, folder, table)
    trainer.run()
    seconds = time.monotonic() - started
    return TrainResult(folder.path, trainer.progress, seconds, trainer.accelerator.is_main_process)


def _read_rows(config: TrainConfig) -> tuple[SplitTable, list[str]]:
    table = read_table(config.split_csv or "", data_root=config.data_root)
    if not table.split("train"):
        raise UserError(f"{table.path}: no row has train_type 'train'; there is nothing to train on.")
    rows = (*table.split("train"), *table.split("val"))
    warnings = check_files(rows, csv_path=table.path, level=config.check, progress=not config.quiet)
    notes = [*table.notes, *warnings]
    if not table.split("val"):
        notes.append(
            f"{table.path}: no row has train_type 'val': no epoch can be selected, best.safetensors is the last one."
        )
    return table, notes


class _Trainer:
    """One run: holds the parts, so that the loop reads as what it does."""

    def __init__(self, config: TrainConfig, folder: RunFolder, table: SplitTable) -> None:
        device = resolve_device(config.device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",
            # The net casts by itself; only fp16 needs the accelerator, for its gradient scaler.
            mixed_precision="fp16" if config.precision == "fp16" else "no",
            gradient_accumulation_steps=config.accumulate,
        )
        if not self.accelerator.is_main_process:
            logging.getLogger("promise").setLevel(logging.WARNING)
        self.seed = _agree_on_seed(config)
        self.config = config = dataclasses.replace(config, seed=self.seed)
        self.folder = folder
        # Evaluation compares its rows with these, and says when it scores what it was trained or selected on.
        self.seen = {split: hash_images(table.split(split)) for split in ("train", "val")}
        self.shared = describe_shared(self.seen["train"], self.seen["val"])
        bare = optimize_for_cpu(_build(config))
        bare.sam.gradient_checkpointing = config.gradient_checkpointing
        self.sam_sha256 = bare.sam.weights_sha256()
        log.info("SAM's weights: SHA-256 %s", self.sam_sha256)
        self.bare = bare
        self.optimizer = build_optimizer(
            config.optimizer,
            bare.parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            fused=device.type in ("cpu", "cuda"),
        )
        self.schedule = parse_schedule(
            config.scheduler,
            lr=config.lr,
            epochs=config.epochs,
            min_lr=config.min_lr,
            cycle=config.restart_epochs,
            warmup=config.warmup_epochs,
        )
        self.criterion = Criterion(get_loss(config.loss), NETS[config.net].prompt_loss)
        self.net: nn.Module
        self.net, self.optimizer = self.accelerator.prepare(bare, self.optimizer)
        if config.compile:
            bare.compile_parts()
        self.train_loader = self._loader(table.split("train"), train=True)
        self.val_loader = self._loader(table.split("val"), train=False) if table.split("val") else None
        self.progress = self._restore() if config.resume else Progress()

    def run(self) -> None:
        """Train to the end, or until interrupted: whatever was reached is on the disk then."""
        self._announce()
        if not self.accelerator.is_main_process:
            self._loop(None)
            return
        config, progress = self.config, self.progress
        told = RunLog(self.folder.path, epochs=config.epochs, done=progress.epoch, tensorboard=config.tensorboard)
        remove_leftovers(self.folder.path)
        told.write(progress.history)
        try:
            self._loop(told)
        except (KeyboardInterrupt, SystemExit):
            if progress.epoch:
                log.warning(
                    "%d of %d epochs are saved; go on with: promise-train --output %s --resume",
                    progress.epoch,
                    config.epochs,
                    self.folder.path,
                )
            raise
        finally:
            told.close(progress.history)

    def _loop(self, told: RunLog | None) -> None:
        config, progress = self.config, self.progress
        while progress.epoch < config.epochs and not self._stale():
            row = self._epoch(progress.epoch)
            progress.epoch += 1
            progress.history.append(row)
            self._select(row)
            if told is not None:
                self._write(row, told)
            self.accelerator.wait_for_everyone()
        if self._stale():
            log.info("stopping early: no better epoch than %s for %d", progress.best_epoch, progress.stale)
        self._finish()

    def _stale(self) -> bool:
        return 0 < self.config.early_stopping <= self.progress.stale

    def _epoch(self, epoch: int) -> EpochRow:
        config, loader, started = self.config, self.train_loader, time.monotonic()
        torch.manual_seed(self.seed + epoch)  # whatever draws from the global generator, draws the same after --resume
        # On accelerate's loader, which counts its own epochs and tells the sampler: a resumed run starts in the middle.
        loader.batches.set_epoch(epoch)
        with explain_out_of_memory(config.batch_size, advice="; --accumulate keeps the step as large"):
            means = train_epoch(
                self.net,
                self._bar(loader, f"epoch {epoch + 1}/{config.epochs}"),
                draw=self._draw(epoch + 1),
                criterion=self.criterion,
                optimizer=self.optimizer,
                accelerator=self.accelerator,
                before_step=partial(self._set_lr, epoch),
                clip_norm=config.clip_norm,
            )
        self._refuse_broken(epoch, means["loss"])
        scores: dict[str, float] = {}
        due = (epoch + 1) % config.validate_every == 0 or epoch + 1 == config.epochs
        if self.val_loader is not None and due:
            scores = validate(
                self.net,
                self._bar(self.val_loader, "validation"),
                draw=self._draw(0),
                criterion=self.criterion,
                accelerator=self.accelerator,
            )
        self._refuse_broken(epoch, scores.get("loss", 0.0))
        return {
            "epoch": epoch + 1,
            "lr": self.optimizer.param_groups[0]["lr"],
            **{f"train_{name}": mean for name, mean in means.items()},
            **{f"val_{name}": scores.get(name) for name in (*self.criterion.names, "dice", "iou")},
            "seconds": round(time.monotonic() - started, 2),
        }

    def _refuse_broken(self, epoch: int, loss: float) -> None:
        """Refuse to keep an epoch whose loss or weights are no numbers any more."""
        learned = (p for p in self.bare.parameters() if p.requires_grad)
        if not math.isfinite(loss) or not all(bool(p.isfinite().all()) for p in learned):
            raise UserError(
                f"training diverged: the loss of epoch {epoch + 1} is {loss}, or its last steps broke the weights. "
                f"What epoch {epoch} left is kept in {self.folder.path}. Lower --lr, set --clip-norm, or use "
                "--precision fp32."
            )

    def _select(self, row: EpochRow) -> None:
        progress = self.progress
        score = row[f"val_{self.config.select}"]
        if self.val_loader is None:
            progress.best_epoch = progress.epoch
        elif score is not None:
            if progress.best_score is None or score > progress.best_score:
                progress.best_epoch, progress.best_score, progress.stale = progress.epoch, score, 0
            else:
                progress.stale += 1

    def _write(self, row: EpochRow, told: RunLog) -> None:
        progress = self.progress
        metadata = self._metadata(row)
        if progress.best_epoch == progress.epoch:
            checkpoint.save(self.bare, self.folder.best, metadata)
        checkpoint.save(self.bare, self.folder.last, metadata)
        scaler = self.accelerator.scaler
        # Last, since it is what resuming starts from: a kill before this line repeats the epoch, bit for bit.
        self.folder.save_state(
            progress,
            {
                "learned": self.bare.learned_state(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "sam_sha256": self.sam_sha256,
            },
        )
        told.tell(progress.history, best=progress.best_epoch == progress.epoch)

    def _restore(self) -> Progress:
        progress, state = self.folder.load_state()
        if state["sam_sha256"] != self.sam_sha256:
            raise UserError(
                f"cannot resume {self.folder.path}: it was started on another SAM (SHA-256 "
                f"{state['sam_sha256'][:12]}…, this one {self.sam_sha256[:12]}…). Check --sam-checkpoint."
            )
        self.bare.load_state_dict(state["learned"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return progress

    def _finish(self) -> None:
        after = self.bare.sam.weights_sha256()
        if self.accelerator.is_main_process:
            self.folder.write_environment(sam_sha256_after=after, peak_memory_gib=peak_memory(self.accelerator.device))
        if self.config.freeze == "FZ0" and after != self.sam_sha256:
            raise RuntimeError(f"SAM has changed under FZ0: SHA-256 {self.sam_sha256} before, {after} after.")
        log.info("SAM's weights after training: SHA-256 %s%s", after, " (unchanged)" * (after == self.sam_sha256))

    def _announce(self) -> None:
        config = self.config
        learning = sum(p.numel() for p in self.bare.parameters() if p.requires_grad)
        log.info(
            "%s %s on %s, %s trainable parameters, %s, %s, seed %d → %s",
            "resuming" if config.resume else "training",
            config.net,
            config.sam,
            f"{learning:,}",
            self.accelerator.device,
            config.precision,
            self.seed,
            self.folder.path,
        )
        if self.accelerator.is_main_process:
            for words in self.shared:
                log.warning(words)
        if self.accelerator.is_main_process and not config.resume:
            self.folder.clear()
            write_yaml(self.folder.config, dataclasses.replace(config, overwrite=False))
            record = describe_environment(self.accelerator.device)
            self.folder.write_environment(
                **record,
                seed=self.seed,
                sam_sha256=self.sam_sha256,
                trainable_parameters=learning,
                warnings=self.shared,
            )

    def _metadata(self, row: EpochRow) -> checkpoint.Metadata:
        config = self.config
        assert config.sam is not None
        metrics = {name: value for name, value in row.items() if value is not None and name.startswith("val_")}
        return checkpoint.Metadata(
            net=config.net,
            sam=config.sam,
            num_points=config.num_points,
            point_labels=parse_labels(config.point_labels),
            sam_sha256=self.sam_sha256,
            sam_checkpoint=_sam_origin(config),
            freeze=config.freeze,
            seed=self.seed,
            epoch=self.progress.epoch,
            config=dataclasses.asdict(config),
            seen=self.seen,
            metrics=metrics,
        )

    def _loader(self, rows: tuple[Row, ...], *, train: bool) -> _Loader:
        config, accelerator = self.config, self.accelerator
        loader = row_loader(
            rows,
            self.bare,
            LoaderOptions(
                config.batch_size,
                config.workers,
                shuffle=train and config.shuffle,
                drop_last=train and config.drop_last,
                pin_memory=config.pin_memory,
            ),
            CacheOptions(
                config.cache,
                cache_folder(config.cache_dir),
                config.cache_dtype,
                views=config.cache_views,
                workers=config.workers,
                batch_size=config.batch_size,
                quiet=config.quiet,
            ),
            recipe=config.augment if train else plain_recipe(config.augment),
            seed=self.seed,
            device=accelerator.device,
            training=train,
            processes=ProcessGroup(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone),
        )
        # Shares the rows among the processes; batches stay on the CPU, where prompts are drawn from their masks.
        shared = accelerator.prepare_data_loader(loader, device_placement=False)
        if len(shared) == 0:
            raise UserError(
                f"--drop-last leaves no batch: {len(rows)} rows are fewer than --batch-size {config.batch_size}."
            )
        return _Loader(shared, len(shared))

    def _draw(self, epoch: int) -> DrawPrompts:
        source = "gt" if NETS[self.config.net].prompts == "oracle" else "auto"
        return partial(prompt_batch, source, num_points=self.config.num_points, seed=self.seed, epoch=epoch)

    def _set_lr(self, epoch: int, step: int) -> None:
        steps = math.ceil(self.train_loader.steps / self.config.accumulate)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(epoch + step / steps)

    def _bar(self, loader: _Loader, name: str) -> Iterable[Batch]:
        quiet = self.config.quiet or not self.accelerator.is_main_process
        bar: Iterable[Batch] = progress_bar(loader.batches, total=loader.steps, name=name, unit="batch", quiet=quiet)
        return bar


def _agree_on_seed(config: TrainConfig) -> int:
    """The main process's seed: a drawn one differs from process to process."""
    seeds = [config.seed]
    broadcast_object_list(seeds)
    assert seeds[0] is not None
    return seeds[0]


def _sam_origin(config: TrainConfig) -> str:
    if config.sam_checkpoint in (None, "random"):
        return config.sam_checkpoint or "auto"
    return str(Path(config.sam_checkpoint).expanduser().resolve())


def _build(config: TrainConfig) -> Promise:
    return build_net(
        config.net,
        sam=config.sam,
        num_points=config.num_points,
        point_labels=parse_labels(config.point_labels),
        sam_checkpoint=weights_setting(config.sam_checkpoint),
        freeze=config.freeze,
        precision=config.precision,
        seed=config.seed,
    )
