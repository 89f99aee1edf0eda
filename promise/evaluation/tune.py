"""Tune the postprocessing of a net: a grid search on the val rows, whose winner is stored in the checkpoint.

Of a net that finds lesions, the lesion settings are tuned first; see :mod:`promise.evaluation.tune_lesions`.

Only files of val rows are opened.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from promise.data.leaks import count_seen, find_seen, hash_images
from promise.data.masks import read_mask
from promise.data.selection import DataSet, select_rows
from promise.evaluation.config import EvalConfig
from promise.evaluation.scoring import dice_of_empty
from promise.evaluation.setup import Draws, EvaluationSetup, check_eval, evaluation_loader, load_setup
from promise.evaluation.statistics import column_means
from promise.evaluation.tune_lesions import Step, tune_lesions
from promise.inference.loop import RowPrediction, predict_draws
from promise.inference.postprocess import Postprocess, fill_holes, largest_component, open_or_close, probability_at
from promise.models import checkpoint
from promise.prompts.sampling import AUTO
from promise.runtime.errors import UserError, all_of, raise_all
from promise.runtime.files import check_output_dir, write_lines
from promise.runtime.lock import exclusive
from promise.runtime.memory import explain_out_of_memory
from promise.runtime.notices import describe
from promise.runtime.progress import progress_bar
from promise.runtime.workers import default_workers, ordered_map

log = logging.getLogger(__name__)

LESIONS = "tune_lesions.csv"
FEW = 20  # images; a choice on fewer is reported as uncertain

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(2, 19))  # 0.1 … 0.9
KERNELS = (3, 5, 7, 9, 11)
TIE = 5e-5  # means that differ by less are equal to four digits
_OPERATIONS: tuple[tuple[Literal["none", "open", "close"], int], ...] = (
    ("none", 5),
    *(("open", kernel) for kernel in KERNELS),
    *(("close", kernel) for kernel in KERNELS),
)
_PARTS = tuple(itertools.product((False, True), repeat=2))  # fill, largest
# In the order in which dice_of_grid computes the scores.
GRID = tuple(
    Postprocess(operation, kernel, threshold, fill, largest)
    for threshold in THRESHOLDS
    for operation, kernel in _OPERATIONS
    for fill, largest in _PARTS
)


@dataclass(frozen=True)
class TuneResult:
    """The result of a search."""

    folder: Path
    ckpt: Path
    images: int
    winner: Postprocess
    ranked: tuple[tuple[Postprocess, float], ...]  # the grid with its mean Dice, the winner first
    lesions: tuple[Step, ...] = ()  # the search for lesion settings, of a net that finds lesions

    @property
    def plain(self) -> float:
        """The mean Dice without postprocessing."""
        return dict(self.ranked)[Postprocess()]


def tune(config: EvalConfig) -> TuneResult:
    """Choose the postprocessing with the best mean native Dice on the val rows, and store it in the checkpoint.

    The lesion settings of a net that finds lesions are tuned first, if the prompts are its own. Ties go to the simplest
    candidate. The net predicts each image once; every postprocessing is applied to the same probability map.

    Raises:
        UserError: invalid settings, files or weights; nothing has been written.
    """
    _check(config)
    ckpt = Path(config.ckpt or "")
    checkpoint.require(ckpt)
    folder = check_output_dir(
        Path(config.output) if config.output else ckpt.parent / "tune",
        ("tune.csv", LESIONS),
        overwrite=config.overwrite,
    )
    advice = "The result is stored in the checkpoint: copy it to another folder."
    same = folder.resolve() == ckpt.parent.resolve()
    with exclusive(ckpt.parent, advice=advice), nullcontext() if same else exclusive(folder):
        return _tune(config, ckpt, folder)


def _tune(config: EvalConfig, ckpt: Path, folder: Path) -> TuneResult:
    stored = checkpoint.read_metadata(ckpt)
    datasets, notes = select_rows(
        config.split_csv, data_root=config.data_root, split="val", level=config.check, progress=not config.quiet
    )
    for note in notes:
        log.warning(note)
    setup = load_setup(dataclasses.replace(config, postprocess="default"))
    hashes = _hash(datasets, stored)
    draws = setup.read_draws(datasets)
    automatic = setup.loaded.net.lesions is not None and setup.prompting.source == AUTO
    steps = tuple(tune_lesions(config, setup, datasets)) if automatic else ()
    scores = np.concatenate([_dice(config, setup, dataset, draws) for dataset in datasets])
    if len(scores) < FEW:
        log.warning("only %d images to choose on: the best of %d candidates may win by chance.", len(scores), len(GRID))
    ranked = rank(column_means(scores))
    winner, dice = ranked[0]
    result = TuneResult(folder, ckpt, len(scores), winner, tuple(ranked), steps)
    write_lines(folder / "tune.csv", _lines(ranked, images=len(scores)))
    if steps:
        write_lines(folder / LESIONS, _lesion_lines(steps))
    tuning = {
        "dice": dice,
        "dice_without": result.plain,
        "images": len(scores),
        "datasets": [dataset.name for dataset in datasets],
        "split": "val",
        "prompt_source": setup.prompting.source,
        "candidates": len(GRID),
    }
    if stored.postprocess is not None:
        log.info("%s: the stored postprocessing %s is replaced.", ckpt, stored.postprocess)
    checkpoint.rewrite_metadata(
        ckpt,
        dataclasses.replace(
            stored,
            postprocess=str(winner),
            tuning=tuning,
            seen={**stored.seen, "tune": sorted(set(hashes))},
            lesions=setup.describe()["lesions"] if steps else stored.lesions,
        ),
    )
    return result


def _check(config: EvalConfig) -> None:
    all_of(lambda: check_eval(config), lambda: raise_all(list(_faults(config))))


def _faults(config: EvalConfig) -> Iterator[UserError]:
    """Settings that do not go with ``--tune-postprocess``."""
    flag = "--tune-postprocess"
    if config.ckpt is None or Path(config.ckpt).suffix != ".safetensors":
        yield UserError(
            f"{flag} stores the result in a checkpoint of this package (.safetensors); name it with --ckpt.",
            code="tuning-without-checkpoint",
        )
    if config.split not in (None, "val"):
        yield UserError(f"{flag} uses val rows only; remove --split {config.split}.", code="tuning-split")
    if config.postprocess is not None:
        yield UserError(f"{flag} and --postprocess exclude each other.", code="tuning-with-postprocess")
    if config.prompt_seeds > 1:
        yield UserError(f"{flag} uses one draw of prompts; remove --prompt-seeds.", code="tuning-with-draws")


def _hash(datasets: Sequence[DataSet], stored: checkpoint.Metadata) -> list[str]:
    """Content hashes of all images; warns about images that the net was trained on."""
    hashes = [digest for dataset in datasets for digest in hash_images(dataset.rows)]
    seen = count_seen(hashes, {"train": stored.seen.get("train", ())})
    for notice in find_seen("validation rows", seen, len(hashes)):
        log.warning(describe(notice))
    return hashes


def _dice(config: EvalConfig, setup: EvaluationSetup, dataset: DataSet, draws: Draws) -> np.ndarray:
    """Native Dice (N, G) of N images under the G candidates of the grid."""
    loader = evaluation_loader(dataset.rows, setup, config)
    sources = setup.prompt_sources(dataset, draws)[:1]
    scores = np.full((len(dataset.rows), len(GRID)), np.nan, np.float32)

    def score_grid(row: RowPrediction) -> tuple[int, np.ndarray]:
        target = read_mask(dataset.rows[row.index].mask)
        probability = probability_at(row.logits, *target.shape)
        return row.index, dice_of_grid(probability, target, empty_rule=config.empty_masks)

    bar = progress_bar(total=len(dataset.rows), name=f"tuning on {dataset.name}", unit="image", quiet=config.quiet)
    with bar, explain_out_of_memory(config.batch_size):
        predicted = predict_draws(setup.loaded.net, loader, sources=sources, device=setup.loaded.device)
        for index, dice in ordered_map(score_grid, predicted, workers=default_workers()):
            scores[index] = dice
            bar.update()
    return scores


def dice_of_grid(probability: np.ndarray, target: np.ndarray, *, empty_rule: str = "one") -> np.ndarray:
    """The Dice of one image under every candidate of :data:`GRID`.

    Args:
        probability: (H, W) float in [0, 1].
        target: (H, W) bool.
        empty_rule: the Dice where the ground truth is empty; see :data:`promise.evaluation.config.EMPTY_RULES`.

    Returns:
        (G,) float64, in the order of the grid.
    """
    window = _window((probability >= THRESHOLDS[0]) | target)
    target = target[window]
    positives = int(np.count_nonzero(target))
    dice = []
    for mask in _masks(probability[window]):
        predicted = int(np.count_nonzero(mask))
        if positives == 0:
            dice.append(dice_of_empty(empty_rule, predicted=predicted > 0))
        else:
            dice.append(2 * int(np.count_nonzero(mask & target)) / (predicted + positives))
    return np.array(dice)


def _masks(probability: np.ndarray) -> Iterator[np.ndarray]:
    """The masks of the grid, in its order; no step is computed twice."""
    for threshold in THRESHOLDS:
        thresholded = np.asarray(probability >= threshold)
        for operation, kernel in _OPERATIONS:
            mask = thresholded if operation == "none" else open_or_close(thresholded, operation, kernel)
            filled = fill_holes(mask)
            yield mask
            yield largest_component(mask)
            yield filled
            yield largest_component(filled)


def _window(foreground: np.ndarray) -> tuple[slice, slice]:
    """The bounding box of the foreground, widened by more than the largest kernel: pixels outside it never change."""
    margin = KERNELS[-1] + 1
    sides = []
    for axis in (1, 0):
        lines = np.flatnonzero(foreground.any(axis=axis))
        first, last = (int(lines[0]), int(lines[-1])) if lines.size else (0, 0)
        sides.append(slice(max(0, first - margin), last + margin + 1))
    return sides[0], sides[1]


def rank(dice: np.ndarray) -> list[tuple[Postprocess, float]]:
    """The grid sorted by mean Dice (G,), the winner first: the simplest candidate within :data:`TIE` of the best."""
    order = sorted(range(len(GRID)), key=lambda i: (-dice[i], _complexity(GRID[i])))
    ties = [i for i in order if dice[i] >= dice[order[0]] - TIE]
    winner = min(ties, key=lambda i: (*_complexity(GRID[i]), -dice[i])) if ties else order[0]
    return [(GRID[i], float(dice[i])) for i in (winner, *(i for i in order if i != winner))]


def _complexity(postprocess: Postprocess) -> tuple[float, ...]:
    """Sort key: number of steps, then size of the kernel, then distance of the threshold from one half."""
    acts = postprocess.operation != "none"
    steps = acts + postprocess.fill + postprocess.largest + (postprocess.threshold != 0.5)
    return steps, postprocess.kernel if acts else 0, abs(postprocess.threshold - 0.5), postprocess.threshold


def _lesion_lines(steps: Sequence[Step]) -> Iterator[Mapping[str, Any]]:
    for step in steps:
        for value, dice in zip(step.values, step.dice, strict=True):
            yield {"setting": step.name, "value": value, "dice": dice, "chosen": int(value == step.chosen)}


def _lines(ranked: Sequence[tuple[Postprocess, float]], *, images: int) -> Iterator[Mapping[str, Any]]:
    for postprocess, dice in ranked:
        yield {
            "postprocess": str(postprocess),
            "operation": postprocess.operation,
            "kernel": "" if postprocess.operation == "none" else postprocess.kernel,
            "threshold": postprocess.threshold,
            "fill": int(postprocess.fill),
            "largest": int(postprocess.largest),
            "images": images,
            "dice": dice,
        }
