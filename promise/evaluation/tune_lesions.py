"""Tune how a net finds lesions: one setting after the other, on the same rows as the postprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from promise.data.masks import read_mask
from promise.data.selection import DataSet
from promise.evaluation.config import EvalConfig
from promise.evaluation.scoring import NATIVE_POSTPROCESS, native_dice
from promise.evaluation.setup import EvaluationSetup, evaluation_loader
from promise.evaluation.statistics import column_means
from promise.inference.loop import encode_batch, predict_batch
from promise.inference.postprocess import probability_at
from promise.models.prompters.lesions import LesionSettings, change_settings
from promise.prompts.source import PromptGroup
from promise.runtime.memory import explain_out_of_memory
from promise.runtime.progress import progress_bar

# In the order in which they are tuned. Boxes depend on all settings but fuse, so SAM decodes every candidate.
STEPS: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("threshold", (0.3, 0.4, 0.5, 0.6)),
    ("fuse", (0.0, 0.25, 0.5, 0.75)),
    ("min_probability", (0.0, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)),
    ("min_score", (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01)),
    ("min_share", (0.0, 0.05, 0.1, 0.2)),
)
# Of these the largest value is selected whose mean Dice is at most LOSS lower than the best one: nearly all validation
# images have a lesion, so that their Dice does not reward dropping weak components of images that have none. Not of
# min_score: a larger one drops small lesions, of which the validation images may have few.
STRICT = ("min_probability",)
LOSS = 5e-4
TIE = 5e-5  # means that differ by less are equal to four digits; the setting is then left unchanged


@dataclass(frozen=True)
class Step:
    """A setting with its candidates."""

    name: str
    values: tuple[float, ...]
    dice: tuple[float, ...]  # mean native Dice of each value
    chosen: float

    @property
    def chosen_dice(self) -> float:
        """The mean Dice of the chosen value."""
        return self.dice[self.values.index(self.chosen)]


def tune_lesions(config: EvalConfig, setup: EvaluationSetup, datasets: Sequence[DataSet]) -> Iterator[Step]:
    """Choose the lesion settings of a net one after the other; the net is changed, and each step is yielded.

    Every step encodes each image once, or reads its features from the cache.
    """
    apm = setup.loaded.net.apm
    assert apm is not None
    for name, grid in STEPS:
        assert apm.lesions is not None
        start = apm.lesions
        values = tuple(sorted({*grid, getattr(start, name)}))
        candidates = [change_settings(start, {name: value}) for value in values]
        scores = np.concatenate([_dice(config, setup, dataset, candidates, name) for dataset in datasets])
        dice = tuple(map(float, column_means(scores)))
        step = Step(name, values, dice, choose(name, values, dice, current=getattr(start, name)))
        apm.lesions = change_settings(start, {name: step.chosen})
        yield step


def choose(name: str, values: Sequence[float], dice: Sequence[float], *, current: float) -> float:
    """The value of a setting, from the mean Dice of each candidate; see :data:`STRICT` and :data:`TIE`."""
    best = max(dice)
    if name in STRICT:
        return max(value for value, score in zip(values, dice, strict=True) if score >= best - LOSS)
    tied = [value for value, score in zip(values, dice, strict=True) if score >= best - TIE]
    return current if current in tied else values[dice.index(best)]


def _dice(
    config: EvalConfig, setup: EvaluationSetup, dataset: DataSet, candidates: Sequence[LesionSettings], name: str
) -> np.ndarray:
    """Native Dice (N, C) of N images under C settings, without postprocessing."""
    net, device = setup.loaded.net, setup.loaded.device
    assert net.apm is not None
    scores = np.full((len(dataset.rows), len(candidates)), np.nan, np.float32)
    bar = progress_bar(
        total=len(dataset.rows), name=f"tuning {name} on {dataset.name}", unit="image", quiet=config.quiet
    )
    with bar, explain_out_of_memory(config.batch_size):
        for batch in evaluation_loader(dataset.rows, setup, config):
            encoded = encode_batch(net, batch, device)
            targets = {int(index): read_mask(dataset.rows[int(index)].mask) for index in batch.index}
            for number, candidate in enumerate(candidates):
                net.apm.lesions = candidate
                for row in predict_batch(net, encoded, PromptGroup(range(len(batch)), None), device):
                    target = targets[row.index]
                    mask = NATIVE_POSTPROCESS(probability_at(row.logits, *target.shape))
                    scores[row.index, number] = native_dice(mask, target, config.empty_masks)
            bar.update(len(batch))
    return scores
