"""The best epoch, by a named validation score, and early stopping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from promise.runtime.errors import unknown_name
from promise.training.resume_state import Progress


def check_score(name: str, known: Iterable[str]) -> None:
    """Raise ``UserError`` (code ``unknown-validation-score``) for a score that no validation computes."""
    names = list(known)
    if name not in names:
        raise unknown_name("validation score", name, names)


def lower_is_better(name: str) -> bool:
    """Whether a score is a loss: ``loss``, ``loss_mask``, ``ema_loss``."""
    return "loss" in name.split("_")


@dataclass(frozen=True)
class Selection:
    """Selects the best epoch; the first of several equal ones."""

    score: str = "iou"
    patience: int = 0  # validations without improvement after which training stops; 0: never

    def update(self, progress: Progress, scores: Mapping[str, float] | None) -> None:
        """Record the epoch that has just ended.

        Args:
            progress: of the run, including this epoch; changed in place.
            scores: of the validation, empty if the epoch was not validated; ``None``: the run has no validation rows,
                and the last epoch is the best one.
        """
        if scores is None:
            progress.best_epoch = progress.epoch
        elif self.score in scores:
            score = scores[self.score]
            if progress.best_score is None or self._better(score, progress.best_score):
                progress.best_epoch, progress.best_score, progress.stale = progress.epoch, score, 0
            else:
                progress.stale += 1

    def exhausted(self, progress: Progress) -> bool:
        """Whether training stops early."""
        return 0 < self.patience <= progress.stale

    def _better(self, score: float, best: float) -> bool:
        return score < best if lower_is_better(self.score) else score > best
