"""The metrics equal those of the reference implementation, of pysodmetrics and direct implementations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from promise.evaluation.formulas import surface_dice
from promise.evaluation.metrics import (
    METRICS,
    PROTOCOLS,
    binary_metrics,
    evaluate_pair,
    metrics_in,
    printed_columns,
    soft_metrics,
)
from promise.evaluation.pair import mask_pair

GOLDEN = Path(__file__).parents[1] / "golden"
EXPECTED = json.loads((GOLDEN / "metrics.json").read_text())
REFERENCE_NAMES = {name: name.lower() for name in ("MAE", "IOU", "Precision", "Recall", "Dice", "F_beta")}
REFERENCE_NAMES |= {"Salpha": "s_alpha", "Ephi": "e_phi"}
PYSODMETRICS_NAMES = {"Smeasure": "s_alpha", "MAE": "mae", "wFmeasure": "weighted_f", "adp_fm": "f_adaptive"}
PYSODMETRICS_NAMES |= {f"Emeasure_{cut}": f"e_{cut}" for cut in ("mean", "max")} | {"Emeasure_adp": "e_adaptive"}
PYSODMETRICS_NAMES |= {
    f"{cut}_{theirs}": f"{ours}_{cut}"
    for cut in ("mean", "max")
    for theirs, ours in (("dice", "dice"), ("iou", "iou"), ("fm", "f"))
}
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12)


def load_case(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(GOLDEN / "metrics_cases.npz") as cases:
        return cases[f"{name}__prob"], cases[f"{name}__gt"]


@st.composite
def map_pairs(draw):
    shape = draw(SHAPES)
    return draw(hnp.arrays(np.uint8, shape)) / 255, draw(hnp.arrays(bool, shape))


@pytest.mark.parametrize("case", sorted(EXPECTED))
def test_binary_metrics_equal_the_reference_implementation(case):
    prob, target = load_case(case)
    row = binary_metrics(prob >= 0.5, target)
    got = {name: row[ours] for name, ours in REFERENCE_NAMES.items()}
    assert got == pytest.approx(EXPECTED[case]["reference_at_0.5"], abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("case", sorted(EXPECTED))
def test_soft_metrics_equal_pysodmetrics(case):
    prob, target = load_case(case)
    row = soft_metrics(prob, target)
    got = {name: row[ours] for name, ours in PYSODMETRICS_NAMES.items()}
    assert got == pytest.approx(EXPECTED[case]["pysodmetrics"], abs=1e-12)
    assert set(row) == set(PYSODMETRICS_NAMES.values())


@pytest.mark.parametrize("case", sorted(EXPECTED))
def test_nsd_equals_surface_distance(case):
    prob, target = load_case(case)
    expected = EXPECTED[case]["surface-distance"]["nsd_2px"]
    assert binary_metrics(prob >= 0.5, target)["nsd"] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_the_weighted_f_of_a_mask_equals_that_of_its_map():
    prob, target = load_case("two_blobs")  # holds only 0 and 1
    expected = EXPECTED["two_blobs"]["pysodmetrics"]["wFmeasure"]
    assert binary_metrics(prob >= 0.5, target)["weighted_f"] == pytest.approx(expected, abs=1e-12)


def test_a_map_has_mask_and_map_metrics_and_a_mask_only_mask_metrics():
    prob, target = load_case("soft")
    row = evaluate_pair(prob, target)
    soft = {f"soft_{name}": value for name, value in soft_metrics(prob, target).items()}
    assert row == binary_metrics(prob >= 0.5, target) | soft
    assert evaluate_pair(prob >= 0.5, target) == binary_metrics(prob >= 0.5, target)


def test_the_threshold_itself_is_foreground():
    assert evaluate_pair(np.array([[0.5, 0.4999]]), np.array([[True, False]]))["dice"] == 1


def test_the_table_has_every_key():
    prob, target = load_case("soft")
    row = evaluate_pair(prob, target)
    assert set(row) == {name for name, metric in METRICS.items() if metric.kind != "prompts"}
    assert len({metric.title for metric in METRICS.values()}) == len(METRICS)
    assert [name for name, metric in METRICS.items() if not metric.higher_is_better] == ["mae", "soft_mae"]
    found = METRICS["soft_f_max"]
    assert (found.title, found.formula, found.source, found.low, found.high, found.higher_is_better) == (
        "Soft F-beta max",
        "1.3·P·R / (0.3·P + R); 0/0 is 0; of the min–max normalised 8-bit map, largest over 256 thresholds",
        "Achanta et al., CVPR 2009",
        0,
        1,
        True,
    )


def test_one_pair_by_hand():
    pred = np.array([[1, 1, 0], [0, 1, 0]], bool)
    target = np.array([[1, 0, 0], [0, 1, 1]], bool)  # TP 2, FP 1, FN 1
    row = binary_metrics(pred, target)
    names = ("dice", "iou", "mae", "precision", "recall", "f_beta")
    assert [row[name] for name in names] == pytest.approx([2 / 3, 1 / 2, 1 / 3, 2 / 3, 2 / 3, 2 / 3])


def test_integer_targets_count_as_masks():
    prob, target = load_case("soft")
    assert evaluate_pair(prob, target.astype(np.int64)) == evaluate_pair(prob, target)


def test_both_empty():
    empty = np.zeros((4, 5), bool)
    row = binary_metrics(empty, empty)
    assert np.isnan([row.pop("dice"), row.pop("nsd")]).all()
    zeros = ("iou", "mae", "precision", "recall", "f_beta", "weighted_f")
    assert row == dict.fromkeys(zeros, 0.0) | {"s_alpha": 1.0, "e_phi": pytest.approx(20 / 19)}


@pytest.mark.parametrize(
    "target", [np.eye(1, dtype=bool), np.zeros((1, 1), bool), np.tri(5, 4, -4, bool), np.tri(1, 7, 0, bool)]
)
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_single_pixels_and_border_targets_give_finite_numbers(target, level):
    assert np.isfinite(list(soft_metrics(np.full(target.shape, level), target).values())).all()


def test_a_flat_quadrant_is_decided_without_rounding_noise():
    target, prob = np.zeros((4, 6), bool), np.full((4, 6), 77 / 255)
    target[1, 1], prob[1, 1], prob[3, 5] = True, 1, 0
    assert soft_metrics(prob, target)["s_alpha"] == pytest.approx(slow_s_alpha(prob, target, 1), abs=1e-12)


@given(map_pairs())
def test_dice_iou_mae_and_nsd_are_symmetric(pair):
    pred, target = pair[0] >= 0.5, pair[1]
    forth, back = binary_metrics(pred, target), binary_metrics(target, pred)
    for name in ("dice", "iou", "mae", "nsd"):
        assert forth[name] == pytest.approx(back[name], nan_ok=True)
    assert (forth["precision"], forth["recall"]) == (back["recall"], back["precision"])


@given(map_pairs())
def test_values_stay_in_their_range(pair):
    pred, target = pair
    for name, value in evaluate_pair(pred, target).items():
        metric = METRICS[name]
        high = target.size / (target.size - 1) if "E-phi" in metric.title else metric.high
        undefined = name in ("dice", "nsd") and not target.any() and not (pred >= 0.5).any()
        assert np.isnan(value) if undefined else metric.low <= value <= high + 1e-9, name


@given(map_pairs())
def test_flips_change_only_what_counts_positions(pair):
    pred, target = pair
    # S-alpha gives the centroid's line to one side; weighted F breaks ties between nearest pixels by order.
    positional = {"s_alpha", "weighted_f", "soft_s_alpha", "soft_weighted_f"}
    straight = {k: v for k, v in evaluate_pair(pred, target).items() if k not in positional}
    for flip in (np.flipud, np.fliplr, np.transpose):
        turned = {k: v for k, v in evaluate_pair(flip(pred), flip(target)).items() if k not in positional}
        assert turned == pytest.approx(straight, nan_ok=True)


@given(hnp.arrays(bool, SHAPES).filter(lambda target: target.any()))
def test_a_perfect_prediction_scores_one(target):
    row = evaluate_pair(target.astype(np.float32), target)
    beyond = target.size / (target.size - 1)
    for name in ("dice", "iou", "precision", "recall", "f_beta", "s_alpha", "weighted_f"):
        assert row[name] == pytest.approx(1), name
    for name in ("dice_max", "iou_max", "f_max", "f_adaptive", "s_alpha", "weighted_f"):
        assert row[f"soft_{name}"] == pytest.approx(1), name
    for name in ("e_phi", "soft_e_max", "soft_e_adaptive"):
        assert row[name] == pytest.approx(beyond), name
    assert (row["mae"], row["soft_mae"], row["nsd"]) == (0, 0, 1)


def quantise(prob: np.ndarray) -> np.ndarray:
    scaled = np.rint(prob * 255) / 255
    span = scaled.max() - scaled.min()
    return (scaled - scaled.min()) / span if span else scaled


def slow_e_phi(mask: np.ndarray, target: np.ndarray) -> float:
    if not target.any() or target.all():
        matrix = (mask == target).astype(float)
    else:
        p, t = mask - mask.mean(), target - target.mean()
        matrix = (1 + 2 * p * t / (p * p + t * t + np.spacing(1))) ** 2 / 4
    return matrix.sum() / (target.size - 1)


def slow_overlap(mask: np.ndarray, target: np.ndarray) -> tuple[float, float, float]:
    tp, both = (mask & target).sum(), mask.sum() + target.sum()
    if tp == 0:
        return 0.0, 0.0, 0.0
    precision, recall = tp / mask.sum(), tp / target.sum()
    return 2 * tp / both, tp / (both - tp), 1.3 * precision * recall / (0.3 * precision + recall)


def object_score(x: np.ndarray, ddof: int) -> float:
    spread = x.std(ddof=ddof) if x.size > 1 else 0
    return 2 * x.mean() / (x.mean() ** 2 + 1 + spread)


def region_score(x: np.ndarray, y: np.ndarray) -> float:
    flat = [bool((part == part[0, 0]).all()) for part in (x, y)]
    if any(flat):
        return float(all(flat))
    covariance = np.cov(x.ravel(), y.ravel())
    numerator = 4 * x.mean() * y.mean() * covariance[0, 1]
    return numerator / ((x.mean() ** 2 + y.mean() ** 2) * np.trace(covariance) + np.spacing(1))


def slow_s_alpha(prob: np.ndarray, target: np.ndarray, ddof: int) -> float:
    if not target.any() or target.all():
        return 1 - np.abs(prob - target).mean()
    fraction = target.mean()
    objects = fraction * object_score(prob[target], ddof) + (1 - fraction) * object_score(1 - prob[~target], ddof)
    row, column = (int(np.round(middle)) + 1 for middle in np.argwhere(target).mean(axis=0))
    quadrants = [(a, b) for a in (slice(row), slice(row, None)) for b in (slice(column), slice(column, None))]
    regions = [prob[q].size * region_score(prob[q], target[q]) for q in quadrants if prob[q].size]
    return max(0.0, (objects + sum(regions) / prob.size) / 2)


@settings(deadline=None, max_examples=40)
@given(map_pairs())
def test_curves_equal_a_loop_over_thresholds(pair):
    prob, target = pair
    levels = np.floor(quantise(prob) * 255)
    e_phi = np.array([slow_e_phi(levels >= cut, target) for cut in range(256)])
    overlap = np.array([slow_overlap(levels >= cut, target) for cut in range(256)])
    row = soft_metrics(prob, target)
    for name, curve in zip(("e", "dice", "iou", "f"), (e_phi, *overlap.T), strict=True):
        assert row[f"{name}_mean"] == pytest.approx(curve.mean(), abs=1e-9), name
        assert row[f"{name}_max"] == pytest.approx(curve.max(), abs=1e-9), name


@settings(deadline=None)
@given(map_pairs())
def test_the_adaptive_cut_is_twice_the_mean(pair):
    prob, target = pair
    levels = np.rint(prob * 255).astype(int)
    low, span = (levels.min(), np.ptp(levels)) if np.ptp(levels) else (0, 255)
    cut = min(2 * (levels - low).sum(), span * levels.size)
    mask = (levels - low) * levels.size >= cut
    row = soft_metrics(prob, target)
    assert row["e_adaptive"] == pytest.approx(slow_e_phi(mask, target), abs=1e-9)
    assert row["f_adaptive"] == pytest.approx(slow_overlap(mask, target)[2], abs=1e-9)
    assert row["mae"] == pytest.approx(np.abs(quantise(prob) - target).mean(), abs=1e-12)


@settings(deadline=None)
@given(map_pairs())
def test_s_alpha_equals_its_definition(pair):
    prob, target = pair
    slow = slow_s_alpha(quantise(prob), target, 1)
    assert soft_metrics(prob, target)["s_alpha"] == pytest.approx(slow, abs=1e-9)
    slow = slow_s_alpha((prob >= 0.5).astype(float), target, 0)
    assert binary_metrics(prob >= 0.5, target)["s_alpha"] == pytest.approx(slow, abs=1e-9)


def test_weighted_f_equals_its_definition():
    rng = np.random.default_rng(5)
    for _ in range(30):
        # One target pixel: no ties between nearest pixels.
        prob = rng.random(rng.integers(2, 14, 2))
        rows, columns = np.indices(prob.shape)
        y, x = rng.integers(prob.shape)
        target = (rows == y) & (columns == x)
        error = np.abs(quantise(prob) - target)
        window = np.exp(-((np.mgrid[-3:4, -3:4] ** 2).sum(axis=0)) / 50)
        near = (abs(rows - y) <= 3) & (abs(columns - x) <= 3)
        # Every pixel of the window takes the error of the target pixel; outside the image the error is 0.
        weights = window[rows[near] - y + 3, columns[near] - x + 3]
        hits = 1 - error[y, x] * weights.sum() / window.sum()
        false_alarms = (error * (2 - 0.5 ** (np.hypot(rows - y, columns - x) / 5)))[~target].sum()
        precision, recall = hits / (hits + false_alarms), hits
        expected = 2 * precision * recall / (precision + recall)
        assert soft_metrics(prob, target)["weighted_f"] == pytest.approx(expected, abs=1e-9)


def contour(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, 2) and lengths (N,) of the contour of a whole image, square by square."""
    padded, places, lengths = np.pad(mask, 1), [], []
    for y, x in np.ndindex(mask.shape[0] + 1, mask.shape[1] + 1):
        square = padded[y : y + 2, x : x + 2]
        if square.sum() in (1, 3):
            length = np.sqrt(0.5)
        elif square.sum() == 2:
            length = np.sqrt(2) if square[0, 0] == square[1, 1] else 1.0
        else:
            continue
        places.append((y, x))
        lengths.append(length)
    return np.array(places).reshape(-1, 2), np.array(lengths)


