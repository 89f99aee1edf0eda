"""Checks of the settings of a training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from promise.runtime.errors import UserError
from promise.training.config import TrainConfig, check_train, parse_labels

Expect = Callable[..., Any]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("accumulate", 0),
        ("validate_every", 0),
        ("workers", -1),
        ("early_stopping", -1),
        ("clip_norm", -0.5),
        ("prompt_loss", -0.5),
        ("prompt_loss", float("nan")),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("weight_decay", -1.0),
        ("warmup_epochs", -1.0),
        ("warmup_epochs", float("inf")),
        ("weight_decay", float("nan")),
        ("clip_norm", float("inf")),
        ("min_lr", float("nan")),
        ("lr", float("inf")),
        ("momentum", -1.0),
        ("momentum", float("nan")),
        ("workers", 100_000),
        ("cache_views", 10**9),
        ("seed", 10**22),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_rejected(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} "):
        check_train(TrainConfig(**{"split_csv": "a.csv", name: value}))


def test_resume_and_overwrite_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"--resume.*--overwrite"):
        check_train(TrainConfig(split_csv="a.csv", resume=True, overwrite=True))
    check_train(TrainConfig(split_csv="a.csv", resume=True))


@pytest.mark.parametrize("text", ["1-1-0-0", "1,1,0,0", "1 1 0 0"])
def test_point_labels_are_parsed(text: str, user_error) -> None:
    assert parse_labels(text) == (1, 1, 0, 0)
    assert parse_labels(None) is None
    with user_error("invalid-point-labels") as caught:
        parse_labels(text + "-x")
    assert "--point-labels" in str(caught.value)
