"""Writes the files of a run, epoch by epoch; in the main process only."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from promise.models import checkpoint
from promise.models.promise import Promise
from promise.models.quality import LEAST_ROWS, QualityEstimate
from promise.runtime.environment import describe_environment
from promise.runtime.errors import WriteError
from promise.runtime.files import remove_leftovers
from promise.runtime.memory import peak_memory
from promise.runtime.notices import Notice, describe
from promise.runtime.settings import write_yaml
from promise.training.resume_state import Progress
from promise.training.run_folder import RunFolder
from promise.training.run_log import RunLog

log = logging.getLogger(__name__)


class RunRecord:
    """Checkpoints, logs and the state to resume from."""

    def __init__(self, folder: RunFolder, *, metadata: checkpoint.Metadata, epochs: int, tensorboard: bool) -> None:
        """Prepare to write; nothing is written yet.

        Args:
            folder: of the run.
            metadata: of its checkpoints; epoch and metrics are filled in.
            epochs: of the whole run.
            tensorboard: whether to write TensorBoard events, if the package is installed.
        """
        self.folder = folder
        self.metadata = metadata
        self.epochs = epochs
        self.tensorboard = tensorboard
        self._log: RunLog | None = None
        self._saved = (0, 0)  # epochs, and steps of the next one, that the state on disk includes

    def start(self, config: Any, net: Promise, device: torch.device, *, notices: Sequence[Notice]) -> None:
        """Prepare the folder of a new run: delete the files of an earlier run, write settings and environment.

        Args:
            config: dataclass of all settings; only written.
            net: the unwrapped net.
            device: of the training.
            notices: about the data.
        """
        self.folder.clear()
        write_yaml(self.folder.config, dataclasses.replace(config, overwrite=False))
        self.folder.write_environment(
            **describe_environment(device),
            seed=config.seed,
            sam_sha256=self.metadata.sam_sha256,
            trainable_parameters=sum(p.numel() for p in net.parameters() if p.requires_grad),
            warnings=[describe(notice) for notice in notices],
            notices=[notice.as_dict() for notice in notices],
        )

    @contextmanager
    def open(self, progress: Progress, *, steps: int = 0) -> Iterator[None]:
        """Log while inside; on an interruption, log how to resume.

        Args:
            progress: of the run.
            steps: of the next epoch, of a run that was interrupted within it.
        """
        self._saved = (progress.epoch, steps)
        run_log = self._log = RunLog(
            self.folder.path, epochs=self.epochs, done=progress.epoch, tensorboard=self.tensorboard
        )
        remove_leftovers(self.folder.path)
        run_log.write(progress.history)
        try:
            yield
        except WriteError as error:
            kept = f"{self.kept}: resume with --resume." if self.kept else "No epoch was saved."
            raise WriteError(f"{error} {kept}", code=error.code, number=error.errno or 0) from error
        except (KeyboardInterrupt, SystemExit):
            if self.kept:
                log.warning(
                    "training stopped after %d of %d epochs%s. Resume with: promise-train --output %s --resume",
                    self._saved[0],
                    self.epochs,
                    f" and {self._saved[1]} steps" if self._saved[1] else "",
                    shlex.quote(str(self.folder.path)),
                )
            raise
        finally:
            run_log.close(progress.history)

    @property
    def kept(self) -> str:
        """What the state on disk includes, such as ``Epoch 3 and 17 steps are kept``; empty: there is none."""
        epoch, steps = self._saved
        parts = [*([f"Epoch {epoch}"] if epoch else []), *([f"{steps} step{'s' * (steps > 1)}"] if steps else [])]
        verb = "is" if len(parts) == 1 and steps < 2 else "are"
        return f"{' and '.join(parts)} {verb} kept" if parts else ""

    def save_within_epoch(self, progress: Progress, steps: int, state: Mapping[str, Any]) -> None:
        """Write the state between two steps; other arguments as in :meth:`save_epoch`.

        Args:
            progress: of the run, without this epoch.
            steps: of this epoch.
            state: what is needed to resume within the epoch.
        """
        self.folder.save_state(progress, state)
        self._saved = (progress.epoch, steps)

    def save_epoch(
        self,
        net: Promise,
        progress: Progress,
        state: Mapping[str, Any],
        *,
        applied: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Write the files of an epoch that has just ended.

        Args:
            net: the unwrapped net.
            progress: of the run, including this epoch.
            state: what :func:`promise.training.resume_state.collect_state` returned.
            applied: inside its context the net has the weights of the checkpoints.
        """
        best = progress.best_epoch == progress.epoch
        with applied():
            if best:
                self.save_checkpoint(net, self.folder.best, progress)
            self.save_checkpoint(net, self.folder.last, progress)
        # After the checkpoints: if the process is killed before this line, resuming repeats the epoch bit for bit.
        self.folder.save_state(progress, state)
        self._saved = (progress.epoch, 0)
        if self._log is not None:
            self._log.append(progress.history, best=best)

    def load_best(self, net: Promise, *, without: tuple[str, ...]) -> int | None:
        """Load the weights of the best epoch until now, except for some.

        Args:
            net: the unwrapped net, changed in place.
            without: beginnings of names of weights that are kept.

        Returns:
            The epoch; ``None`` if no best epoch has been saved.
        """
        if not self.folder.best.is_file():
            return None
        state = safetensors.torch.load_file(self.folder.best)
        net.load_state_dict({k: v for k, v in state.items() if not k.startswith(without)}, strict=False)
        return checkpoint.read_metadata(self.folder.best).epoch

    def finish(self, sam_sha256: str, device: torch.device, *, skipped: int) -> None:
        """Record SHA-256 of SAM's weights after training, the peak memory, and the number of skipped batches."""
        unchanged = " (unchanged)" * (sam_sha256 == self.metadata.sam_sha256)
        log.info("SHA-256 of SAM's weights after training: %s%s", sam_sha256, unchanged)
        self.folder.write_environment(
            sam_sha256_after=sam_sha256, peak_memory_gib=peak_memory(device), skipped_batches=skipped
        )

    def save_quality(self, estimate: QualityEstimate | None, paths: Sequence[Path]) -> None:
        """Store the estimate of the IoU of automatic masks in checkpoints; ``None``: too few validation rows."""
        names = " and ".join(path.name for path in paths)
        if estimate is None:
            log.info(
                "%s: lesions are found in fewer than %d validation rows, so no estimated IoU is fitted; SAM's own "
                "estimate is reported.",
                names,
                LEAST_ROWS,
            )
            return
        log.info(
            "%s: the estimated IoU is fitted on %d validation rows; leave-one-out correlation %.3f, mean error %.3f",
            names,
            estimate.rows,
            estimate.correlation,
            estimate.error,
        )
        quality = dataclasses.asdict(estimate)
        for path in paths:
            metadata = checkpoint.read_metadata(path)
            if metadata.quality != quality:  # resuming a finished run changes no file
                checkpoint.rewrite_metadata(path, dataclasses.replace(metadata, quality=quality))

    def save_checkpoint(
        self, net: Promise, path: Path, progress: Progress, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Write the learned weights.

        Args:
            net: the unwrapped net.
            path: of the file.
            progress: of the run.
            metrics: validation scores of these weights; default: those of the last epoch.
        """
        if metrics is None:
            row = progress.history[-1] if progress.history else {}
            metrics = {name: value for name, value in row.items() if value is not None and name.startswith("val_")}
        checkpoint.save(net, path, dataclasses.replace(self.metadata, epoch=progress.epoch, metrics=metrics))
