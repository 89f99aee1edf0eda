"""Compare two evaluations on the same images: paired differences, bootstrap intervals and a signed-rank test.

Every difference is B − A of one image. An image with several draws of prompts counts once, with its mean.
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
from promise.runtime.errors import UserError, raise_all, unknown_name
from promise.runtime.notices import TEXTS, Notice, describe, unique

Floats: TypeAlias = npt.NDArray[np.float64]

FRACTION_TOLERANCE = 1e-6  # of the foreground fraction: rounding in the CSV
NAMES_SHOWN = 5  # in an error
#: Settings that should agree: key of summary.json → code of the notice and its text.
SETTINGS = {
    "prompts": ("different-prompt-origins", "the prompts come from different origins"),
    "prompt_source": ("different-prompt-sources", "the prompts are generated differently"),
    "postprocess": ("different-postprocessing", "the postprocessing differs"),
    "empty_masks": ("different-empty-masks", "masks without foreground are scored differently"),
    "recipe": ("different-recipes", "the pixel recipes differ"),
}
_TEXTS = {
    **TEXTS,
    **{code: f"{text}: {{a}} in A, {{b}} in B" for code, text in SETTINGS.values()},
    "ground-truth-unchecked": (
        "an evaluation of an earlier version has no foreground fractions: the ground truths could not be compared"
    ),
    "unpaired-data-sets": "data sets only in {evaluation}, excluded: {datasets}",
}


@dataclass(frozen=True)
class Change:
    """The scores of one image under A and B."""

    name: str
    a: float
    b: float
    difference: float


@dataclass(frozen=True)
class Paired:
    """The comparison of one metric on one data set; A and B hold the same images."""

    dataset: str
    metric: str
    images: int  # pairs of two numbers
    left_out: int  # pairs with a NaN
    mean_a: float
    mean_b: float
    difference: float  # mean of B − A
    interval: tuple[float, float]  # 95 % bootstrap interval over images, of the mean difference
    p: float | None  # Wilcoxon signed-rank test, two-sided; None: no test
    p_note: str  # details of the test, or why there is none
    wins: int  # images on which B is better
    ties: int
    losses: int
    gained: tuple[Change, ...]  # largest improvements of B, largest first
    lost: tuple[Change, ...]  # largest deteriorations of B, largest first


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the same images."""

    a: str
    b: str
    notices: tuple[Notice, ...]  # what limits the comparison
    results: tuple[Paired, ...]
    resamples: int = RESAMPLES
    seed: int = SEED

    @property
    def warnings(self) -> tuple[str, ...]:
        """The texts of the notices."""
        return tuple(_describe(notice) for notice in self.notices)

    def as_dict(self) -> dict[str, Any]:
        """The content of a JSON file."""
        return {
            "difference": "b - a",
            "level": LEVEL,
            "a": self.a,
            "b": self.b,
            "warnings": self.warnings,
            "notices": [notice.as_dict() for notice in self.notices],
            "results": [dataclasses.asdict(result) for result in self.results],
            "resamples": self.resamples,
            "seed": self.seed,
        }


def compare(a: Evaluation, b: Evaluation, *, metrics: Sequence[str] = ("native_dice",), top: int = 5) -> Comparison:
    """Pair two evaluations by data set and image.

    Args:
        a: the baseline.
        b: the evaluation that is compared with it.
        metrics: columns of per_image.csv.
        top: number of images listed with the largest changes, in each direction.

    Raises:
        UserError: different images or ground truths, no common data set, or an unknown metric.
    """
    known = [name for name in a.metrics if name in b.metrics]
    raise_all([unknown_name("metric", metric, known) for metric in metrics if metric not in known])
    names = [name for name in a.summary["datasets"] if name in b.summary["datasets"]]
    if not names:
        raise UserError(
            f"the evaluations have no data set in common: {a.folder} has {', '.join(a.summary['datasets'])}, "
            f"{b.folder} has {', '.join(b.summary['datasets'])}. A data set is named after its CSV.",
            code="no-common-data-set",
        )
    images_a, images_b = a.images(), b.images()
    errors = [error for name in names for error in _mismatches(name, images_a.loc[name], images_b.loc[name])]
    if errors:
        lines = "\n".join(f"  {error}" for error in errors)
        raise UserError(
            f"{a.folder} and {b.folder} cannot be paired:\n{lines}\nEvaluate both on the same split CSVs.",
            code="unpaired-evaluations",
            errors=errors,
        )
    results = [
        _pair(name, metric, images_a.loc[name][metric], images_b.loc[name][metric], top)
        for name in names
        for metric in metrics
    ]
    return Comparison(str(a.folder), str(b.folder), tuple(unique(_notices(a, b))), tuple(results))


