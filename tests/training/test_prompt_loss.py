"""The loss of the positions of points: values and gradients on masks drawn by hand, and its effect on a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor

from promise.models import registry
from promise.models.registry import NETS, NetSpec, register
from promise.runtime.errors import UserError
from promise.training import TrainConfig, TrainResult, train
from promise.training.prompt_loss import location_loss, sample_at, signed_distance, with_location_loss
from promise.types import Batch, Points, Prediction, Prompts

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")

SIDE = 20
SQUARE = np.zeros((SIDE, SIDE), bool)
SQUARE[5:15, 5:15] = True  # its border runs from 4.5 to 14.5
EMPTY, FULL = np.zeros((SIDE, SIDE), bool), np.ones((SIDE, SIDE), bool)


def batch_of(*masks: np.ndarray) -> Batch:
    mask = torch.from_numpy(np.stack(masks))[:, None].float()
    return Batch(mask, mask, tuple(map(str, range(len(masks)))), torch.arange(len(masks)))


def prediction_of(xy: Tensor, label: Tensor) -> Prediction:
    return Prediction(torch.zeros(len(xy), 1, 4, 4), torch.zeros(len(xy), 1), Prompts(Points(xy, label)))


def loss_of(points: list[tuple[float, float, int]], mask: np.ndarray, *, margin: float = 0.05) -> tuple[float, Tensor]:
    """The loss of points (x, y, label) on one mask, and its gradient (P, 2)."""
    xy = torch.tensor([[point[:2] for point in points]], requires_grad=True)
    value = location_loss(
        prediction_of(xy, torch.tensor([[label for *_, label in points]])), batch_of(mask), margin=margin
    )
    value.backward()
    assert xy.grad is not None
    return value.item(), xy.grad[0]


def test_the_distance_is_positive_inside_and_counts_from_the_edges_of_pixels() -> None:
    distance = signed_distance(SQUARE) * SIDE
    assert distance[10, 3:8].tolist() == pytest.approx([-1.5, -0.5, 0.5, 1.5, 2.5], abs=1e-6)
    assert distance[2, 10] == pytest.approx(-2.5)
    assert distance[10, 10] == pytest.approx(4.5)
    assert distance[1, 1] == pytest.approx(0.5 - np.hypot(4, 4), rel=0.03)
    assert distance.dtype == np.float32


def test_the_distance_of_a_mask_without_a_border_is_constant() -> None:
    assert np.unique(signed_distance(FULL)).tolist() == [1]
    assert np.unique(signed_distance(EMPTY)).tolist() == [-1]


def test_maps_are_sampled_bilinearly_between_pixel_centres() -> None:
    maps = torch.arange(12.0).reshape(1, 3, 4)  # value = x + 4·y
    xy = torch.tensor([[[0.0, 0.0], [3.0, 2.0], [1.5, 1.0], [0.25, 0.75], [-0.5, 0.0], [9.0, 2.0]]])
    assert sample_at(maps, xy)[0].tolist() == pytest.approx([0, 11, 5.5, 3.25, 0, 11], abs=1e-5)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((10.0, 10.0, 1), 0.0),  # 4.5 pixels inside: farther than the margin of 1
        ((5.0, 10.0, 1), 0.5 / SIDE),  # 0.5 inside
        ((2.0, 10.0, 1), 3.5 / SIDE),  # 2.5 outside
        ((2.0, 10.0, 0), 0.0),
        ((4.0, 10.0, 0), 0.5 / SIDE),
        ((8.0, 10.0, 0), 4.5 / SIDE),  # 3.5 inside
        ((8.0, 10.0, -1), 0.0),
    ],
)
def test_the_value_of_one_point(point: tuple[float, float, int], expected: float) -> None:
    assert loss_of([point], SQUARE)[0] == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_the_mean_over_points_then_over_images() -> None:
    points = [(2.0, 10.0, 1), (10.0, 10.0, 1), (8.0, 10.0, 0), (8.0, 10.0, -1)]
    one = loss_of(points, SQUARE)[0]
    assert one == pytest.approx((3.5 + 0 + 4.5) / 3 / SIDE)  # padding is not counted
    xy, label = torch.tensor([[p[:2] for p in points]]), torch.tensor([[p[2] for p in points]])
    both = location_loss(prediction_of(xy.expand(2, -1, -1), label.expand(2, -1)), batch_of(SQUARE, EMPTY), margin=0.05)
    assert both.item() == pytest.approx(one / 2)


def test_a_step_against_the_gradient_moves_points_to_their_side() -> None:
    value, gradient = loss_of([(2.0, 10.0, 1), (10.0, 18.0, 1), (6.0, 10.0, 0), (10.0, 6.0, 0), (1.0, 1.0, 0)], SQUARE)
    assert value > 0
    assert gradient[0, 0] < 0  # to the right, into the square
    assert gradient[1, 1] > 0  # up
    assert gradient[2, 0] > 0  # to the left, out of it
    assert gradient[3, 1] > 0
    assert gradient[4].tolist() == [0, 0]
    # The length does not depend on the distance: one over the side, divided by the number of points.
    assert gradient[0].norm() == pytest.approx(1 / SIDE / 5, rel=1e-3)


@pytest.mark.parametrize("mask", [EMPTY, FULL], ids=["empty", "full"])
def test_points_without_a_possible_place_have_no_loss(mask: np.ndarray) -> None:
    value, gradient = loss_of([(3.0, 3.0, 1), (12.0, 3.0, 0)], mask)
    assert value == 0
    assert not gradient.any()


def test_positions_in_16_bits_are_sampled_in_32() -> None:
    xy = torch.tensor([[[2.0, 10.0]]], dtype=torch.bfloat16, requires_grad=True)
    value = location_loss(prediction_of(xy, torch.tensor([[1]])), batch_of(SQUARE), margin=0.05)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(3.5 / SIDE, abs=1e-6)


def test_a_prediction_without_points_is_an_error() -> None:
    boxes = Prediction(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1), Prompts(boxes=torch.zeros(1, 4)))
    with pytest.raises(ValueError, match="needs points"):
        location_loss(boxes, batch_of(SQUARE))


def test_the_weight_multiplies_and_the_loss_of_the_net_is_added() -> None:
    prediction = prediction_of(torch.tensor([[[2.0, 10.0]]]), torch.tensor([[1]]))

    def own(prediction: Prediction, _batch: Batch) -> Tensor:
        assert prediction.points is not None
        return prediction.points.xy.mean()

    plain = location_loss(prediction, batch_of(SQUARE)).item()
    weighted, both = with_location_loss(None, 3.0), with_location_loss(own, 3.0)
    assert weighted is not None
    assert both is not None
    assert weighted(prediction, batch_of(SQUARE)).item() == pytest.approx(3 * plain)
    assert both(prediction, batch_of(SQUARE)).item() == pytest.approx(6 + 3 * plain)
    assert with_location_loss(None, 0.0) is None
    assert with_location_loss(own, 0.0) is own


# --- in a run -------------------------------------------------------------------------------------

Train = Callable[..., TrainResult]


@pytest.fixture
def run(tiny_vit: str, phantoms: Path, tmp_path: Path) -> Train:
    settings: dict[str, Any] = {
        "net": "APM_cross",
        "sam": tiny_vit,
        "num_points": 4,
        "epochs": 2,
        "batch_size": 2,
        "lr": 1e-3,
        "augment": "none",
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
        "seed": 5,
        "tensorboard": False,
        "quiet": True,
        "split_csv": str(phantoms),
        "output": str(tmp_path / "run"),
    }
    return lambda **other: train(TrainConfig(**{**settings, **other}))


def weights(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "last.safetensors")


def test_a_weight_of_0_changes_nothing(run: Train, tmp_path: Path) -> None:
    for name, settings in (("default", {}), ("off", {"prompt_loss": 0.0}), ("on", {"prompt_loss": 1.0})):
        run(output=str(tmp_path / name), **settings)
    default, off, on = (weights(tmp_path / name) for name in ("default", "off", "on"))
    assert default.keys() == off.keys() == on.keys()  # nor do the checkpoints of a run with the loss
    assert all(torch.equal(default[name], off[name]) for name in default)
    assert any(not torch.equal(default[name], on[name]) for name in default)
    headers = [(tmp_path / name / "log.csv").read_text().splitlines()[0] for name in ("default", "off")]
    assert headers == ["epoch,lr,train_loss,val_loss,val_dice,val_iou,seconds"] * 2


def test_the_loss_is_logged_and_can_select(run: Train) -> None:
    progress = run(prompt_loss=2.0, select="loss_prompts").progress
    for row in progress.history:
        for split in ("train", "val"):
            parts = row[f"{split}_loss_mask"] + row[f"{split}_loss_prompts"]
            assert row[f"{split}_loss"] == pytest.approx(parts, abs=1e-6)
    assert progress.best_score == min(row["val_loss_prompts"] for row in progress.history)


def positives_inside(folder: Path, phantoms: Path) -> float:
    """Mean fraction of the positive points that are in the ground truth of the training images."""
    from promise.evaluation.config import EvalConfig
    from promise.evaluation.evaluate import evaluate

    config = EvalConfig(
        ckpt=str(folder / "last.safetensors"),
        split_csv=(str(phantoms),),
        split="train",
        workers=0,
        device="cpu",
        precision="fp32",
        gallery=0,
        quiet=True,
    )
    mean: float = evaluate(config).summary["datasets"]["split"]["means"]["prompts"]["positives_inside"]
    return mean


@pytest.mark.slow
def test_more_positive_points_are_inside_after_a_training_with_the_loss(
    run: Train, phantoms: Path, tmp_path: Path
) -> None:
    settings = {"epochs": 40, "validate_every": 40}
    run(output=str(tmp_path / "without"), **settings)
    history = run(output=str(tmp_path / "with"), prompt_loss=1.0, **settings).progress.history
    assert history[-1]["train_loss_prompts"] < 0.2 * history[0]["train_loss_prompts"]
    before, after = (positives_inside(tmp_path / name, phantoms) for name in ("without", "with"))
    assert before < 0.5
    assert after > 0.8


def test_a_resumed_run_keeps_the_weight(run: Train, tmp_path: Path) -> None:
    run(prompt_loss=0.5)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["prompt_loss"] == 0.5
    assert run(prompt_loss=0.5, resume=True).progress.epoch == 2
    assert train(TrainConfig(output=str(tmp_path / "run"), resume=True, quiet=True)).progress.epoch == 2
    with pytest.raises(UserError, match=r"--prompt-loss is 0\.7 now and was 0\.5") as caught:
        run(prompt_loss=0.7, resume=True)
    assert caught.value.code == "changed-settings"


@pytest.fixture
def box_net() -> Iterator[str]:
    """A net whose prompter predicts no points."""
    from promise.models.prompters.base import Prompter

    spec = register(NetSpec("APM_box", lambda *_: Prompter()))
    yield spec.name
    for table in (NETS, registry._SHORT):
        del table[spec.name]


@pytest.mark.parametrize("net", ["IPS_GT", "APM_box"])
def test_a_net_without_predicted_points_is_refused(net: str, run: Train, box_net: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"which {net} does not") as caught:
        run(net=net, prompt_loss=1.0)
    assert caught.value.codes == ("no-point-prompter",)
    assert not (tmp_path / "run").exists()


def test_other_faults_are_reported_beside_it(run: Train) -> None:
    with pytest.raises(UserError) as caught:
        run(net="SAM", prompt_loss=1.0)
    assert caught.value.codes == ("not-trainable", "no-point-prompter")
    with pytest.raises(UserError) as caught:
        run(net="APM_crosss", prompt_loss=1.0)
    assert caught.value.codes == ("unknown-net",)
