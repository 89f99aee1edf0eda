"""Do schedules take the values they should, under both spellings, and do optimisers get only what learns?"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from promise.runtime.errors import UserError
from promise.training.optim import build_optimizer, parse_schedule


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
def test_the_originals_spelling(text: str, expected: tuple[str, float, float]) -> None:
    schedule = parse_schedule(text, lr=1.0, epochs=50)
    assert (schedule.kind, schedule.epochs, schedule.min_lr) == expected


def test_the_originals_restarts_count_their_cycle() -> None:
    schedule = parse_schedule("CosineWarmRestarts_5_0.5", lr=1.0, epochs=50)
    assert [schedule(e) for e in (0, 2.5, 5)] == pytest.approx([1, 0.75, 1])


@pytest.mark.parametrize("text", ["cosin", "step_10", "", "LR_x", "cosine_10_1e-3_4"])
def test_an_unknown_schedule_lists_the_known(text: str) -> None:
    with pytest.raises(UserError, match=r"unknown scheduler.*Known: constant, cosine, restarts, LR_200_1e-7"):
        parse_schedule(text, lr=1.0, epochs=50)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW), ("SGD", torch.optim.SGD)]
)
def test_optimisers_get_what_learns(name: str, kind: type) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    optimizer = build_optimizer(name, net.parameters(), lr=0.5, weight_decay=0.25)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in net[1].parameters()]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)


def test_momentum_is_for_sgd() -> None:
    assert build_optimizer("sgd", nn.Linear(1, 1).parameters(), lr=1, momentum=0.7).param_groups[0]["momentum"] == 0.7


def test_nothing_to_learn_and_an_unknown_optimiser_are_errors() -> None:
    net = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(UserError, match="nothing in this net can be trained"):
        build_optimizer("adam", net.parameters(), lr=1)
    with pytest.raises(UserError, match=r"unknown optimizer 'adma'. Did you mean 'adam'"):
        build_optimizer("adma", net.parameters(), lr=1)
