"""Values of learning rate schedules and of the schedulers that follow them; parameters of optimisers."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from promise.runtime.errors import UserError
from promise.training.optim import Schedule, build_optimizer, build_scheduler, parse_schedule


def test_constant_cosine_and_restarts() -> None:
    constant = parse_schedule("constant", lr=2.0, epochs=10)
    assert [constant(e) for e in (0, 5, 10)] == [2, 2, 2]
    cosine = parse_schedule("cosine", lr=2.0, epochs=10, min_lr=1.0)
    assert [cosine(e) for e in (0, 5, 10, 11)] == pytest.approx([2, 1.5, 1, 1])
    restarts = parse_schedule("restarts", lr=2.0, epochs=10, cycle=4)
    assert [restarts(e) for e in (0, 2, 4, 6, 8)] == pytest.approx([2, 1, 2, 1, 2])


def test_warm_up_is_linear_and_then_the_schedule_begins() -> None:
    cosine = parse_schedule("cosine", lr=2.0, epochs=10, warmup=2)
    assert [cosine(e) for e in (0, 1, 2, 6, 10)] == pytest.approx([1e-3, 1.001, 2, 1, 0], abs=1e-9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("LR_200_1e-7", ("constant", 50, 1e-7)),
        ("LR", ("constant", 50, 0)),
        ("CosineAnnealing_100_1e-6", ("cosine", 100, 1e-6)),
        ("cos_20", ("cosine", 20, 0)),
        ("cosine", ("cosine", 50, 0)),
    ],
)
def test_the_spelling_of_the_reference_implementation(text: str, expected: tuple[str, float, float]) -> None:
    schedule = parse_schedule(text, lr=1.0, epochs=50)
    assert (schedule.kind, schedule.epochs, schedule.min_lr) == expected


def test_restarts_in_that_spelling_have_the_length_of_a_cycle() -> None:
    schedule = parse_schedule("CosineWarmRestarts_5_0.5", lr=1.0, epochs=50)
    assert [schedule(e) for e in (0, 2.5, 5)] == pytest.approx([1, 0.75, 1])


@pytest.mark.parametrize("text", ["cosin", "step_10", "", "LR_x", "cosine_10_1e-3_4"])
def test_an_unknown_schedule_lists_the_known(text: str) -> None:
    with pytest.raises(UserError, match=r"Known: constant, cosine, restarts, LR_200_1e-7") as caught:
        parse_schedule(text, lr=1.0, epochs=50)
    assert caught.value.code == "unknown-scheduler"


EPOCHS, STEPS = 6, 7  # optimiser steps per epoch
SCHEDULES = {
    "constant": parse_schedule("constant", lr=3e-4, epochs=EPOCHS),
    "LR_200_1e-7": parse_schedule("LR_200_1e-7", lr=1e-5, epochs=EPOCHS),
    "cosine": parse_schedule("cosine", lr=3e-4, epochs=EPOCHS, min_lr=1e-6),
    "restarts": parse_schedule("restarts", lr=3e-4, epochs=EPOCHS, cycle=2),
    "warm-up": parse_schedule("cosine", lr=3e-4, epochs=EPOCHS, warmup=1.5),
    "CosineAnnealing_3_1e-6": parse_schedule("CosineAnnealing_3_1e-6", lr=1e-4, epochs=EPOCHS),
}


def new_optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def followed(optimizer: torch.optim.Optimizer, scheduler: LRScheduler, steps: int) -> list[float]:
    """The learning rates of the next steps of an optimiser."""
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return rates


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scheduler_has_exactly_the_values_of_its_schedule_resumed_or_not(name: str) -> None:
    schedule = SCHEDULES[name]
    expected = [schedule(epoch + step / STEPS) for epoch in range(EPOCHS) for step in range(STEPS)]
    optimizer = new_optimizer(schedule.lr)
    whole = followed(optimizer, build_scheduler(optimizer, schedule, steps_per_epoch=STEPS), len(expected))
    assert whole == expected
    for done in (1, 2 * STEPS, len(expected) - 1):
        resumed = new_optimizer(schedule.lr)
        scheduler = build_scheduler(resumed, schedule, steps_per_epoch=STEPS, steps_done=done)
        assert followed(resumed, scheduler, len(expected) - done) == expected[done:]


def test_all_parameter_groups_get_the_learning_rate() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 5.0)]
    optimizer = torch.optim.SGD(groups)
    build_scheduler(optimizer, lambda epoch: 0.25, steps_per_epoch=1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


TORCH: dict[str, Callable[[torch.optim.Optimizer], LRScheduler]] = {
    "constant": lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
    "LR_200_1e-7": lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=EPOCHS * STEPS, eta_min=1e-6),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2 * STEPS),
}


@pytest.mark.parametrize("name", TORCH)
def test_values_agree_with_the_schedulers_of_torch_up_to_rounding(name: str) -> None:
    schedule = SCHEDULES[name]
    ours, theirs = new_optimizer(schedule.lr), new_optimizer(schedule.lr)
    found = followed(ours, build_scheduler(ours, schedule, steps_per_epoch=STEPS), EPOCHS * STEPS)
    assert found == pytest.approx(followed(theirs, TORCH[name](theirs), EPOCHS * STEPS), rel=1e-9)


def test_a_cosine_of_torch_rises_again_where_ours_stays_at_its_end() -> None:
    schedule: Schedule = SCHEDULES["CosineAnnealing_3_1e-6"]
    optimizer = new_optimizer(schedule.lr)
    theirs = followed(optimizer, lr_scheduler.CosineAnnealingLR(optimizer, 3 * STEPS, 1e-6), EPOCHS * STEPS)
    assert schedule(5.0) == pytest.approx(1e-6)
    assert theirs[5 * STEPS] > 1e-5


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW), ("SGD", torch.optim.SGD)]
)
def test_optimisers_get_the_trainable_parameters(name: str, kind: type) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    optimizer = build_optimizer(name, net.parameters(), lr=0.5, weight_decay=0.25)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in net[1].parameters()]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)


def test_momentum_is_for_sgd() -> None:
    assert build_optimizer("sgd", nn.Linear(1, 1).parameters(), lr=1, momentum=0.7).param_groups[0]["momentum"] == 0.7


def test_nothing_to_train_and_an_unknown_optimiser_are_errors() -> None:
    net = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(UserError) as caught:
        build_optimizer("adam", net.parameters(), lr=1)
    assert caught.value.code == "nothing-to-train"
    with pytest.raises(UserError, match="'adam'") as caught:
        build_optimizer("adma", net.parameters(), lr=1)
    assert caught.value.code == "unknown-optimizer"
