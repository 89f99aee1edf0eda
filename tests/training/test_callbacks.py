"""Callbacks and subclasses of the trainer: when they are called, what they may change, and that their state resumes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from promise import checkpoint
from promise.runtime.errors import UserError
from promise.training import Callback, TrainConfig, Trainer, TrainResult, train
from promise.training.callbacks import CallbackList

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")

Train = Callable[..., TrainResult]


@pytest.fixture
def run(tiny_vit: str, phantoms: Path, tmp_path: Path) -> Train:
    """Trains IPS_GT on 6 images, 3 steps per epoch."""

    def run(callbacks: Sequence[Callback] = (), trainer_class: type[Trainer] = Trainer, **other: Any) -> TrainResult:
        settings: dict[str, Any] = {
            "net": "IPS_GT",
            "sam": tiny_vit,
            "num_points": 4,
            "epochs": 3,
            "batch_size": 2,
            "lr": 1e-2,
            "workers": 0,
            "device": "cpu",
            "precision": "fp32",
            "seed": 5,
            "tensorboard": False,
            "quiet": True,
            "split_csv": str(phantoms),
            "output": str(tmp_path / "run"),
        }
        return train(TrainConfig(**{**settings, **other}), callbacks=callbacks, trainer_class=trainer_class)

    return run


class Killed(BaseException):
    """A simulated kill: nothing in the package catches it."""


class Kill(Callback):
    """Ends the process in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Trainer, step: int, loss_terms: Any) -> None:
        if step == self.step:
            raise Killed


class Calls(Callback):
    """Records the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_train_start(self, trainer: Trainer) -> None:
        self.calls.append(f"start {trainer.progress.epoch}")

    def on_step_end(self, trainer: Trainer, step: int, loss_terms: Any) -> None:
        assert set(loss_terms.terms) == {"mask"}
        self.calls.append(f"step {step}")

    def on_validation_end(self, trainer: Trainer, scores: dict[str, float]) -> None:
        assert list(scores) == ["loss", "dice", "iou"]
        self.calls.append("validation")

    def on_epoch_end(self, trainer: Trainer, row: dict[str, Any]) -> None:
        assert trainer.progress.epoch == row["epoch"]
        self.calls.append(f"epoch {row['epoch']}, best {trainer.progress.best_epoch}")

    def on_train_end(self, trainer: Trainer) -> None:
        self.calls.append("end")


def test_callbacks_are_called_in_order(run: Train) -> None:
    calls = Calls()
    run([calls], epochs=2, validate_every=2)
    assert calls.calls == [
        "start 0",
        *("step 1", "step 2", "step 3", "epoch 1, best None"),
        *("step 4", "step 5", "step 6", "validation", "epoch 2, best 2"),
        "end",
    ]


def test_steps_are_counted_on_in_a_resumed_run_and_are_those_of_the_optimiser(run: Train) -> None:
    with pytest.raises(Killed):
        run([Kill(4)], epochs=2, accumulate=2)  # 2 steps per epoch
    calls = Calls()
    run([calls], epochs=2, accumulate=2, resume=True)
    assert [call for call in calls.calls if call.startswith("st")] == ["start 1", "step 3", "step 4"]


class StepLosses(Callback):
    """Logs the largest loss of the steps of each epoch, as a tensor."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_step_end(self, trainer: Trainer, step: int, loss_terms: Any) -> None:
        self.losses.append(loss_terms.total.detach())

    def on_epoch_end(self, trainer: Trainer, row: dict[str, Any]) -> None:
        row["max_step_loss"] = max(self.losses)
        self.losses.clear()