@pytest.mark.parametrize("tolerance", [1, 2, 3])
def test_nsd_equals_its_definition_over_the_whole_image(tolerance):
    rng = np.random.default_rng(tolerance)
    partial = 0
    for _ in range(100):
        pred, target = np.zeros((2, *rng.integers(6, 22, 2)), bool)
        for mask in (pred, target):  # in a part of the image, so that the computation is cropped
            (top, bottom), (left, right) = (np.sort(rng.integers(0, side + 1, 2)) for side in mask.shape)
            mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < rng.choice([0.1, 0.6, 1.0])
        (a, a_lengths), (b, b_lengths) = contour(pred), contour(target)
        distances = np.hypot(*np.moveaxis(a[:, None] - b[None], -1, 0))  # (N, M), between all elements
        near = distances <= tolerance
        total = a_lengths.sum() + b_lengths.sum()
        expected = (a_lengths @ near.any(axis=1) + b_lengths @ near.any(axis=0)) / total if total else np.nan
        found = surface_dice(mask_pair(pred, target, None), tolerance=tolerance)
        assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)
        partial += 0 < expected < 1
    assert partial > 20  # the other pairs do not depend on the tolerance


def test_nsd_of_a_shifted_square_by_hand():
    target = np.zeros((30, 40), bool)
    target[10:20, 10:20] = True  # 36 straight elements and 4 corners of length √½
    shifted = {by: binary_metrics(np.roll(target, by, axis=1), target)["nsd"] for by in (1, 2, 3)}
    # By 3 pixels: of either contour, the sides above and below without their outer ends, and 2 pixels at both ends of
    # the side inside the other square.
    third = (2 * (9 + np.sqrt(0.5)) + 4) / (36 + 4 * np.sqrt(0.5))
    assert shifted == {1: 1, 2: 1, 3: pytest.approx(third)}


