"""The trainer, and the recipe that builds one from a configuration and runs it."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import gather_object
from torch import Tensor, nn

from promise.models import checkpoint
from promise.models.promise import Promise
from promise.models.quality import QualityEstimate, fit_quality
from promise.models.state_dicts import load_learned
from promise.runtime.errors import UserError
from promise.runtime.progress import progress_bar
from promise.runtime.signals import leave
from promise.training import loop
from promise.training.averaging import WeightAverage
from promise.training.build import (
    Loader,
    Stage,
    TrainerOptions,
    TrainingData,
)
from promise.training.callbacks import Callback, CallbackList
from promise.training.losses import Criterion, LossTerms
from promise.training.optim import build_scheduler
from promise.training.pauses import Pauses
from promise.training.resume_state import (
    Progress,
    collect_state,
    generator_states,
    restore_generators,
    restore_state,
)
from promise.training.run_log import EpochRow, convert_tensors
from promise.training.run_record import RunRecord
from promise.types import Batch

log = logging.getLogger(__name__)


class Trainer:
    """Trains the learned parts of a net.

    Subclasses may override :meth:`learning_rate`, :meth:`train_epoch` and :meth:`validate`.

    Attributes:
        net: the unwrapped net; ``net.learned_state()`` are the trained weights.
        model: the net as prepared by ``accelerator``; used in training and validation. A stage may wrap it.
        accelerator: devices and processes.
        optimizer: of the learned parameters.
        criterion: the loss; see :class:`promise.training.losses.Criterion`. A stage may train with another one.
        data: loaders and prompts.
        options: epochs, seed and others.
        average: moving average of the weights, or ``None``.
        progress: completed epochs, the best one, the rows of ``log.csv``.
        steps_per_epoch: optimiser steps.
        folder: of the run, or ``None`` if nothing is written.
    """

    # Scores that a subclass adds in `validate`: `--select` accepts them.
    score_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: nn.Module,
        *,
        accelerator: Accelerator,
        optimizer: torch.optim.Optimizer,
        criterion: Criterion,
        data: TrainingData,
        options: TrainerOptions,
        record: RunRecord | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Combine the parts.

        Args:
            model: a :class:`promise.models.promise.Promise`, prepared by ``accelerator``.
            accelerator: devices and processes.
            optimizer: of the learned parameters, prepared by ``accelerator``.
            criterion: the loss.
            data: loaders and prompts.
            options: how to train.
            record: writes the files of the run; ``None``: nothing is written.
            callbacks: called in order.
        """
        self.model = model
        self.net: Promise = accelerator.unwrap_model(model)
        self.accelerator = accelerator
        self.optimizer = optimizer
        self.criterion = criterion
        self.data = data
        self.options = options
        self.record = record
        self.callbacks = CallbackList(callbacks)
        self.average = self._new_average()
        self.progress = Progress()
        self._trainable = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        self._last_lr: float = optimizer.param_groups[0]["lr"]
        self.steps_per_epoch = math.ceil(data.train.steps / accelerator.gradient_accumulation_steps)
        self._pauses = Pauses(accelerator, options.save_every)
        self._sums = loop.EpochSums()  # of the current epoch
        self._started, self._seconds = 0.0, 0.0  # when it started; its seconds before an interruption
        self._generators: Mapping[str, Tensor] | None = None  # of an interrupted epoch

    @property
    def folder(self) -> Path | None:
        """Folder of the run."""
        return None if self.record is None else self.record.folder.path

    def fit(self) -> Progress:
        """Train until the last epoch or early stopping, from ``progress`` on.

        SIGINT, SIGTERM and SIGUSR1 end it at the next step, once the state has been saved.

        Raises:
            UserError: the loss or the weights are no longer finite, code ``diverged``.
            KeyboardInterrupt: SIGINT has arrived.
            SystemExit: another signal has arrived; its code is 128 plus the number of the signal.
        """
        progress = self.progress
        self._prepare_stage()
        self.callbacks.on_train_start(self)
        with self._pauses:
            self._run_stages()
        if progress.stage and progress.best_epoch is not None and progress.best_epoch <= progress.stage_start:
            log.info(
                "no trained %s improved on epoch %d: in best.safetensors it is zero",
                self.stage.name,
                progress.best_epoch,
            )
        if self.record is not None and self.net.lesions is not None:
            self._fit_quality(self.record)
        self.callbacks.on_train_end(self)
        return progress

    def _run_stages(self) -> None:
        progress, options = self.progress, self.options
        while True:
            end = progress.stage_start + self.stage.epochs
            while progress.epoch < end and not options.selection.exhausted(progress):
                self._run_epoch(progress.epoch)
                self.accelerator.wait_for_everyone()
            if options.selection.exhausted(progress):
                log.info(
                    "stopping early: no improvement over epoch %s in %d validations",
                    progress.best_epoch,
                    progress.stale,
                )
            if progress.stage + 1 == len(options.stages):
                break
            self._start_next_stage()

    @property
    def steps_of_epoch(self) -> int:
        """Steps of the current epoch so far."""
        return self._sums.steps

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self.options.stages[self.progress.stage]

    def learning_rate(self, epoch: float) -> float:
        """The learning rate at a time, in epochs from 0, with fractions; called before each step of the optimiser."""
        return self.stage.schedule(epoch - self.progress.stage_start)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Train one epoch, counted from 0, or the rest of it; returns the mean losses, ``loss`` among them."""
        # Whatever draws from the global generator draws the same values in a resumed run.
        torch.manual_seed(self.options.seed + epoch)
        if self._generators is not None:
            restore_generators(self._generators, self.accelerator.device)
            self._generators = None
        # On accelerate's loader, which counts its own epochs and passes them to the sampler.
        self.data.train.batches.set_epoch(epoch)
        stage = self.stage
        name = f"epoch {epoch + 1}/{self.options.epochs}"
        batches = self._bar(self.data.train, f"{name}, {stage.name}" if stage.name else name, done=self._sums.batches)
        return loop.train_epoch(
            self.model,
            batches if stage.augment is None else map(stage.augment, batches),
            draw=partial(stage.draw_prompts or self.data.draw_prompts, epoch=epoch + 1),
            criterion=stage.criterion or self.criterion,
            optimizer=self.optimizer,
            accelerator=self.accelerator,
            after_step=self._after_step,
            clip_norm=self.options.clip_norm,
            sums=self._sums,
            skip=self._skip if self.options.skip_bad_batches else None,
        )

    def validate(self) -> dict[str, float]:
        """Named scores of the current weights on the validation rows, equal in all processes; ``{}`` without rows."""
        if self.data.val is None:
            return {}
        return loop.validate(
            self.model,
            self._bar(self.data.val, "validation"),
            draw=partial(self.data.draw_prompts, epoch=0),
            criterion=self.criterion,
            accelerator=self.accelerator,
        )

    def save_checkpoint(self, name: str, scores: Mapping[str, float] | None = None) -> None:
        """Write the current learned weights to a file of the run folder; in the main process only.

        Args:
            name: of the file, ending in ``.safetensors``.
            scores: validation scores of these weights, for the metadata; default: those of the last epoch.
        """
        if self.record is not None and self.accelerator.is_main_process:
            metrics = None if scores is None else {f"val_{score}": value for score, value in scores.items()}
            with self._averaged():
                self.record.save_checkpoint(self.net, self.record.folder.path / name, self.progress, metrics)

    def restore(self, progress: Progress, state: Mapping[str, Any]) -> None:
        """Continue a run from its state; see :func:`promise.training.resume_state.collect_state`.

        Raises:
            UserError: the state was saved within an epoch by another number of processes, code ``changed-processes``.
        """
        epoch, accelerator = state.get("epoch"), self.accelerator
        if epoch is not None:
            before = len(epoch["processes"])
            if before != accelerator.num_processes:
                raise UserError(
                    f"the run was interrupted within epoch {progress.epoch + 1}. The number of processes was {before} "
                    f"and is {accelerator.num_processes}: resume it with {before}. Between epochs, it may change.",
                    code="changed-processes",
                )
            own = epoch["processes"][accelerator.process_index]
            self._sums = loop.EpochSums.from_state(own["sums"], accelerator.device)
            self._generators, self._last_lr, self._seconds = own["generators"], epoch["lr"], epoch["seconds"]
        restore_state(state, self.net, self.optimizer, self.accelerator.scaler, callbacks=self.callbacks)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.progress = progress

    def repair_checkpoints(self) -> None:
        """Write the checkpoints of a restored run again that are missing or damaged; in the main process only.

        Raises:
            UserError: the weights of the best epoch are lost; code ``damaged-checkpoint``.
        """
        progress, record = self.progress, self.record
        if record is None or not progress.epoch:
            return
        current = self._generators is None  # whether the weights are those of the last epoch, not of steps after it
        if not checkpoint.is_readable(record.folder.best) and progress.best_epoch is not None:
            if not current or progress.best_epoch != progress.epoch:
                raise UserError(
                    f"{record.folder.best} is missing or damaged, and the weights of epoch {progress.best_epoch}, the "
                    "best one, are nowhere else. Restore this file, or start again with --overwrite.",
                    code="damaged-checkpoint",
                )
            self.save_checkpoint(record.folder.best.name)
        if current and not checkpoint.is_readable(record.folder.last):
            self.save_checkpoint(record.folder.last.name)

    def close(self) -> None:
        """Release the loaders, whose worker processes end with them; :func:`train` calls it."""
        del self.data
        self.accelerator.free_memory()

    def _prepare_stage(self) -> None:
        """Freeze what the current stage does not train, and set its model and learning rate; repeatable."""
        for name, parameter in self._trainable.items():
            parameter.requires_grad_(name.startswith(self.stage.trains))
        if len(self.options.stages) > 1:  # several processes reduce the gradients of the weights that learn now
            self.model = self.accelerator.prepare_model(self.stage.wrap(self.net) if self.stage.wrap else self.net)
        self.scheduler = build_scheduler(
            self.optimizer,
            self.learning_rate,
            steps_per_epoch=self.steps_per_epoch,
            steps_done=self.progress.epoch * self.steps_per_epoch + self._sums.steps,
        )

    def _start_next_stage(self) -> None:
        """Continue with the next stage from the best epoch; its own weights are fresh.

        They are not loaded: if the process is killed in the first epoch of the stage, that epoch may already be the
        best one when the run is resumed. All others are frozen then, and the same.
        """
        progress = self.progress
        progress.stage, progress.stage_start, progress.stale = progress.stage + 1, progress.epoch, 0
        best = None if self.record is None else self.record.load_best(self.net, without=self.stage.trains)
        self._prepare_stage()
        self.average = self._new_average()
        log.info(
            "stage %d of %d: %s, %d epochs, %s trainable parameters, with the weights of epoch %d",
            progress.stage + 1,
            len(self.options.stages),
            self.stage.name,
            self.stage.epochs,
            f"{sum(p.numel() for p in self._trainable.values() if p.requires_grad):,}",
            best or progress.epoch,
        )

    def _new_average(self) -> WeightAverage | None:
        return WeightAverage(self.net.learned_state(), self.options.ema) if self.options.ema else None

    def _run_epoch(self, epoch: int) -> None:
        progress, options = self.progress, self.options
        self._started, self._seconds = time.monotonic() - self._seconds, 0.0
        last = epoch + 1 == progress.stage_start + self.stage.epochs
        means = self.train_epoch(epoch)
        self._check_finite(epoch, means.get("loss", math.nan))  # none, if all batches were skipped
        scores: dict[str, float] = {}
        if self.data.val is not None and ((epoch + 1) % options.validate_every == 0 or last):
            with self._averaged():
                scores = self.validate()
            self._check_finite(epoch, scores.get("loss", 0.0))
            self.callbacks.on_validation_end(self, scores)
            convert_tensors(scores)
        names = (*self.criterion.names, "dice", "iou", *self.score_names, *self.callbacks.score_names, *scores)
        row: EpochRow = {
            "epoch": epoch + 1,
            **({"stage": progress.stage + 1} if len(options.stages) > 1 else {}),
            "lr": self._last_lr,
            **{f"train_{name}": mean for name, mean in means.items()},
            **{f"val_{name}": scores.get(name) for name in names},
            "seconds": round(time.monotonic() - self._started, 2),
        }
        self._sums = loop.EpochSums()
        progress.epoch += 1
        progress.history.append(row)
        options.selection.update(progress, None if self.data.val is None else scores)
        self.callbacks.on_epoch_end(self, row)
        convert_tensors(row)
        if self.record is not None and self.accelerator.is_main_process:
            self.record.save_epoch(self.net, progress, self._collect_state(self.record), applied=self._averaged)
        self._pauses.restart()
        _, number = self._pauses.ask()
        if number is not None:
            leave(number)

    def _collect_state(self, record: RunRecord) -> dict[str, Any]:
        state = collect_state(
            self.net,
            self.optimizer,
            self.accelerator.scaler,
            sam_sha256=record.metadata.sam_sha256,
            callbacks=self.callbacks,
        )
        state["settings"] = json.dumps(record.metadata.config, default=str)
        return state if self.average is None else {**state, "average": self.average.state_dict()}

    def _save_within_epoch(self) -> None:
        """Save the state between two steps; called in all processes."""
        self._check_finite(self.progress.epoch)
        own = {"sums": self._sums.state_dict(), "generators": generator_states(self.accelerator.device)}
        processes = gather_object([own])
        if self.record is not None and self.accelerator.is_main_process:
            seconds = time.monotonic() - self._started
            epoch = {"processes": processes, "lr": self._last_lr, "seconds": seconds}
            state = {**self._collect_state(self.record), "epoch": epoch}
            self.record.save_within_epoch(self.progress, self._sums.steps, state)
        self._pauses.restart()

    def _fit_quality(self, record: RunRecord) -> None:
        """Fit the estimate of the IoU of automatic masks on the validation rows, for the best and the last weights."""
        training, folder = {name: value.clone() for name, value in self.net.learned_state().items()}, record.folder
        # Equal weights need only one pass; the best epoch is the last one without validation rows.
        same = self.progress.best_epoch in (None, self.progress.epoch)
        for paths in [(folder.best, folder.last)] if same else [(folder.best,), (folder.last,)]:
            state = safetensors.torch.load_file(paths[-1])
            load_learned(self.net, state, origin=str(paths[-1]), target=record.metadata.net)
            found = self._measure_quality()
            if self.accelerator.is_main_process:
                record.save_quality(found, paths)
        self.net.load_state_dict(training, strict=False)

    def _measure_quality(self) -> QualityEstimate | None:
        if self.data.val is None:
            return None
        features, iou = loop.measure_quality(
            self.model,
            self._bar(self.data.val, "estimated IoU"),
            draw=partial(self.data.draw_prompts, epoch=0),
            accelerator=self.accelerator,
        )
        return fit_quality(features, iou)

    def _averaged(self) -> AbstractContextManager[None]:
        """Inside, the net has the weights that are validated and saved: their moving average, if there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def _skip(self, batch: Batch, loss: LossTerms) -> None:
        progress, most = self.progress, self.options.skip_bad_batches
        progress.skipped += 1
        if loss.total.isfinite():  # the batch of another process is the bad one
            return
        if progress.skipped > most:
            raise self._diverged(progress.epoch, names=batch.name)
        log.warning(
            "epoch %d: the loss of the batch %s is infinite or NaN. Its step is skipped (%d of at most %d).",
            progress.epoch + 1,
            ", ".join(batch.name),
            progress.skipped,
            most,
        )

    def _after_step(self, step: int, loss_terms: LossTerms | None) -> None:
        self._last_lr = self.optimizer.param_groups[0]["lr"]
        if loss_terms is not None:
            if self.average is not None:
                self.average.update()
            self.callbacks.on_step_end(self, self.progress.epoch * self.steps_per_epoch + step, loss_terms)
        self.scheduler.step()
        save, number = self._pauses.ask(before_validation=step == self.steps_per_epoch and self.data.val is not None)
        if save:
            self._save_within_epoch()
        if number is not None:
            leave(number)

    def _check_finite(self, epoch: int, loss: float | None = None) -> None:
        """Raise ``UserError`` if a loss or the weights are no longer finite; what has been saved is kept."""
        names = self._sums.find_infinite()
        if names is not None or not math.isfinite(loss or 0.0) or not loop.has_finite_weights(self.net):
            raise self._diverged(epoch, loss, names)

    def _diverged(self, epoch: int, loss: float | None = None, names: Sequence[str] | None = None) -> UserError:
        first = "" if names is None else f" The first infinite or NaN loss is that of the batch {', '.join(names)}."
        kept = "" if self.record is None or not self.record.kept else f" {self.record.kept} in {self.folder}."
        return UserError(
            f"training diverged: the loss of epoch {epoch + 1} is {loss or math.nan}, or its last steps made "
            f"weights infinite.{first}{kept} Lower --lr, set --clip-norm, use --precision fp32, or skip such batches "
            "with --skip-bad-batches N.",
            code="diverged",
        )

    def _bar(self, loader: Loader, name: str, *, done: int = 0) -> Iterable[Batch]:
        quiet = self.options.quiet or not self.accelerator.is_main_process
        batches = skip_first_batches(loader.batches, done) if done else loader.batches
        bar: Iterable[Batch] = progress_bar(
            batches, total=loader.steps, name=name, unit="batch", done=done, quiet=quiet
        )
        return bar
