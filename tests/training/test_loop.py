"""Overlap, one epoch and one validation, on a net with one parameter."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from promise.training.loop import overlap, train_epoch, validate
from promise.training.losses import Criterion, LossTerms, bce, dice
from promise.types import Batch, Prediction, Prompts


class Offset(nn.Module):
    """Logits: the first channel of the image plus a learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))
        self.modes: list[bool] = []

    def forward(self, image: Tensor, prompts: Prompts | None = None, *, mask_index: int = 0) -> Prediction:
        self.modes.append(self.training)
        return Prediction(image[:, :1] + self.offset, image[:, :1].mean((2, 3)), prompts or Prompts.none(len(image)))


def batch(first: int, count: int) -> Batch:
    generator = torch.Generator().manual_seed(first)
    image = torch.randn(count, 3, 4, 4, generator=generator)
    index = torch.arange(first, first + count)
    mask = (torch.rand(count, 1, 4, 4, generator=generator) > 0.5).float()
    return Batch(image, mask, tuple(f"row{i}" for i in index.tolist()), index)


def no_prompts(batch: Batch) -> Prompts:
    return Prompts.none(len(batch))


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_overlap_by_hand() -> None:
    target = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).float().view(4, 1, 2, 2)
    logits = torch.tensor([[5, -5, 5, -5], [-1, -1, -1, -1], [3, -1, -1, -1], [0, -1, -1, -1]]).float().view(4, 1, 2, 2)
    dice, iou = overlap(logits, target)
    assert dice.tolist() == [0.5, 1, 0, 1]
    assert iou.tolist() == pytest.approx([1 / 3, 1, 0, 1])


def test_overlap_is_taken_at_the_targets_size() -> None:
    logits = torch.tensor([[9.0, -3.0], [9.0, -3.0]]).view(1, 1, 2, 2)
    target = torch.zeros(1, 1, 4, 4)
    target[..., :3] = 1  # 9 and -3 meet in 9, 6, 0, -3: three columns
    assert [value.item() for value in overlap(logits, target)] == [1, 1]


def test_an_epoch_is_its_steps_and_its_mean_loss_counts_images(accelerator: Accelerator) -> None:
    net, batches = Offset(), [batch(0, 4), batch(4, 4), batch(8, 1)]
    by_hand, total = Offset(), 0.0
    for number, one in enumerate(batches):
        value = bce(by_hand(one.image).mask_logits, one.mask)
        total += value.item() * len(one)
        (gradient,) = torch.autograd.grad(value, by_hand.offset)
        with torch.no_grad():
            by_hand.offset -= 0.1 * (number + 1) * gradient
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    prepared, prepared_optimizer = accelerator.prepare(net, optimizer)
    called: list[int] = []

    def after_step(step: int, terms: LossTerms) -> None:
        called.append(step)
        assert terms.total is terms.terms["mask"]
        optimizer.param_groups[0]["lr"] = 0.1 * (step + 1)

    means = train_epoch(
        prepared,
        batches,
        draw=no_prompts,
        criterion=Criterion(bce),
        optimizer=prepared_optimizer,
        accelerator=accelerator,
        after_step=after_step,
    )
    assert called == [1, 2, 3]
    assert net.offset.item() == pytest.approx(by_hand.offset.item(), abs=1e-6)
    assert means == pytest.approx({"loss": total / 9}, abs=1e-6)
    assert net.modes == [True] * 3


def test_validation_averages_over_images_and_counts_each_row_once(accelerator: Accelerator) -> None:
    net, first, second = Offset(), batch(0, 3), batch(3, 1)
    scores = validate(net, [first, second, second], draw=no_prompts, criterion=Criterion(bce), accelerator=accelerator)
    both, iou = zip(*(overlap(b.image[:, :1], b.mask) for b in (first, second)), strict=True)
    losses = [bce(b.image[:, :1], b.mask).item() for b in (first, second)]
    assert scores == pytest.approx(
        {
            "loss": (3 * losses[0] + losses[1]) / 4,
            "dice": torch.cat(both).mean().item(),
            "iou": torch.cat(iou).mean().item(),
        },
        abs=1e-6,
    )
    assert net.modes == [False] * 3


def test_every_term_of_a_loss_has_its_mean(accelerator: Accelerator) -> None:
    net, batches = Offset(), [batch(0, 3), batch(3, 1)]
    criterion = Criterion(dice, lambda prediction, batch: prediction.iou.square().mean())
    scores = validate(net, batches, draw=no_prompts, criterion=criterion, accelerator=accelerator)
    images = [b.take([i]) for b in batches for i in range(len(b))]
    mask = sum(dice(one.image[:, :1], one.mask).item() for one in images) / 4
    prompts = sum(one.image[:, :1].mean().square().item() for one in images) / 4
    assert list(scores) == [*criterion.names, "dice", "iou"]
    assert (scores["loss"], scores["loss_mask"], scores["loss_prompts"]) == pytest.approx(
        (mask + prompts, mask, prompts), abs=1e-6
    )
    optimizer = accelerator.prepare(torch.optim.SGD(net.parameters(), lr=0.0))
    trained = train_epoch(
        net, batches, draw=no_prompts, criterion=criterion, optimizer=optimizer, accelerator=accelerator
    )
    assert trained == pytest.approx({name: scores[name] for name in criterion.names}, abs=1e-6)
