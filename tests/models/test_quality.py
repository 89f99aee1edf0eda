"""The learned estimate of the IoU: its features and its fit by hand, and the predictions that carry it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promise.models import checkpoint
from promise.models.promise import Promise
from promise.models.quality import (
    FEATURES,
    LEAST_ROWS,
    RIDGE,
    QualityEstimate,
    describe_quality,
    fit_quality,
    quality_features,
)
from promise.types import Prediction, Prompts

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")


def logit(values: list[float]) -> torch.Tensor:
    """Logits (1, 1, 2, 2) of four probabilities."""
    return torch.tensor(values, dtype=torch.float64).logit().float().reshape(1, 1, 2, 2)


def test_features_by_hand() -> None:
    prediction = Prediction(
        logit([0.9, 0.6, 0.2, 0.1]),
        torch.tensor([[0.75]]),
        Prompts(boxes=torch.zeros(1, 4), image=torch.tensor([0])),
        lesion_logits=logit([0.8, 0.7, 0.4, 0.1]),
        sam_logits=logit([0.9, 0.5, 0.1, 0.1]),
    )
    expected = {
        "sam_estimate": 0.75,
        "agreement": (0.8 + 0.5 + 0.1 + 0.1) / (0.9 + 0.7 + 0.4 + 0.1),
        "crisp_mask": (0.9 + 0.6) / (1 + 1 + 0.2 + 0.1),
        "crisp_map": (0.8 + 0.7) / (1 + 1 + 0.4 + 0.1),
        "crisp_sam": (0.9 + 0.5) / (1 + 1 + 0.1 + 0.1),
        "probability_inside": 0.75,
        "log_area": math.log(0.5),
    }
    found = dict(zip(FEATURES, quality_features(prediction)[0].tolist(), strict=True))
    assert found == pytest.approx(expected, abs=1e-6)


def rows(count: int, noise: float = 0.05) -> tuple[Any, Any]:
    generator = np.random.default_rng(4)
    features = generator.normal(size=(count, len(FEATURES)))
    features[:, 3] = 0.5  # constant
    return features, np.clip(
        0.7 + 0.05 * features[:, 0] - 0.1 * features[:, 1] + noise * generator.normal(size=count), 0, 1
    )


def test_the_fit_and_its_errors_are_those_of_a_ridge_regression_that_leaves_out_each_row() -> None:
    features, iou = rows(40)
    found = fit_quality(features, iou)
    assert found is not None
    z = (features - features.mean(0)) / np.where(features.std(0) > 0, features.std(0), 1)

    def solve(kept: np.ndarray) -> np.ndarray:
        """Weights and intercept; the intercept has no penalty."""
        a = np.c_[z[kept], np.ones(kept.sum())]
        return np.linalg.solve(a.T @ a + RIDGE * np.diag([*np.ones(z.shape[1]), 0]), a.T @ iou[kept])

    everything = np.ones(40, bool)
    fitted = np.c_[z, np.ones(40)] @ solve(everything)
    weights = np.array([found.weights[name] for name in FEATURES])
    np.testing.assert_allclose(features @ weights + found.intercept, fitted, atol=1e-10)
    assert found.weights[FEATURES[3]] == 0
    left_out = np.clip([np.append(z[i], 1) @ solve(np.arange(40) != i) for i in range(40)], 0, 1)
    assert found.error == pytest.approx(np.abs(left_out - iou).mean(), abs=1e-10)
    assert found.correlation == pytest.approx(np.corrcoef(left_out, iou)[0, 1], abs=1e-10)
    assert found.correlation > 0.8
    assert found.rows == 40


def test_too_few_rows_are_not_fitted() -> None:
    features, iou = rows(LEAST_ROWS)
    assert fit_quality(features, iou) is not None
    assert fit_quality(features[1:], iou[1:]) is None


@pytest.mark.parametrize(
    ("words", "values"),
    [("likely good", (0.85, 1.0)), ("usable", (0.7, 0.849)), ("check this", (0.0, 0.699))],
)
def test_an_estimate_in_words(words: str, values: tuple[float, ...]) -> None:
    assert {describe_quality(value) for value in values} == {words}


# --- the net -------------------------------------------------------------------------------------

ESTIMATE = QualityEstimate({**dict.fromkeys(FEATURES, 0.0), "log_area": -0.1}, 0.25, 30, 0.5, 0.125)


def load(path: Path) -> tuple[Promise, Any]:
    net = checkpoint.load(path)[0]
    image = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(7)) * torch.arange(8)[:, None, None, None]
    with torch.inference_mode():
        return net, net.encode(image)


@torch.inference_mode()
def test_only_automatic_masks_with_a_lesion_have_an_estimate(
    save_lesion_net: Callable[..., Path], tmp_path: Path
) -> None:
    net, encoded = load(save_lesion_net(tmp_path / "a.safetensors", quality=ESTIMATE))
    found = net.decode(encoded)
    counts = torch.bincount(found.prompts.image, minlength=8)
    assert 0 < (counts == 0).sum() < 8
    assert found.quality is not None
    assert torch.equal(found.quality.isnan(), counts == 0)
    area = (found.mask_logits >= 0).float().mean((1, 2, 3))
    expected = (0.25 - 0.1 * area.clamp(min=1e-4).log()).clamp(0, 1)
    torch.testing.assert_close(found.quality[counts > 0], expected[counts > 0])
    assert torch.equal(found.take([3, 1]).quality.nan_to_num(), found.quality[[3, 1]].nan_to_num())
    assert net.decode(encoded, found.prompts, fuse=True).quality is None
    assert net.decode(encoded, mask_index=1).quality is None
    assert net.decode(encoded, fuse=False).quality is None
    net.quality = None
    assert net.decode(encoded).quality is None


def test_the_estimate_is_stored_in_the_checkpoint(save_lesion_net: Callable[..., Path], tmp_path: Path) -> None:
    path = save_lesion_net(tmp_path / "a.safetensors", quality=ESTIMATE)
    net, metadata = checkpoint.load(path)
    assert net.quality == ESTIMATE
    assert metadata.quality == dataclasses.asdict(ESTIMATE)
    without, metadata = checkpoint.load(save_lesion_net(tmp_path / "b.safetensors"))
    assert without.quality is metadata.quality is None


@pytest.mark.parametrize("change", [{"weights": {"other": 1.0}}, {"degree": 2}])
def test_an_estimate_of_a_later_version_is_refused(
    change: dict[str, Any], save_lesion_net: Callable[..., Path], tmp_path: Path, user_error: Any
) -> None:
    path = save_lesion_net(tmp_path / "a.safetensors", quality=ESTIMATE)
    metadata = checkpoint.read_metadata(path)
    checkpoint.rewrite_metadata(path, dataclasses.replace(metadata, quality={**metadata.quality, **change}))
    with user_error("unknown-quality-estimate"):
        checkpoint.load(path)