def _mismatches(dataset: str, a: pd.DataFrame, b: pd.DataFrame) -> Iterator[UserError]:
    """Differences between the images of one data set in A and in B."""
    for name, extra in (("A", a.index.difference(b.index)), ("B", b.index.difference(a.index))):
        if len(extra):
            yield UserError(
                f"{dataset}: {len(extra)} of {len(a.index.union(b.index))} images only in {name}: {_some(extra)}",
                code="unpaired-images",
            )
    both = a.index.intersection(b.index)
    for column, fault, code in (
        ("foreground_share", "ground truths of different area", "different-ground-truth"),
        ("empty_truth", "an empty ground truth in one evaluation only", "different-empty-ground-truth"),
    ):
        if column in a and column in b:
            differs = (a.loc[both, column] - b.loc[both, column]).abs() > FRACTION_TOLERANCE
            if differs.any():
                images = f"{int(differs.sum())} of {len(both)} images"
                yield UserError(f"{dataset}: {images} have {fault}: {_some(both[differs])}", code=code)
                return


def _some(names: Any) -> str:
    return ", ".join(map(str, names[:NAMES_SHOWN])) + (", …" if len(names) > NAMES_SHOWN else "")


def _notices(a: Evaluation, b: Evaluation) -> Iterator[Notice]:
    """What limits the comparison."""
    for key, (code, _) in SETTINGS.items():
        first, second = a.summary.get(key), b.summary.get(key)
        # Different origins imply different sources.
        implied = key == "prompt_source" and a.summary.get("prompts") != b.summary.get("prompts")
        if first != second and not implied:
            yield Notice(code, {"a": first, "b": second})
    if "foreground_share" not in a.rows or "foreground_share" not in b.rows:
        yield Notice("ground-truth-unchecked", {})
    for name, own, other in (("A", a, b), ("B", b, a)):
        unpaired = [dataset for dataset in own.summary["datasets"] if dataset not in other.summary["datasets"]]
        if unpaired:
            yield Notice("unpaired-data-sets", {"evaluation": name, "datasets": unpaired})
    for name, evaluation in (("A", a), ("B", b)):
        for notice in evaluation.notices:
            yield Notice(notice.code, {"evaluation": name, **notice.data})


def _describe(notice: Notice) -> str:
    data = {key: _value_text(value) for key, value in notice.data.items()}
    text = describe(Notice(notice.code, data), _TEXTS)
    return f"{data['evaluation']}: {text}" if notice.code in TEXTS else text


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _pair(dataset: str, metric: str, a: pd.Series[float], b: pd.Series[float], top: int) -> Paired:
    b = b.reindex(a.index)
    valid = (a.notna() & b.notna()).to_numpy()
    if not valid.any():
        raise UserError(
            f"{dataset}: no image has a {metric} in both evaluations. Choose another --metric.", code="no-scores"
        )
    names, first, second = a.index[valid], a.to_numpy(float)[valid], b.to_numpy(float)[valid]
    differences = second - first
    # 0.3 − 0.1 − 0.2 is not 0: differences from rounding of the means over draws are ties.
    differences[np.abs(differences) < 1e-12] = 0.0
    p, note = _wilcoxon(differences)
    interval = bootstrap(differences[:, None])[0]
    row = metric_of(metric)
    better = -differences if row is not None and not row.higher_is_better else differences
    order = np.argsort(-better, kind="stable")
    changes = [Change(str(names[i]), float(first[i]), float(second[i]), float(differences[i])) for i in order]
    wins, losses = int((better > 0).sum()), int((better < 0).sum())
    return Paired(
        dataset=dataset,
        metric=metric,
        images=len(differences),
        left_out=int((~valid).sum()),
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
    """The two-sided p value and a note; differences of 0 are excluded from the ranks."""
    nonzero = int((differences != 0).sum())
    if nonzero == 0:
        return None, "all differences are 0: nothing to test"
    p = float(stats.wilcoxon(differences, zero_method="wilcox", alternative="two-sided").pvalue)
    return p, f"two-sided, {nonzero} of {len(differences)} differences not 0"
