"""Is B better than A on the same images? Paired differences and what chance would make of them; knows no models.

Every difference is B − A, image by image; an image with several prompt draws counts once, with its mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from promise.evaluation.reader import Evaluation, metric_of
from promise.evaluation.statistics import LEVEL, RESAMPLES, SEED, bootstrap
from promise.runtime.errors import UserError, unknown_name

Floats: TypeAlias = npt.NDArray[np.float64]

SHARE_TOLERANCE = 1e-6  # of the truth's foreground share: what a CSV's decimals may lose
TOLD = 5  # names in an error
# Settings that make two results less than comparable, and their words.
SETTINGS = {
    "prompts": "the prompts come from different origins",
    "prompt_source": "the prompts are made differently",
    "postprocess": "the postprocessing differs",
    "empty_masks": "masks without foreground are scored differently",
    "recipe": "the pixel recipes differ",
}


@dataclass(frozen=True)
class Change:
    """One image under A and under B."""

    name: str
    a: float
    b: float
    difference: float


@dataclass(frozen=True)
class Paired:
    """One metric on the images of one data set; the same images under A and B."""

    dataset: str
    metric: str
    images: int  # pairs where both are numbers
    left_out: int  # pairs where one is not
    mean_a: float
    mean_b: float
    difference: float  # mean of B − A
    interval: tuple[float, float]  # 95 % bootstrap over images, of the mean difference
    p: float | None  # Wilcoxon signed-rank, two-sided; None: no test
    p_note: str  # why there is none, or what it is
    wins: int  # images on which B is better
    ties: int
    losses: int
    gained: tuple[Change, ...]  # B much better, most first
    lost: tuple[Change, ...]  # B much worse, most first


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the same images."""

    a: str
    b: str
    warnings: tuple[str, ...]
    results: tuple[Paired, ...]
    resamples: int = RESAMPLES
    seed: int = SEED

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {"difference": "b - a", "level": LEVEL, **dataclasses.asdict(self)}


def compare(a: Evaluation, b: Evaluation, *, metrics: Sequence[str] = ("native_dice",), top: int = 5) -> Comparison:
    """Pair two evaluations by data set and image.

    Args:
        a: the baseline.
        b: what is held against it.
        metrics: columns of per_image.csv.
        top: so many images that changed most, each way.

    Raises:
        UserError: images or truths differ, no data set in common, or an unknown metric.
    """
    known = [name for name in a.metrics if name in b.metrics]
    for metric in metrics:
        if metric not in known:
            raise unknown_name("metric", metric, known)
    ours, theirs = a.images(), b.images()
    names = [name for name in a.summary["datasets"] if name in b.summary["datasets"]]
    if not names:
        raise UserError(
            f"the two share no data set: {a.folder} has {', '.join(a.summary['datasets'])}, {b.folder} has "
            f"{', '.join(b.summary['datasets'])}. A data set is named after its CSV."
        )
    faults = [fault for name in names for fault in _mismatches(name, ours.loc[name], theirs.loc[name])]
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"{a.folder} and {b.folder} cannot be paired:\n{lines}\nScore both on the same split CSVs.")
    results = [
        _pair(name, metric, ours.loc[name][metric], theirs.loc[name][metric], top)
        for name in names
        for metric in metrics
    ]
    return Comparison(str(a.folder), str(b.folder), tuple(_warnings(a, b)), tuple(results))


def _mismatches(dataset: str, a: pd.DataFrame, b: pd.DataFrame) -> Iterator[str]:
    """Why the images of one data set are not the same in both."""
    for who, extra in (("A", a.index.difference(b.index)), ("B", b.index.difference(a.index))):
        if len(extra):
            yield f"{dataset}: {len(extra)} of {len(a.index.union(b.index))} images only in {who}: {_some(extra)}"
    both = a.index.intersection(b.index)
    for column, words in (("foreground_share", "a truth of another area"), ("empty_truth", "an empty truth in one")):
        if column in a and column in b:
            apart = (a.loc[both, column] - b.loc[both, column]).abs() > SHARE_TOLERANCE
            if apart.any():
                yield f"{dataset}: {int(apart.sum())} of {len(both)} images have {words}: {_some(both[apart])}"
                return


def _some(names: Any) -> str:
    return ", ".join(map(str, names[:TOLD])) + (", …" if len(names) > TOLD else "")


def _warnings(a: Evaluation, b: Evaluation) -> Iterator[str]:
    """What makes the two less than comparable."""
    for key, words in SETTINGS.items():
        first, second = a.summary.get(key), b.summary.get(key)
        if first != second and not (key == "prompt_source" and a.summary.get("prompts") != b.summary.get("prompts")):
            yield f"{words}: {_told(first)} in A, {_told(second)} in B"
    if "foreground_share" not in a.rows or "foreground_share" not in b.rows:
        yield "an evaluation from before foreground shares were written: that the truths are the same was not checked"
    for who, mine, other in (("A", a, b), ("B", b, a)):
        alone = [name for name in mine.summary["datasets"] if name not in other.summary["datasets"]]
        if alone:
            yield f"only in {who}, and left out: {', '.join(alone)}"
    for who, result in (("A", a), ("B", b)):
        for name in result.summary["datasets"]:
            if seen := result.seen(name):
                told = " and ".join(f"{n} images for {split}" for split, n in seen.items())
                yield f"{name}: {who} was made with {told} that are scored here; its scores are no test"


def _told(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _pair(dataset: str, metric: str, a: pd.Series[float], b: pd.Series[float], top: int) -> Paired:
    b = b.reindex(a.index)
    told = (a.notna() & b.notna()).to_numpy()
    if not told.any():
        raise UserError(f"{dataset}: no image has a {metric} in both. Choose another --metric.")
    names, first, second = a.index[told], a.to_numpy(float)[told], b.to_numpy(float)[told]
    differences = second - first
    # 0.3 − 0.1 − 0.2 is not 0: what a mean over draws leaves of rounding is a tie.
    differences[np.abs(differences) < 1e-12] = 0.0
    p, note = _wilcoxon(differences)
    interval = bootstrap(differences[:, None])[0]
    meaning = metric_of(metric)
    better = -differences if meaning is not None and not meaning.higher_is_better else differences
    order = np.argsort(-better, kind="stable")
    changes = [Change(str(names[i]), float(first[i]), float(second[i]), float(differences[i])) for i in order]
    wins, losses = int((better > 0).sum()), int((better < 0).sum())
    return Paired(
        dataset=dataset,
        metric=metric,
        images=len(differences),
        left_out=int((~told).sum()),
        mean_a=float(first.mean()),
        mean_b=float(second.mean()),
        difference=float(differences.mean()),
        interval=(float(interval[0]), float(interval[1])),
        p=p,
        p_note=note,
        wins=wins,
        ties=len(differences) - wins - losses,
        losses=losses,
        gained=tuple(changes[: min(top, wins)]),
        lost=tuple(changes[::-1][: min(top, losses)]),
    )


def _wilcoxon(differences: Floats) -> tuple[float | None, str]:
    """Two-sided p and what stands behind it; images without a difference are left out of the ranks."""
    moved = int((differences != 0).sum())
    if moved == 0:
        return None, "all differences are 0: nothing to test"
    p = float(stats.wilcoxon(differences, zero_method="wilcox", alternative="two-sided").pvalue)
    return p, f"two-sided, {moved} of {len(differences)} differences not 0"