def test_values_added_to_a_row_are_logged_everywhere(run: Train, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the [logging] extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = run([StepLosses()], epochs=2, tensorboard=True).progress.history
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    with (tmp_path / "run/log.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    expected = [row["max_step_loss"] for row in history]
    assert all(value >= row["train_loss"] for value, row in zip(expected, history, strict=True))
    assert [line["max_step_loss"] for line in lines] == expected
    assert [float(row["max_step_loss"]) for row in table] == expected
    assert [event.value for event in events.Scalars("max_step_loss")] == pytest.approx(expected)


def test_a_column_may_begin_in_a_resumed_run(run: Train, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run([Kill(4)], epochs=2)
    run([StepLosses()], epochs=2, resume=True)
    with (tmp_path / "run/log.csv").open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert first["max_step_loss"] == ""
    assert float(second["max_step_loss"]) > 0


class WeightAverage(Callback):
    """The exponential moving average of docs/trainer.md."""

    score_names = ("ema_loss", "ema_iou")

    def __init__(self, decay: float = 0.5) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}

    def on_step_end(self, trainer: Trainer, step: int, loss_terms: Any) -> None:
        for name, value in trainer.net.learned_state().items():
            old = self.average.get(name, value)
            self.average[name] = old.lerp(value, 1 - self.decay).detach().clone()

    @contextmanager
    def swapped_in(self, net: Any) -> Iterator[None]:
        current = {name: value.clone() for name, value in net.learned_state().items()}
        net.load_state_dict(self.average, strict=False)
        yield
        net.load_state_dict(current, strict=False)

    def on_validation_end(self, trainer: Trainer, scores: dict[str, float]) -> None:
        with self.swapped_in(trainer.net):
            averaged = trainer.validate()
        scores.update(ema_loss=averaged["loss"], ema_iou=averaged["iou"])

    def on_train_end(self, trainer: Trainer) -> None:
        with self.swapped_in(trainer.net):
            trainer.save_checkpoint("ema.safetensors", trainer.validate())

    def state_dict(self) -> dict[str, Any]:
        return self.average

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average = dict(state)


def learned(path: Path) -> dict[str, Tensor]:
    import safetensors.torch

    return safetensors.torch.load_file(path)


def test_averaged_weights_are_evaluated_selected_on_and_saved(run: Train, tmp_path: Path) -> None:
    run(output=str(tmp_path / "plain"))
    average = WeightAverage()
    progress = run([average], select="ema_loss").progress
    for name, value in learned(tmp_path / "plain/last.safetensors").items():
        assert torch.equal(value, learned(tmp_path / "run/last.safetensors")[name])  # training itself is unchanged
        assert torch.equal(average.average[name], learned(tmp_path / "run/ema.safetensors")[name])
        assert not torch.equal(value, average.average[name])
    assert progress.best_score == min(row["val_ema_loss"] for row in progress.history)
    metadata = checkpoint.read_metadata(tmp_path / "run/ema.safetensors")
    assert metadata.metrics["val_loss"] == progress.history[-1]["val_ema_loss"]
    assert metadata.metrics["val_loss"] != progress.history[-1]["val_loss"]


@pytest.mark.parametrize("step", [4, 6, 8])
def test_the_state_of_a_callback_resumes_bit_for_bit(step: int, run: Train, tmp_path: Path) -> None:
    run([WeightAverage()], output=str(tmp_path / "whole"))
    with pytest.raises(Killed):
        run([WeightAverage(), Kill(step)])
    resumed = run([WeightAverage()], resume=True).progress.history
    for name in ("ema", "last", "best"):
        ours, theirs = (learned(tmp_path / folder / f"{name}.safetensors") for folder in ("run", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert len(resumed) == 3


def test_a_run_with_a_stateful_callback_is_not_resumed_without_it(run: Train) -> None:
    with pytest.raises(Killed):
        run([WeightAverage(), Kill(4)])
    with pytest.raises(UserError, match="WeightAverage") as caught:
        run([StepLosses()], resume=True)
    assert caught.value.code == "missing-callback"


def test_the_state_of_a_run_without_such_callbacks_has_its_usual_entries(run: Train, tmp_path: Path) -> None:
    run([StepLosses()], epochs=1)
    state = torch.load(tmp_path / "run/state/resume.pt", weights_only=True)
    assert list(state) == ["progress", "learned", "optimizer", "scaler", "sam_sha256", "settings"]
    (group,) = state["optimizer"]["param_groups"]
    assert "initial_lr" not in group


def test_two_callbacks_of_a_class_keep_their_own_states() -> None:
    first, second = WeightAverage(), WeightAverage()
    first.average, second.average = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    state = CallbackList([first, Calls(), second]).state_dict()
    assert list(state) == ["WeightAverage", "WeightAverage-2"]
    others = WeightAverage(), WeightAverage()
    CallbackList(others).load_state_dict(state)
    assert [other.average["a"].item() for other in others] == [0, 1]


def test_an_undeclared_score_cannot_select(run: Train) -> None:
    with pytest.raises(UserError) as caught:
        run([StepLosses()], select="ema_iou")
    assert caught.value.code == "unknown-validation-score"


class Decaying(Trainer):
    """A learning rate and a validation score of its own."""

    score_names = ("both",)

    def learning_rate(self, epoch: float) -> float:
        return 1e-3 * (1 - epoch / self.options.epochs)

    def validate(self) -> dict[str, float]:
        scores = super().validate()
        return {**scores, "both": scores["dice"] + scores["iou"]}


def test_a_subclass_sets_the_learning_rate_and_adds_a_score(run: Train) -> None:
    progress = run(trainer_class=Decaying, select="both").progress
    assert [row["lr"] for row in progress.history] == pytest.approx([1e-3 * (1 - t / 9) for t in (2, 5, 8)])
    assert progress.best_score == max(row["val_dice"] + row["val_iou"] for row in progress.history)


def test_settings_import_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, promise.training.config, promise.cli.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
