"""Callbacks: a user's code at fixed points of a training run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from promise.runtime.errors import UserError

if TYPE_CHECKING:
    from promise.training.losses import LossTerms
    from promise.training.run_log import EpochRow
    from promise.training.trainer import Trainer


class Callback:
    """Base class of callbacks; override the methods that are needed, the others do nothing.

    All methods are called in every process of a run. Values that are added to ``scores`` must be equal in all of
    them, since they may select the best epoch; :meth:`promise.training.Trainer.validate` returns such values.
    """

    # Validation scores that the callback adds in `on_validation_end`: `--select` accepts them. Lower is better for a
    # score with the word `loss` in its name, such as `ema_loss`, higher for all others.
    score_names: tuple[str, ...] = ()

    def on_train_start(self, trainer: Trainer) -> None:
        """Called once, after a resumed run has been restored and before its next epoch."""

    def on_step_end(self, trainer: Trainer, step: int, loss_terms: LossTerms) -> None:
        """Called after each step of the optimiser, before the learning rate changes.

        Args:
            trainer: the trainer; ``trainer.net`` holds the updated weights.
            step: optimiser steps since the start of the run, counted from 1 and continued by a resumed run.
            loss_terms: loss of the last batch of the step, in this process; call ``detach`` on what is kept.
        """

    def on_validation_end(self, trainer: Trainer, scores: dict[str, float]) -> None:
        """Called after each validation; values that are added to ``scores`` are logged as ``val_<name>``.

        Args:
            trainer: the trainer.
            scores: ``loss``, ``dice``, ``iou`` and, if the loss has several terms, ``loss_<term>``.
        """

    def on_epoch_end(self, trainer: Trainer, row: EpochRow) -> None:
        """Called after each epoch, once the best epoch has been selected and before any file is written.

        Args:
            trainer: the trainer; ``trainer.progress`` already counts the epoch.
            row: the epoch's row of ``log.csv``; values that are added become columns of it.
        """

    def on_train_end(self, trainer: Trainer) -> None:
        """Called once, after the last epoch; not called when the run is interrupted."""

    def state_dict(self) -> dict[str, Any]:
        """What the callback needs to resume: tensors, numbers and strings, in dictionaries and lists."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; tensors are on the CPU."""


class CallbackList(Callback):
    """Several callbacks as one; they are called in order."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self.callbacks = tuple(callbacks)
        self.score_names = tuple(name for callback in self.callbacks for name in callback.score_names)

    def on_train_start(self, trainer: Trainer) -> None:
        """Call all callbacks."""
        for callback in self.callbacks:
            callback.on_train_start(trainer)

    def on_step_end(self, trainer: Trainer, step: int, loss_terms: LossTerms) -> None:
        """Call all callbacks."""
        for callback in self.callbacks:
            callback.on_step_end(trainer, step, loss_terms)

    def on_validation_end(self, trainer: Trainer, scores: dict[str, float]) -> None:
        """Call all callbacks."""
        for callback in self.callbacks:
            callback.on_validation_end(trainer, scores)

    def on_epoch_end(self, trainer: Trainer, row: EpochRow) -> None:
        """Call all callbacks."""
        for callback in self.callbacks:
            callback.on_epoch_end(trainer, row)

    def on_train_end(self, trainer: Trainer) -> None:
        """Call all callbacks."""
        for callback in self.callbacks:
            callback.on_train_end(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The states of the callbacks that have one, by the name of their class."""
        states = {name: callback.state_dict() for name, callback in self._by_name().items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the callbacks.

        Raises:
            UserError: there is a state of a callback that is missing here, code ``missing-callback``.
        """
        callbacks = self._by_name()
        missing = [name for name in state if name not in callbacks]
        if missing:
            raise UserError(
                f"this run was trained with the callback {', '.join(missing)}, which has a state of its own: resume it "
                "from Python with train(config, callbacks=[…]).",
                code="missing-callback",
            )
        for name, own in state.items():
            callbacks[name].load_state_dict(own)

    def _by_name(self) -> dict[str, Callback]:
        names: dict[str, Callback] = {}
        for callback in self.callbacks:
            name = type(callback).__name__
            same = sum(other.partition("-")[0] == name for other in names)
            names[f"{name}-{same + 1}" if same else name] = callback
        return names
