"""Losses equal the formulas of their docstrings; `reference` equals the reference implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from promise.runtime.errors import UserError
from promise.training.losses import LOSSES, bce, bce_dice, dice, get_loss, reference, resize_target

LOGITS = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
TARGET = (torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.6).float()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def slow_bce(probability: np.ndarray, target: np.ndarray) -> float:
    return float(-(target * np.log(probability) + (1 - target) * np.log(1 - probability)).mean())


def test_bce_and_dice_are_their_formulas() -> None:
    p, t = sigmoid(LOGITS.double().numpy()), TARGET.double().numpy()
    each = [(2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, t, strict=True)]
    assert bce(LOGITS, TARGET).item() == pytest.approx(slow_bce(p, t), abs=1e-6)
    assert dice(LOGITS, TARGET).item() == pytest.approx(1 - np.mean(each), abs=1e-6)
    assert bce_dice(LOGITS, TARGET).item() == pytest.approx(slow_bce(p, t) + 1 - np.mean(each), abs=1e-6)


def test_the_reference_loss_has_a_second_sigmoid_and_an_odd_dice() -> None:
    p, t = sigmoid(sigmoid(LOGITS.double().numpy())), TARGET.double().numpy()
    each = [2 * ((a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, t, strict=True)]
    assert reference(LOGITS, TARGET).item() == pytest.approx(slow_bce(p, t) + 1 - np.mean(each), abs=1e-6)


def test_the_reference_dice_is_clamped() -> None:
    empty = torch.zeros(1, 1, 1, 1)
    low = torch.full((1, 1, 1, 1), -30.0)  # 2·(0 + 1) / (0.5 + 0 + 1) = 4/3, clamped to 1
    assert reference(low, empty).item() == pytest.approx(np.log(2), abs=1e-6)


def test_perfect_and_empty_predictions() -> None:
    sure = (TARGET * 2 - 1) * 50
    assert bce_dice(sure, TARGET).item() == pytest.approx(0, abs=1e-6)
    nothing = torch.zeros(1, 1, 4, 4)
    assert dice(nothing - 50, nothing).item() == pytest.approx(0, abs=1e-6)
    assert dice(nothing + 50, nothing).item() == pytest.approx(16 / 17, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_stay_finite_and_push_the_right_way(name: str) -> None:
    logits = torch.tensor([-200.0, 0.0, 200.0, 0.0]).view(1, 1, 2, 2).requires_grad_()
    target = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 2, 2)
    value = get_loss(name)(logits, target)
    value.backward()
    assert value.isfinite()
    gradient = logits.grad.flatten().tolist()
    assert gradient[1] < 0 < gradient[3]


def test_an_unknown_loss_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"unknown loss 'bce_dise'. Did you mean 'bce_dice'. Known: bce, bce_dice, ref"):
        get_loss("bce_dise")


def test_targets_are_resized_softly() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :3] = 1
    assert resize_target(mask, (4, 4))[0, 0, 0].tolist() == [1, 0.5, 0, 0]
    assert resize_target(mask, (8, 8)) is mask
