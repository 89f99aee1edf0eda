"""Metrics of a predicted mask or map, or of prompts, against a target mask, one row of :data:`METRICS` each.

Masks are scored as in the reference implementation of ProMISe (``dice``, ``s_alpha``, …) and by their contours
(``nsd``), maps at 8 bits as in pysodmetrics 1.6.2, the practice of the field (``soft_dice_mean``, …), prompts by their
positions (``prompts_positives_inside``, …).

A new metric is one function of a :class:`~promise.evaluation.pair.Pair`, or of a
:class:`~promise.evaluation.placement.Placement` for prompts, and one row, added here or by :func:`register`. The
columns of per_image.csv, the keys of summary.json and the printed tables follow the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from promise.evaluation import formulas, placement
from promise.evaluation.formulas import Formula, adaptive, max_of, mean_of, of_mask
from promise.evaluation.pair import Array, Bools, Surroundings, map_pair, mask_pair
from promise.evaluation.placement import Placement

Kind: TypeAlias = Literal["mask", "map", "prompts"]

#: Protocol → the kind of prediction that it scores.
PROTOCOLS: dict[str, Kind] = {"reference": "mask", "native": "mask", "soft": "map", "prompts": "prompts"}

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Metric:
    """One metric: its meaning, its formula and its place in results."""

    title: str
    formula: str  # as text
    source: str
    low: float = 0.0
    high: float = 1.0  # E-phi divides by N − 1 and may exceed it by 1 / (N − 1)
    higher_is_better: bool = True
    _: KW_ONLY
    name: str  # after the protocol in columns of per_image.csv, and in keys of summary.json
    compute: Formula | Callable[[Placement], float]  # the latter for prompts
    kind: Kind = "mask"  # kind of prediction that is scored
    overlap: bool = False  # 0/0 or 0 by construction where the ground truth is empty, so that --empty-masks applies
    native_only: bool = False  # refers to pixels of the image, which the reference protocol resizes
    column: str = ""  # title in printed tables; empty: not printed
    position: int = 100  # among the printed columns; ties keep the order of METRICS

    @property
    def key(self) -> str:
        """The name in :data:`METRICS` and, for a mask or a map, in the results of :func:`evaluate_pair`."""
        return f"{_PREFIXES[self.kind]}{self.name}"


_PREFIXES: dict[Kind, str] = {"mask": "", "map": "soft_", "prompts": "prompts_"}  # of the keys


_RIJSBERGEN = "van Rijsbergen 1979"
_PRECISION = Metric(
    "Precision",
    "P = TP / (TP + FP); 0/0 is 0",
    _RIJSBERGEN,
    name="precision",
    compute=of_mask(formulas.precision),
    overlap=True,
    column="Prec",
    position=4,
)
_RECALL = Metric(
    "Recall",
    "R = TP / (TP + FN); 0/0 is 0",
    _RIJSBERGEN,
    name="recall",
    compute=of_mask(formulas.recall),
    overlap=True,
    column="Recall",
    position=5,
)
_DICE = Metric(
    "Dice",
    "2·TP / (2·TP + FP + FN); 0/0 is NaN (0 over thresholds)",
    "Dice 1945",
    name="dice",
    compute=formulas.mask_dice,
    overlap=True,
    column="Dice",
    position=1,
)
_IOU = Metric(
    "IoU",
    "TP / (TP + FP + FN); 0/0 is 0",
    "Jaccard 1901",
    name="iou",
    compute=of_mask(formulas.iou),
    overlap=True,
    column="IoU",
    position=2,
)
_F_BETA = Metric(
    "F-beta",
    "1.3·P·R / (0.3·P + R); 0/0 is 0",
    "Achanta et al., CVPR 2009",
    name="f_beta",
    compute=of_mask(formulas.f_beta),
    overlap=True,
    column="F-beta",
    position=8,
)
_E_PHI = Metric(
    "E-phi",
    "(1 + alignment of mean-free masks)² / 4, averaged",
    "Fan et al., IJCAI 2018",
    name="e_phi",
    compute=of_mask(formulas.e_phi),
    column="E-phi",
    position=7,
)
_MAE = Metric(
    "MAE",
    "mean |pred − target|",
    "Perazzi et al., CVPR 2012",
    higher_is_better=False,
    name="mae",
    compute=formulas.mask_mae,
    column="MAE",
    position=3,
)
_S_ALPHA = Metric(
    "S-alpha",
    "(object + region similarity) / 2",
    "Fan et al., ICCV 2017",
    name="s_alpha",
    # Reference parity: the reference implementation divides an object's variance by n, Fan's MATLAB code by n − 1.
    compute=partial(formulas.s_alpha, ddof=0),
    column="S-alpha",
    position=6,
)
_WEIGHTED_F = Metric(
    "Weighted F",
    "F1, errors weighted by distance",
    "Margolin et al., CVPR 2014",
    name="weighted_f",
    compute=formulas.weighted_f,
    overlap=True,
    column="wF",
    position=9,
)
NSD_TOLERANCE = 2  # pixels of the image
_NSD = Metric(
    "NSD",
    f"length of both contours within {NSD_TOLERANCE} pixels of the other / length of both contours; 0/0 is NaN",
    "Nikolov et al., arXiv:1809.04430",
    name="nsd",
    compute=partial(formulas.surface_dice, tolerance=NSD_TOLERANCE),
    overlap=True,
    native_only=True,
    column="NSD",
    position=2,
)

_CUTS = {
    "": "",
    "mean": ", mean over 256 thresholds",
    "max": ", largest over 256 thresholds",
    "adaptive": ", cut at 2·mean, at most 1",
}


def _of_map(name: str, cut: str, mask: Metric, compute: Formula, column: str = "", position: int = 100) -> Metric:
    """The row of a map that belongs to the row of a mask."""
    return Metric(
        f"Soft {mask.title} {cut}".rstrip(),
        f"{mask.formula}; of the min–max normalised 8-bit map{_CUTS[cut]}",
        mask.source,
        mask.low,
        mask.high,
        mask.higher_is_better,
        name=name,
        compute=compute,
        kind="map",
        overlap=mask.overlap,
        column=column,
        position=position,
    )


_PROMPTS = (
    Metric(
        "Positive points inside",
        "positive points in the ground truth / positive points",
        "this package",
        name="positives_inside",
        compute=placement.positives_inside,
        kind="prompts",
        column="Pos in",
    ),
    Metric(
        "Negative points outside",
        "negative points not in the ground truth / negative points",
        "this package",
        name="negatives_outside",
        compute=placement.negatives_outside,
        kind="prompts",
        column="Neg out",
    ),
    Metric(
        "Box IoU",
        "IoU of the box around all boxes with the box around the ground truth",
        "Jaccard 1901",
        name="box_iou",
        compute=placement.box_iou,
        kind="prompts",
        column="Box IoU",
    ),
)

#: Every metric by its key, in the order of the columns of per_image.csv.
METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        *(_PRECISION, _RECALL, _DICE, _IOU, _F_BETA, _E_PHI, _MAE, _S_ALPHA, _WEIGHTED_F, _NSD),
        _of_map("mae", "", _MAE, formulas.map_mae, "MAE", 5),
        _of_map("s_alpha", "", _S_ALPHA, partial(formulas.s_alpha, ddof=1), "S-alpha", 6),
        _of_map("weighted_f", "", _WEIGHTED_F, formulas.weighted_f, "wF", 11),
        _of_map("e_mean", "mean", _E_PHI, mean_of(formulas.e_phi), "mE", 7),
        _of_map("e_max", "max", _E_PHI, max_of(formulas.e_phi), "maxE", 8),
        _of_map("e_adaptive", "adaptive", _E_PHI, adaptive(formulas.e_phi)),
        _of_map("f_mean", "mean", _F_BETA, mean_of(formulas.f_beta), "mF", 9),
        _of_map("f_max", "max", _F_BETA, max_of(formulas.f_beta), "maxF", 10),
        _of_map("f_adaptive", "adaptive", _F_BETA, adaptive(formulas.f_beta)),
        _of_map("dice_mean", "mean", _DICE, mean_of(formulas.dice), "mDice", 1),
        _of_map("dice_max", "max", _DICE, max_of(formulas.dice), "maxDice", 2),
        _of_map("iou_mean", "mean", _IOU, mean_of(formulas.iou), "mIoU", 3),
        _of_map("iou_max", "max", _IOU, max_of(formulas.iou), "maxIoU", 4),
        *_PROMPTS,
    )
}


def register(metric: Metric) -> None:
    """Add a metric to :data:`METRICS`, for all evaluations of this process.

    Raises:
        ValueError: a metric of this name and kind exists.
    """
    if metric.key in METRICS:
        raise ValueError(f"a metric {metric.key!r} exists already.")
    METRICS[metric.key] = metric


def metrics_of(kind: Kind) -> dict[str, Metric]:
    """The rows that score masks, maps or prompts, by name, in the order of the table."""
    return {metric.name: metric for metric in METRICS.values() if metric.kind == kind}


def metrics_in(protocol: str) -> dict[str, Metric]:
    """The rows that a protocol scores, by name, in the order of the table."""
    rows = metrics_of(PROTOCOLS[protocol])
    return {name: metric for name, metric in rows.items() if protocol == "native" or not metric.native_only}


def protocols_of(kind: Kind) -> tuple[str, ...]:
    """The protocols that score masks, maps or prompts."""
    return tuple(name for name, scored in PROTOCOLS.items() if scored == kind)


def printed_columns(kind: Kind) -> dict[str, str]:
    """Name → title of the metrics in printed tables, in the order of their columns."""
    rows = sorted(metrics_of(kind).values(), key=lambda metric: metric.position)
    return {metric.name: metric.column for metric in rows if metric.column}


def binary_metrics(pred: Array, target: Array, *, protocol: str = "native") -> dict[str, float]:
    """The metrics of a (H, W) bool mask by name, as in the reference implementation, and its NSD.

    Args:
        pred: (H, W) bool.
        target: (H, W) bool, or integers 0 and 1.
        protocol: the protocol whose metrics are computed; see :func:`metrics_in`.

    Raises:
        ValueError: as :func:`evaluate_pair`, and for a map.
    """
    pred, target = _checked(pred, target)
    if pred.dtype != np.bool_:
        raise ValueError(f"pred must be bool, not {pred.dtype}; give pred >= 0.5, or use evaluate_pair.")
    return _compute(metrics_in(protocol), mask_pair(pred, target, Surroundings.of(target)))


def soft_metrics(pred: Array, target: Array) -> dict[str, float]:
    """The metrics of a (H, W) map by name, without ``soft_``, as pysodmetrics 1.6.2 scores round(255·map).

    A map is min–max normalised unless it is constant: the metrics depend on the order of the pixels, not on their
    calibration.

    Raises:
        ValueError: as :func:`evaluate_pair`.
    """
    pred, target = _checked(pred, target)
    return _compute(metrics_of("map"), map_pair(pred, target, Surroundings.of(target)))


def prompt_metrics(xy: Array, label: Array, boxes: Array, target: Array) -> dict[str, float]:
    """The metrics of the prompts of an image by name; NaN where the image has no such prompts or no foreground.

    Args:
        xy: (P, 2) points in pixels of the target, x before y; (0, 0) is the centre of the first pixel.
        label: (P,) 1 for positive, 0 for negative points; others are ignored.
        boxes: (L, 4) x0, y0, x1, y1, the centres of the first and the last pixel; several are scored as the box around
            all of them.
        target: (H, W) bool.
    """
    return _compute(metrics_of("prompts"), Placement(xy, label, boxes, target))


def evaluate_pair(pred: Array, target: Array) -> dict[str, float]:
    """The metrics of a mask; of a map the metrics of ``map >= 0.5`` and the ``soft_`` metrics of the map.

    Args:
        pred: (H, W) bool, or float in [0, 1].
        target: (H, W) bool, or integers 0 and 1.

    Raises:
        ValueError: for another type, range or number of dimensions, no pixels, or different shapes.
    """
    pred, target = _checked(pred, target)
    surroundings = Surroundings.of(target)
    if pred.dtype == np.bool_:
        return _compute(metrics_of("mask"), mask_pair(pred, target, surroundings))
    soft = _compute(metrics_of("map"), map_pair(pred, target, surroundings))
    hard = _compute(metrics_of("mask"), mask_pair(pred >= 0.5, target, surroundings))
    return hard | {f"soft_{name}": value for name, value in soft.items()}


def _compute(metrics: Mapping[str, Metric], scored: Any) -> dict[str, float]:
    """The values of metrics by name; ``scored`` is a pair, or a placement for prompts."""
    return {name: metric.compute(scored) for name, metric in metrics.items()}


def _checked(pred: Array, target: Array) -> tuple[Array, Bools]:
    for name, array in (("pred", pred), ("target", target)):
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.size == 0:
            found = getattr(array, "shape", type(array).__name__)
            raise ValueError(f"{name} must be a NumPy array (height, width) with at least one pixel, not {found}.")
    if pred.shape != target.shape:
        raise ValueError(f"pred {pred.shape} and target {target.shape} must have the same shape.")
    if target.dtype.kind not in "bui" or target.min() < 0 or target.max() > 1:
        found = f"{target.dtype} from {target.min()} to {target.max()}"
        raise ValueError(f"target must be bool, or integers 0 and 1, not {found}; threshold it first.")
    if pred.dtype.kind not in "bf":
        raise ValueError(f"pred must be bool or a float map in [0, 1], not {pred.dtype}.")
    if not (pred.min() >= 0 and pred.max() <= 1):  # written so that NaN fails too
        raise ValueError(
            f"pred ranges from {pred.min():g} to {pred.max():g}, outside [0, 1]; logits need a sigmoid first."
        )
    return pred, target.astype(np.bool_)