MASK = np.zeros((2, 3), bool)


@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        (MASK.tolist(), MASK, r"pred must be a NumPy array \(height, width\) with at least one pixel, not list"),
        (MASK[None], MASK, r"pred must be .* not \(1, 2, 3\)"),
        (MASK, MASK[:0], r"target must be .* not \(0, 3\)"),
        (MASK, MASK.T, r"pred \(2, 3\) and target \(3, 2\) must have the same shape"),
        (MASK, MASK.astype(float), "target must be bool, or integers 0 and 1, not float64 from 0.0 to 0.0"),
        (MASK, MASK.astype(np.uint8) + 2, "target must be .* not uint8 from 2 to 2; threshold it first"),
        (MASK.astype(np.uint8), MASK, "pred must be bool or a float map in \\[0, 1\\], not uint8"),
        (MASK + 1.5, MASK, "pred ranges from 1.5 to 1.5, outside \\[0, 1\\]; logits need a sigmoid first"),
        (MASK + np.nan, MASK, "pred ranges from nan to nan"),
    ],
)
def test_invalid_arrays_are_refused(pred, target, message):
    for function in (evaluate_pair, soft_metrics, binary_metrics):
        with pytest.raises(ValueError, match=message):
            function(pred, target)


def test_binary_metrics_refuse_a_map():
    with pytest.raises(ValueError, match="pred must be bool, not float32; give pred"):
        binary_metrics(MASK.astype(np.float32), MASK)


def test_columns_keep_their_order():
    """The order of the columns of per_image.csv is part of the file format."""
    header = (Path(__file__).parents[1] / "formats/eval/per_image.csv").read_text().splitlines()[0].split(",")
    written = [f"{protocol}_{name}" for protocol in PROTOCOLS for name in metrics_in(protocol)]
    # Added after this file was written.
    added = ["native_nsd", "prompts_positives_inside", "prompts_negatives_outside", "prompts_box_iou"]
    assert set(added) <= set(written)
    assert header[header.index("reference_precision") :] == [name for name in written if name not in added]
    titles = "Dice IoU NSD MAE Prec Recall S-alpha E-phi F-beta wF"
    assert list(printed_columns("mask").values()) == titles.split()
    titles = "mDice maxDice mIoU maxIoU MAE S-alpha mE maxE mF maxF wF"
    assert list(printed_columns("map").values()) == titles.split()
    assert list(printed_columns("prompts").values()) == ["Pos in", "Neg out", "Box IoU"]
