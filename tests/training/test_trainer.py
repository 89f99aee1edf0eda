"""Files of a training run, bit-identical resuming after a kill at any point, selection, rejected settings."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor

from promise import checkpoint
from promise.cli.common import run as run_command
from promise.cli.common import start_logging
from promise.data.phantom import make_phantoms
from promise.data.table import read_table
from promise.evaluation.config import EvalConfig
from promise.evaluation.evaluate import evaluate
from promise.models import registry
from promise.models.prompters.hybrid import WEIGHTS_PACKAGE
from promise.models.prompters.lesions import LesionSettings
from promise.models.registry import NETS, register
from promise.runtime.errors import ExistingRunError, MissingFileError, UserError
from promise.training import Callback, TrainConfig, Trainer, TrainResult, train
from promise.training.losses import Criterion, bce_dice
from promise.training.resume_state import Progress
from promise.training.run_folder import RunFolder
from promise.training.run_log import RunLog
from promise.training.run_record import RunRecord

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")

Train = Callable[..., TrainResult]
SMALL: dict[str, Any] = {
    "net": "IPS_GT",
    "sam": "tiny_vit",
    "num_points": 4,
    "epochs": 3,
    "batch_size": 2,
    "lr": 1e-3,
    "workers": 0,
    "device": "cpu",
    "precision": "fp32",
    "seed": 5,
    "tensorboard": False,
    "quiet": True,
}


@pytest.fixture
def settings(tiny_vit: str, phantoms: Path, tmp_path: Path) -> dict[str, Any]:
    return {**SMALL, "sam": tiny_vit, "split_csv": str(phantoms), "output": str(tmp_path / "run")}


@pytest.fixture
def run(settings: dict[str, Any]) -> Train:
    """Trains with the small settings and others; ``callbacks`` and ``trainer_class`` go to ``train``."""

    def run(callbacks: Sequence[Callback] = (), trainer_class: type[Trainer] = Trainer, **other: Any) -> TrainResult:
        config = TrainConfig(**{**settings, **other})
        return train(config, callbacks=callbacks, trainer_class=trainer_class)

    return run


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / f"{name}.safetensors")


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def rows(folder: Path) -> list[dict[str, Any]]:
    """log.jsonl without the one column that no two runs share."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


class Killed(BaseException):
    """A simulated kill: nothing in the package catches it."""


# --- what a run leaves ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compiled_net_learns_the_same(run: Train, tmp_path: Path) -> None:
    plain = run(output=str(tmp_path / "plain"), drop_last=True, epochs=2)
    compiled = run(output=str(tmp_path / "compiled"), drop_last=True, epochs=2, compile=True)
    for ours, theirs in zip(rows(compiled.folder), rows(plain.folder), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert weights(compiled.folder).keys() == weights(plain.folder).keys()


def test_compiling_without_a_compiler_is_refused_before_the_first_epoch(run: Train, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"C\+\+ compiler"):
        run(compile=True)


def test_a_run_leaves_its_files(run: Train, drawn_curves: None, tmp_path: Path) -> None:
    result = run()
    folder = tmp_path / "run"
    assert result.folder == folder
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
        "config.yaml",
        "environment.json",
        "log.csv",
        "log.jsonl",
        "curves.png",
        "best.safetensors",
        "last.safetensors",
        "state/resume.pt",
    }
    with (folder / "log.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    columns = ["epoch", "lr", "train_loss", "val_loss", "val_dice", "val_iou", "seconds"]
    assert [int(row["epoch"]) for row in table] == [1, 2, 3]
    assert list(table[0]) == columns
    assert [{k: float(v) for k, v in row.items()} for row in table] == lines
    assert lines == result.progress.history

    ious = [line["val_iou"] for line in lines]
    assert result.progress.best_score == max(ious)
    assert result.progress.best_epoch == ious.index(max(ious)) + 1
    best, last = (checkpoint.read_metadata(folder / f"{name}.safetensors") for name in ("best", "last"))
    assert (best.epoch, last.epoch) == (result.progress.best_epoch, 3)
    assert best.metrics["val_iou"] == max(ious)
    assert last.metrics == {k: v for k, v in lines[-1].items() if k.startswith("val_")}
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_record_names_the_sam_and_that_it_has_not_changed(run: Train, build, tmp_path: Path) -> None:
    run(epochs=1)
    record = json.loads((tmp_path / "run/environment.json").read_text())
    sam = build("SAM").sam.weights_sha256()
    assert record["sam_sha256"] == record["sam_sha256_after"] == sam
    assert checkpoint.read_metadata(tmp_path / "run/last.safetensors").sam_sha256 == sam
    assert record["seed"] == 5
    assert record["trainable_parameters"] == 32 * 128 + 128 + 128 * 128 + 128
    assert record["device"] == "cpu"
    assert torch.__version__.startswith(record["packages"]["torch"].split("+")[0])


def test_what_is_trained_is_what_is_saved_and_scored(run: Train, build, tmp_path: Path, phantoms: Path) -> None:
    """The validation figures of the log are those of the checkpoint beside it."""
    from promise.evaluation.config import EvalConfig
    from promise.evaluation.evaluate import evaluate

    result = run(net="APM_IPS_cross", epochs=2, augment="basic_color", lr=1e-2)
    first = build("APM_IPS_cross", num_points=4, seed=5).learned_state()
    last = weights(tmp_path / "run")
    assert [name for name in first if torch.equal(first[name], last[name])] == []
    scored = evaluate(
        EvalConfig(
            ckpt=str(tmp_path / "run/last.safetensors"),
            split_csv=(str(phantoms),),
            split="val",
            workers=0,
            device="cpu",
            precision="fp32",
            quiet=True,
        )
    )
    means = scored.summary["datasets"]["split"]["means"]["native"]
    assert result.progress.history[-1]["val_iou"] == pytest.approx(means["iou"], abs=2e-3)
    assert result.progress.history[-1]["val_dice"] == pytest.approx(means["dice"], abs=2e-3)


def test_training_learns(run: Train) -> None:
    history = run(epochs=12, lr=1e-2, augment="basic_color", scheduler="constant").progress.history
    losses = [row["train_loss"] for row in history]
    assert losses[-1] < 0.985 * losses[0]


def test_the_resnet_head_trains(run: Train, tmp_path: Path) -> None:
    run(net="APM_IPS_resnet", epochs=1)
    state = weights(tmp_path / "run")
    assert state["apm.head.resnet.bn1.num_batches_tracked"] == 3
    assert all(value.isfinite().all() for value in state.values())


def test_the_same_seed_gives_the_same_run_and_another_another(run: Train, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run(output=str(tmp_path / name), seed=seed, epochs=2)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


class Keeper(Callback):
    """Keeps the trainer."""

    def on_train_start(self, trainer: Trainer) -> None:
        self.trainer = trainer


def test_workers_change_nothing(run: Train, tmp_path: Path) -> None:
    run(output=str(tmp_path / "a"), epochs=2)
    keeper = Keeper()
    run(output=str(tmp_path / "b"), epochs=2, workers=2, callbacks=[keeper])
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert keeper.trainer.progress.epoch == 2
    assert multiprocessing.active_children() == []  # worker processes have ended although the trainer is alive


def test_a_drawn_seed_is_recorded_and_repeats_the_run(run: Train, tmp_path: Path) -> None:
    run(seed=None, epochs=1)
    seed = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["seed"]
    run(seed=seed, epochs=1, output=str(tmp_path / "again"))
    assert same(weights(tmp_path / "run"), weights(tmp_path / "again"))


def test_the_config_of_a_run_repeats_it(run: Train, tmp_path: Path) -> None:
    from promise.runtime.settings import read_yaml

    run(epochs=1)
    values = read_yaml(tmp_path / "run/config.yaml", TrainConfig)
    train(TrainConfig(**{**values, "output": str(tmp_path / "again")}))
    assert same(weights(tmp_path / "run"), weights(tmp_path / "again"))


# --- killed and resumed ---------------------------------------------------------------------------

# Validated after epochs 2 and 4; the second is the best one.
RESUMED = {"epochs": 4, "net": "APM_IPS_cross", "scheduler": "cosine", "warmup_epochs": 0.5, "validate_every": 2}


def test_a_run_starts_from_the_weights_of_a_checkpoint(run: Train, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run(output=str(first))
    run(output=str(second), init_from=str(first / "last.safetensors"), epochs=1, lr=1e-12, seed=6)
    run(epochs=1, lr=1e-12, seed=6)
    learned, ours, fresh = weights(first), weights(second), weights(tmp_path / "run")
    assert all(torch.allclose(ours[name], learned[name], atol=1e-6) for name in learned)
    assert not all(torch.allclose(ours[name], fresh[name], atol=1e-6) for name in learned)


def test_images_of_the_checkpoint_that_a_run_started_from_are_in_its_record(run: Train, tmp_path: Path) -> None:
    first = tmp_path / "first" / "best.safetensors"
    run(output=str(first.parent), epochs=1)
    stored = checkpoint.read_metadata(first)
    other = {"train": ["0" * 16], "tune": ["1" * 16]}
    checkpoint.rewrite_metadata(first, dataclasses.replace(stored, seen=other))
    run(init_from=str(first), epochs=1)
    seen = checkpoint.read_metadata(tmp_path / "run" / "best.safetensors").seen
    assert seen == {**stored.seen, "train": [*stored.seen["train"], "0" * 16], "tune": ["1" * 16]}


def test_a_run_does_not_start_from_another_net_or_sam(run: Train, user_error, tmp_path: Path) -> None:
    first = tmp_path / "first" / "best.safetensors"
    run(output=str(first.parent), epochs=1)
    with user_error("another-net"):
        run(init_from=str(first), net="APM_IPS_resnet")
    with user_error("another-backbone"):
        run(init_from=str(first), sam="lite_medsam")
    with user_error("missing-checkpoint"):
        run(init_from=str(tmp_path / "absent.safetensors"))
    checkpoint.rewrite_metadata(first, dataclasses.replace(checkpoint.read_metadata(first), sam_sha256="0" * 64))
    with user_error("another-sam"):
        run(init_from=str(first))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def unbroken(tiny_vit: str, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    train(TrainConfig(**{**SMALL, **RESUMED, "split_csv": str(phantoms), "output": str(folder)}))
    return folder


def assert_same_run(folder: Path, unbroken: Path) -> None:
    assert rows(folder) == rows(unbroken)
    assert len((folder / "log.csv").read_text().splitlines()) == 1 + len(rows(unbroken))
    for name in ("last", "best"):
        assert same(weights(folder, name), weights(unbroken, name))
        ours, theirs = (checkpoint.read_metadata(f / f"{name}.safetensors") for f in (folder, unbroken))
        assert (ours.epoch, ours.metrics, ours.quality) == (theirs.epoch, theirs.metrics, theirs.quality)


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_killed_after_an_epoch_and_resumed(
    epoch: int, run: Train, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RunRecord.save_epoch

    def write_and_die(self: RunRecord, net: Any, progress: Progress, state: Any, **more: Any) -> None:
        write(self, net, progress, state, **more)
        if progress.epoch == epoch:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "save_epoch", write_and_die)
        with pytest.raises(Killed):
            run(**RESUMED)
    assert len(rows(tmp_path / "run")) == epoch
    run(**RESUMED, resume=True)
    assert_same_run(tmp_path / "run", unbroken)


PLACES = [("before", 4), ("best", 2), ("last", 2), ("state", 4), ("log", 2)]


@pytest.mark.parametrize(("place", "epoch"), PLACES)
def test_killed_between_two_files_and_resumed(
    place: str, epoch: int, run: Train, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed just before one of an epoch's files is written; ``log``: after the state, before the log."""
    reached = {"epoch": 0}
    write = RunRecord.save_epoch
    save, save_state, append = checkpoint.save, RunFolder.save_state, RunLog.append

    def counted(self: RunRecord, net: Any, progress: Progress, state: Any, **more: Any) -> None:
        reached["epoch"] = progress.epoch
        if (place, reached["epoch"]) == ("before", epoch):
            raise Killed
        write(self, net, progress, state, **more)

    def dying(real: Callable[..., Any], here: Callable[..., bool]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            if reached["epoch"] == epoch and here(*args):
                raise Killed
            return real(*args, **keywords)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "save_epoch", counted)
        patch.setattr(checkpoint, "save", dying(save, lambda _n, path, _m: path.stem == place))
        patch.setattr(RunFolder, "save_state", dying(save_state, lambda *_: place == "state"))
        patch.setattr(RunLog, "append", dying(append, lambda *_: place == "log"))
        with pytest.raises(Killed):
            run(**RESUMED)
    run(**RESUMED, resume=True)
    assert_same_run(tmp_path / "run", unbroken)


def test_killed_inside_an_epoch_and_resumed(run: Train, unbroken: Path, tmp_path: Path) -> None:

    class Interrupt(Callback):
        def on_step_end(self, trainer: Trainer, step: int, loss_terms: Any) -> None:
            if step == 5:  # the second step of the second epoch
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(**RESUMED, callbacks=[Interrupt()])
    assert len(rows(tmp_path / "run")) == 1
    run(**RESUMED, resume=True)
    assert_same_run(tmp_path / "run", unbroken)


class Send(Callback):
    """Sends a signal to its own process in a step, before the state of the step can be saved."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_step_end(self, trainer: Trainer, step: int, loss_terms: Any) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


def run_in_child(settings: dict[str, Any], *callbacks: Callback, errors: Path | None = None) -> int:
    """Train in a second process as promise-train does; returns its exit status, or minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if errors is not None:
                sys.stderr = errors.open("w", buffering=1)
            start_logging(quiet=True)
            status = run_command("promise-train", lambda: train(TrainConfig(**settings), callbacks=callbacks) and 0)
        except SystemExit as error:
            status = error.code
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def steps_within_epoch(folder: Path) -> tuple[int, int]:
    """Complete epochs, and steps of the next one, of the state on disk."""
    state = torch.load(folder / "state/resume.pt", weights_only=True)
    inside = state.get("epoch")
    return state["progress"]["epoch"], 0 if inside is None else inside["processes"][0]["sums"]["steps"]


posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals")


@posix
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_saves_the_step_and_ends_the_training(
    name: str, status: int, run: Train, settings: dict[str, Any], unbroken: Path, tmp_path: Path
) -> None:
    ended = run_in_child({**settings, **RESUMED}, Send(getattr(signal, name), 5), errors=tmp_path / "errors")
    errors = (tmp_path / "errors").read_text()
    assert ended == status, errors
    assert f"after 1 of 4 epochs and 2 steps. Resume with: promise-train --output {tmp_path}/run --resume" in errors
    assert steps_within_epoch(tmp_path / "run") == (1, 2)
    if name == "SIGTERM":
        run(**RESUMED, resume=True)
        assert_same_run(tmp_path / "run", unbroken)


@posix
def test_a_signal_during_validation_keeps_the_epoch(
    run: Train, settings: dict[str, Any], unbroken: Path, tmp_path: Path
) -> None:
    class SendLate(Callback):
        def on_validation_end(self, trainer: Trainer, scores: dict[str, float]) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    assert run_in_child({**settings, **RESUMED}, SendLate()) == 143
    assert steps_within_epoch(tmp_path / "run") == (2, 0)
    run(**RESUMED, resume=True)
    assert_same_run(tmp_path / "run", unbroken)


@posix
def test_sigkill_while_the_state_is_written_and_resumed(
    run: Train, settings: dict[str, Any], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real kill, with the state file half written."""
    real = torch.save

    def half(value: Any, path: Any, *rest: Any) -> None:
        real(value, path, *rest)
        if value["progress"]["epoch"] == 3:
            os.truncate(path, Path(path).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        assert run_in_child({**settings, **RESUMED}) == -signal.SIGKILL
    assert len(rows(tmp_path / "run")) == 2
    run(**RESUMED, resume=True)
    assert_same_run(tmp_path / "run", unbroken)


# The state is saved after every step; 7: between two epochs; 11: with worker processes.
@posix
@pytest.mark.parametrize("step", [2, 7, 11])
def test_sigkill_within_an_epoch_loses_at_most_what_was_not_saved(
    step: int, run: Train, settings: dict[str, Any], unbroken: Path, tmp_path: Path
) -> None:
    more = {"save_every": 1e-9, "workers": 2 if step == 11 else 0}
    assert run_in_child({**settings, **RESUMED, **more}, Send(signal.SIGKILL, step)) == -signal.SIGKILL
    epoch, steps = steps_within_epoch(tmp_path / "run")
    assert 3 * epoch + steps == step - 1
    run(**RESUMED, resume=True, workers=more["workers"])
    assert_same_run(tmp_path / "run", unbroken)


@posix
def test_a_state_is_saved_before_a_validation_once_a_minute(
    run: Train, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promise.training.pauses._BEFORE_VALIDATION", 1e-9)

    class Die(Trainer):
        def validate(self) -> dict[str, float]:
            raise Killed

    with pytest.raises(Killed):
        run(trainer_class=Die)
    assert steps_within_epoch(tmp_path / "run") == (0, 3)
    whole = run(output=str(tmp_path / "whole"))
    run(resume=True)
    assert rows(tmp_path / "run") == rows(whole.folder)


def test_save_every_0_saves_only_whole_epochs(run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunRecord, "save_within_epoch", lambda *_: pytest.fail("saved"))
    assert run(epochs=1, save_every=0.0).progress.epoch == 1


def test_resuming_within_an_epoch_needs_as_many_processes(run: Train, user_error, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(callbacks=[Send(signal.SIGTERM, 2)])
    path = tmp_path / "run/state/resume.pt"
    state = torch.load(path, weights_only=True)
    state["epoch"]["processes"] *= 2
    torch.save(state, path)
    with user_error("changed-processes"):
        run(resume=True)


def test_resuming_a_finished_run_changes_nothing(run: Train, tmp_path: Path) -> None:
    run(epochs=2)
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("last.safetensors", "log.csv")}
    result = run(epochs=2, resume=True)
    assert result.progress.epoch == 2
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}


def test_resuming_needs_no_setting_but_the_folder(run: Train, unbroken: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "append", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(**RESUMED)
    train(TrainConfig(output=str(tmp_path / "run"), resume=True, quiet=True))
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lr": 5e-3}, "--lr is 0.005 now and was 0.001"),
        ({"epochs": 9}, "--epochs is 9 now and was 2"),
        ({"net": "APM_cross", "seed": 8}, "--net is APM_cross now and was IPS_GT.*--seed is 8 now and was 5"),
        ({"batch_size": 3}, "--batch-size is 3 now and was 2"),
    ],
)
def test_resuming_with_other_settings_is_refused(changed: dict[str, Any], words: str, run: Train, tmp_path) -> None:
    run(epochs=2)
    before = (tmp_path / "run/last.safetensors").read_bytes()
    with pytest.raises(UserError, match=words) as caught:
        run(**{"epochs": 2, **changed}, resume=True)
    assert caught.value.code == "changed-settings"
    assert (tmp_path / "run/last.safetensors").read_bytes() == before


@pytest.mark.parametrize("spelling", ["IPS_GT", "IPS_GT_resnet"])
def test_resuming_with_the_same_words_is_no_change(spelling: str, run: Train) -> None:
    run(epochs=1, net=spelling)
    assert run(epochs=1, net=spelling, resume=True).progress.epoch == 1


def test_resuming_on_another_sam_is_refused(run: Train, build, tmp_path: Path) -> None:
    sam = {k.removeprefix("sam."): v for k, v in build("SAM").state_dict().items()}
    torch.save(sam, tmp_path / "sam.pth")
    run(epochs=1, sam_checkpoint=str(tmp_path / "sam.pth"))
    sam["mask_decoder.iou_token.weight"] += 1
    torch.save(sam, tmp_path / "sam.pth")
    with pytest.raises(UserError) as caught:
        run(epochs=1, sam_checkpoint=str(tmp_path / "sam.pth"), resume=True)
    assert caught.value.code == "other-sam"


def test_resuming_nothing_is_refused(run: Train) -> None:
    with pytest.raises(MissingFileError) as caught:
        run(resume=True)
    assert caught.value.code == "nothing-to-resume"


def test_resuming_a_damaged_state_is_refused(run: Train, tmp_path: Path) -> None:
    run(epochs=1)
    state = tmp_path / "run/state/resume.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError) as caught:
        run(epochs=1, resume=True)
    assert caught.value.code == "damaged-state"


# --- an existing folder ---------------------------------------------------------------------------


def test_an_existing_run_is_refused_or_replaced(run: Train, tmp_path: Path) -> None:
    run(epochs=2)
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(ExistingRunError) as caught:
        run(epochs=1)
    assert caught.value.code == "existing-run"
    assert len(rows(tmp_path / "run")) == 2
    run(epochs=1, overwrite=True)
    assert len(rows(tmp_path / "run")) == 1
    assert (tmp_path / "run/notes.txt").read_text() == "mine"
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["overwrite"] is False


def test_a_second_training_in_one_folder_is_refused(run: Train, user_error, hold_folder, tmp_path: Path) -> None:
    run(epochs=1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    hold_folder(tmp_path / "run")
    for settings in ({"resume": True}, {"overwrite": True}):
        with user_error("folder-in-use"):
            run(epochs=1, **settings)
    hold_folder(tmp_path / "new")
    with user_error("folder-in-use"):
        run(epochs=1, output=str(tmp_path / "new"))
    assert all(path.read_bytes() == content for path, content in before.items())


class KilledInSaving(RunRecord):
    """Kills the process after a number of checkpoints."""

    left = 1

    def save_checkpoint(self, *arguments: Any) -> None:
        super().save_checkpoint(*arguments)
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("files", [1, 2])
def test_a_run_killed_in_its_first_saving_starts_again(files: int, run: Train, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(KilledInSaving, "left", files)
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr("promise.training.run.RunRecord", KilledInSaving)
        run(epochs=1)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert (tmp_path / "run/best.safetensors").is_file()
    assert run(epochs=1).progress.epoch == 1


def test_a_full_disk_keeps_the_epochs_before(run: Train, user_error, limit_file_size, tmp_path: Path) -> None:
    class Fill(Callback):
        def on_epoch_end(self, trainer: Trainer, row: Any) -> None:
            if trainer.progress.epoch == 2:
                limit_file_size(5000)

    with user_error("output-not-writable") as caught:
        run(callbacks=[Fill()])
    limit_file_size(10**9)
    assert all(fact in str(caught.value) for fact in ("last.safetensors", "Epoch 1 is kept", "--resume"))
    assert len(str(caught.value).splitlines()) == 1
    assert checkpoint.load(tmp_path / "run/best.safetensors")[1].epoch == 1
    resumed = run(resume=True)
    assert resumed.progress.epoch == 3
    whole = run(output=str(tmp_path / "whole"))
    assert same(weights(resumed.folder), weights(whole.folder))


# --- selection ------------------------------------------------------------------------------------


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets a score of the validations, one after another."""

    def set_scores(values: Sequence[float], name: str = "iou") -> None:
        remaining = iter(values)
        others = {"loss": 1.0, "dice": 0.5, "iou": 0.5}
        monkeypatch.setattr(Trainer, "validate", lambda self: {**others, name: next(remaining)})

    return set_scores


def test_the_best_epoch_is_the_first_with_the_highest_score(run: Train, scores, tmp_path: Path) -> None:
    scores([0.1, 0.4, 0.3, 0.4])
    progress = run(epochs=4).progress
    assert (progress.best_epoch, progress.best_score) == (2, 0.4)
    assert checkpoint.read_metadata(tmp_path / "run/best.safetensors").epoch == 2
    assert not same(weights(tmp_path / "run", "best"), weights(tmp_path / "run", "last"))


def test_early_stopping_counts_validations_without_a_better_one(run: Train, scores) -> None:
    scores([0.1, 0.4, 0.3, 0.4, 0.2, 0.9])
    progress = run(epochs=6, early_stopping=2).progress
    assert (progress.epoch, progress.best_epoch) == (4, 2)


def test_a_run_stopped_in_its_first_epoch_is_no_run(run: Train, monkeypatch, tmp_path: Path) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert (tmp_path / "run/config.yaml").is_file()
    with pytest.raises(MissingFileError) as caught:
        run(resume=True)
    assert caught.value.code == "nothing-to-resume"
    assert "before its first epoch was saved" in str(caught.value)
    assert run().progress.epoch == 3


def test_an_interrupted_run_logs_how_to_resume(run: Train, tmp_path: Path, caplog) -> None:
    class Interrupt(Trainer):
        def train_epoch(self, epoch: int) -> dict[str, float]:
            if epoch == 1:
                raise KeyboardInterrupt
            return super().train_epoch(epoch)

    with pytest.raises(KeyboardInterrupt):
        run(trainer_class=Interrupt)
    assert (
        f"training stopped after 1 of 3 epochs. Resume with: promise-train --output {tmp_path / 'run'} --resume"
        in caplog.text
    )


def test_resuming_a_run_that_stopped_early_trains_no_further(run: Train, scores, tmp_path: Path) -> None:
    scores([0.4, 0.3, 0.2, *[0.9] * 9])
    assert run(epochs=6, early_stopping=2).progress.epoch == 3
    before = weights(tmp_path / "run")
    assert run(epochs=6, early_stopping=2, resume=True).progress.epoch == 3
    assert same(weights(tmp_path / "run"), before)


def test_validation_every_few_epochs_and_at_the_end(run: Train, tmp_path: Path) -> None:
    run(epochs=5, validate_every=2)
    assert [row["epoch"] for row in rows(tmp_path / "run") if row["val_iou"] is not None] == [2, 4, 5]
    assert [row["epoch"] for row in rows(tmp_path / "run") if row["val_loss"] is None] == [1, 3]


@pytest.mark.parametrize(
    ("select", "values", "best"),
    [("dice", [0.1, 0.9, 0.3], 2), ("loss", [0.9, 0.2, 0.3], 2), ("loss", [0.1, 0.2, 0.1], 1)],
)
def test_any_validation_score_selects(select: str, values: list[float], best: int, run: Train, scores) -> None:
    scores(values, select)
    progress = run(select=select).progress
    assert (progress.best_epoch, progress.best_score) == (best, values[best - 1])


def test_early_stopping_on_a_loss(run: Train, scores) -> None:
    scores([0.5, 0.4, 0.6, 0.7, 0.1], "loss")
    progress = run(epochs=5, select="loss", early_stopping=2).progress
    assert (progress.epoch, progress.best_epoch) == (4, 2)


@pytest.fixture
def two_terms(tiny_vit: str) -> Iterator[str]:
    """A net whose prompter has a loss of its own."""
    spec = dataclasses.replace(
        NETS["APM_cross"],
        name="two_terms",
        aliases=(),
        prompt_loss=lambda prediction, _: prediction.points.xy.mean() / 64,
    )
    register(spec)
    yield spec.name
    del NETS[spec.name]
    del registry._SHORT[spec.name]


def test_each_term_of_a_loss_is_logged_and_can_select(run: Train, two_terms: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the [logging] extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    progress = run(net=two_terms, select="loss_prompts", epochs=2, tensorboard=True).progress
    names = ("loss", "loss_mask", "loss_prompts")
    columns = [*(f"train_{name}" for name in names), *(f"val_{name}" for name in (*names, "dice", "iou"))]
    assert (tmp_path / "run/log.csv").read_text().splitlines()[0].split(",") == ["epoch", "lr", *columns, "seconds"]
    lines = rows(tmp_path / "run")
    for row in lines:
        for split in ("train", "val"):
            parts = row[f"{split}_loss_mask"] + row[f"{split}_loss_prompts"]
            assert row[f"{split}_loss"] == pytest.approx(parts, abs=1e-6)
    assert progress.best_score == min(row["val_loss_prompts"] for row in lines)
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert {*columns, "lr"} <= set(events.Tags()["scalars"])


def test_an_unknown_score_lists_those_of_the_net(run: Train, two_terms: str, tmp_path: Path) -> None:
    for net, known in (("IPS_GT", "iou, dice, loss."), (two_terms, "iou, dice, loss, loss_mask, loss_prompts.")):
        with pytest.raises(UserError, match=f"'loss_mas'.*Known: {known}") as caught:
            run(net=net, select="loss_mas")
        assert caught.value.code == "unknown-validation-score"
    assert not (tmp_path / "run").exists()


def test_without_validation_rows_the_best_is_the_last(run: Train, own_phantoms: Path, tmp_path: Path, caplog) -> None:
    lines = [line for line in own_phantoms.read_text().splitlines() if ",val," not in line]
    table = own_phantoms.with_name("no_val.csv")
    table.write_text("\n".join(lines) + "\n")
    progress = run(split_csv=str(table), epochs=2).progress
    assert (progress.best_epoch, progress.best_score) == (2, None)
    assert same(weights(tmp_path / "run", "best"), weights(tmp_path / "run"))
    assert "no row has train_type 'val'" in caplog.text
    assert [row["val_iou"] for row in rows(tmp_path / "run")] == [None, None]


# --- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.3), ("adam", 1e-3)])
def test_two_halves_accumulated_are_one_batch(
    optimizer: str, lr: float, run: Train, own_phantoms: Path, tmp_path: Path
) -> None:
    lines = own_phantoms.read_text().splitlines()
    table = own_phantoms.with_name("four.csv")  # without a rest: 4, or twice 2
    table.write_text("\n".join(lines[:5]) + "\n")
    common = {"split_csv": str(table), "optimizer": optimizer, "lr": lr, "loss": "bce", "epochs": 2}
    run(**common, batch_size=4, output=str(tmp_path / "whole"))
    run(**common, batch_size=2, accumulate=2, output=str(tmp_path / "halves"))
    run(**common, batch_size=2, output=str(tmp_path / "two"))
    whole, halves, two = (weights(tmp_path / name) for name in ("whole", "halves", "two"))
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, atol=1e-5, rtol=0)
    assert any((two[name] - value).abs().max() > 1e-4 for name, value in whole.items())


def test_clipping_bounds_the_step(run: Train, build, tmp_path: Path) -> None:
    common = {"optimizer": "sgd", "momentum": 0.0, "scheduler": "constant", "epochs": 1, "batch_size": 6, "lr": 1.0}
    first = build("IPS_GT", num_points=4, seed=5).learned_state()
    lengths = []
    for name, clip in (("free", 0.0), ("clipped", 1e-3)):
        run(**common, clip_norm=clip, output=str(tmp_path / name))
        state = weights(tmp_path / name)
        lengths.append(float(torch.stack([(state[k] - first[k]).norm() for k in first]).norm()))
    assert lengths[0] > 2e-3
    assert lengths[1] == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(("drop", "steps"), [(False, 2), (True, 1)])
def test_the_last_smaller_batch(drop: bool, steps: int, run: Train, tmp_path: Path) -> None:
    run(net="APM_IPS_resnet", epochs=1, batch_size=4, drop_last=drop)
    assert weights(tmp_path / "run")["apm.head.resnet.bn1.num_batches_tracked"] == steps


def test_dropping_the_only_batch_is_refused(run: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(batch_size=7, drop_last=True)
    assert caught.value.code == "no-batch"
    assert not (tmp_path / "run").exists()


def test_the_learning_rate_follows_its_schedule(run: Train, tmp_path: Path) -> None:
    run(epochs=3, scheduler="cosine", lr=1e-3)
    # Three steps an epoch; the log shows the last: epochs 2/3, 5/3 and 8/3 of 3.
    expected = [1e-3 * (1 + torch.cos(torch.tensor(torch.pi * t / 9)).item()) / 2 for t in (2, 5, 8)]
    assert [row["lr"] for row in rows(tmp_path / "run")] == pytest.approx(expected, rel=1e-5)


def test_a_run_that_diverges_ends_with_one_error_and_keeps_what_it_had(run: Train, tmp_path: Path) -> None:

    class Exploding(Trainer):
        def learning_rate(self, epoch: float) -> float:
            return 1e30 if 1 <= epoch < 2 else super().learning_rate(epoch)

    with pytest.raises(UserError, match=r"the loss of epoch 2 is (nan|inf)") as caught:
        run(trainer_class=Exploding)
    assert caught.value.code == "diverged"
    assert len(rows(tmp_path / "run")) == 1
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    assert run(resume=True).progress.epoch == 3


def test_a_run_that_diverges_in_its_last_step_keeps_no_broken_weights(run: Train, tmp_path: Path) -> None:
    """One step an epoch: the loss is read before the step that breaks the weights."""
    with pytest.raises(UserError) as caught:
        run(lr=1e30, batch_size=6, net="APM_IPS_cross")
    assert caught.value.code == "diverged"
    kept = [name for name in ("best", "last") if (tmp_path / "run" / f"{name}.safetensors").exists()]
    assert all(v.isfinite().all() and v.abs().max() < 1e20 for n in kept for v in weights(tmp_path / "run", n).values())


class DividedByArea(Trainer):
    """A loss that is infinite for an image without foreground."""

    def __init__(self, model: Any, **parts: Any) -> None:
        super().__init__(model, **parts)
        self.criterion = Criterion(lambda logits, target: bce_dice(logits, target) / target.sum().clamp(max=1))


@pytest.fixture
def with_empty_mask(own_phantoms: Path) -> tuple[Path, str]:
    """A split CSV, and the name of the one train row whose mask is empty."""
    row = read_table(str(own_phantoms)).split("train")[2]
    cv2.imwrite(str(row.mask), np.zeros((64, 64), np.uint8))
    return own_phantoms, row.name


BAD = {"trainer_class": DividedByArea, "batch_size": 1, "epochs": 2, "augment": "none", "shuffle": False}


def test_an_infinite_loss_names_its_batch(run: Train, user_error, with_empty_mask, tmp_path: Path) -> None:
    table, name = with_empty_mask
    with user_error("diverged") as caught:
        run(**BAD, split_csv=str(table))
    assert f"that of the batch {name}. Lower" in str(caught.value)
    assert not (tmp_path / "run/state").exists()
    with user_error("diverged"):  # a state that is saved in time, but not after the bad batch
        run(**BAD, split_csv=str(table), save_every=1e-9)
    kept = torch.load(tmp_path / "run/state/resume.pt", weights_only=True)["learned"]
    assert all(value.isfinite().all() for value in kept.values())


def test_bad_batches_are_skipped_named_and_counted(
    run: Train, user_error, with_empty_mask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table, name = with_empty_mask
    steps = []

    class Count(Callback):
        def on_step_end(self, trainer: Trainer, step: int, loss_terms: Any) -> None:
            steps.append(step)

    progress = run(**BAD, split_csv=str(table), skip_bad_batches=2, callbacks=[Count()]).progress
    assert progress.skipped == 2
    assert caplog.text.count(f"the loss of the batch {name} is infinite or NaN. Its step is skipped") == 2
    assert json.loads((tmp_path / "run/environment.json").read_text())["skipped_batches"] == 2
    assert all(math.isfinite(row["train_loss"]) for row in progress.history)
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    assert len(steps) == 10  # of 12
    with user_error("diverged") as caught:
        run(**BAD, split_csv=str(table), skip_bad_batches=1, overwrite=True)
    assert name in str(caught.value)
    assert "Epoch 1 is kept" in str(caught.value)
    resumed = run(**BAD, split_csv=str(table), skip_bad_batches=2, resume=True)
    assert resumed.progress.skipped == 2
    assert resumed.progress.history[-1]["train_loss"] == progress.history[-1]["train_loss"]


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "codes"),
    [
        ({"net": "APM_IPS_GT_cross"}, ["not-trainable"]),
        ({"net": "SAM"}, ["not-trainable"]),
        ({"net": "APM_resnett"}, ["unknown-net"]),
        ({"sam": "tiny_vitt"}, ["unknown-backbone"]),
        ({"point_labels": "1-x"}, ["invalid-point-labels"]),
        ({"loss": "dise"}, ["unknown-loss"]),
        ({"optimizer": "adm"}, ["unknown-optimizer"]),
        ({"scheduler": "cosin"}, ["unknown-scheduler"]),
        ({"freeze": "FZ9"}, ["unknown-freeze-switch"]),
        ({"select": "iuo"}, ["unknown-validation-score"]),
        ({"epochs": 0, "lr": 0.0, "batch_size": 0}, ["out-of-range"] * 3),
        ({"split_csv": None}, ["missing-split-csv"]),
        (
            {"lr": 0.0, "loss": "dise", "optimizer": "adm", "net": "SAMM", "select": "iuo"},
            ["out-of-range", "unknown-net", "unknown-loss", "unknown-optimizer"],
        ),
        ({"loss": "dise", "select": "iuo"}, ["unknown-loss", "unknown-validation-score"]),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    settings: dict[str, Any], codes: list[str], run: Train, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        run(**{"split_csv": "nowhere.csv", **settings})  # found before the table is opened
    assert list(caught.value.codes) == codes
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "gpu"),
        ("num_points", 3),
        ("point_labels", "1-0"),
        ("augment", "train2_colour"),
        ("precision", "fp16"),
    ],
)
def test_settings_that_other_packages_check(name: str, value: Any, run: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(split_csv="nowhere.csv", **{name: value})
    assert len(caught.value.codes) == 1
    assert not isinstance(caught.value, MissingFileError)  # found before the table is opened
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["light", "train1_color"])
def test_the_code_of_an_augmentation_is_stored(name: str, run: Train, tmp_path: Path) -> None:
    run(epochs=1, augment=name)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["augment"] == "train1_color"
    assert run(epochs=1, augment="light", resume=True).progress.epoch == 1


def test_missing_weights_are_refused(run: Train, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        run(sam_checkpoint="/nowhere.pth")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "code"), [("encoders", "FZ2"), ("all", "FZ0")])
def test_the_code_of_a_freeze_setting_is_stored(name: str, code: str, run: Train, tmp_path: Path) -> None:
    run(epochs=1, freeze=name)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["freeze"] == code
    metadata = checkpoint.read_metadata(tmp_path / "run/last.safetensors")
    assert (metadata.freeze, metadata.config["freeze"]) == (code, code)
    trained = any(entry.startswith("sam.mask_decoder.") for entry in weights(tmp_path / "run"))
    assert trained == (code == "FZ2")
    assert run(epochs=1, freeze=name, resume=True).progress.epoch == 1
    assert train(TrainConfig(output=str(tmp_path / "run"), resume=True, quiet=True)).progress.epoch == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_cuda_is_refused(run: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        run(device="cuda")
    assert not (tmp_path / "run").exists()


def test_a_table_without_training_rows_is_refused(run: Train, own_phantoms: Path) -> None:
    table = own_phantoms.with_name("no_train.csv")
    table.write_text("\n".join(line for line in own_phantoms.read_text().splitlines() if ",train," not in line) + "\n")
    with pytest.raises(UserError) as caught:
        run(split_csv=str(table))
    assert caught.value.code == "no-train-rows"


def test_overwrite_removes_earlier_tensorboard_events(run: Train, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the [logging] extra")
    run(epochs=1, tensorboard=True)
    (first,) = (tmp_path / "run/tensorboard").iterdir()
    earlier = first.rename(first.with_name("events.out.tfevents.1"))  # as if written in another second
    run(epochs=1, tensorboard=True, overwrite=True)
    (second,) = (tmp_path / "run/tensorboard").iterdir()
    assert second != earlier


def test_images_in_both_train_and_val_cause_a_warning(run: Train, phantoms: Path, tmp_path: Path, caplog) -> None:
    """By content: the copy has another name."""
    lines = phantoms.read_text().splitlines()
    data = tmp_path / "data"
    first = next(line for line in lines if ",train," in line)
    for kind, name in zip(("images", "masks"), first.split(",")[::2], strict=True):
        (data / kind).mkdir(parents=True)
        (data / kind / "copy.png").write_bytes((phantoms.parent / name).read_bytes())
    for line in lines[1:]:
        for name in line.split(",")[::2]:
            (data / name).write_bytes((phantoms.parent / name).read_bytes())
    (data / "split.csv").write_text("\n".join([*lines, "images/copy.png,val,masks/copy.png"]) + "\n")
    run(split_csv=str(data / "split.csv"), epochs=1)
    expected = "1 of the 4 validation images are also"
    assert caplog.text.count(expected) == 1
    record = json.loads((tmp_path / "run/environment.json").read_text())
    assert [words[: len(expected)] for words in record["warnings"]] == [expected]
    caplog.clear()
    run(output=str(tmp_path / "clean"), epochs=1)
    assert "validation images" not in caplog.text
    assert json.loads((tmp_path / "clean/environment.json").read_text())["warnings"] == []


DENSE: dict[str, Any] = {
    "net": "APM_dense",
    "epochs": 4,
    "cache": "all",
    "augment": "none",
    "feature_augment": "affine",
    "ema": 0.9,
    "optimizer": "adamw",
    "select": "dice",
    "num_points": 4,
}


@pytest.mark.parametrize("net", ["APM_dense", "APM_hybrid"])
def test_a_map_of_lesions_is_trained_without_decoding_and_resumes_bit_for_bit(
    net: str, run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if net == "APM_hybrid":
        pytest.importorskip(WEIGHTS_PACKAGE, reason="needs the [hybrid] extra")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    dense = {**DENSE, "net": net, "cache_dir": str(tmp_path / "features")}
    decodes: list[bool] = []

    class Counting(Trainer):
        def train_epoch(self, epoch: int) -> dict[str, float]:
            with monkeypatch.context() as patch:
                patch.setattr(type(self.net.sam), "decode", None)
                decodes.append(self.criterion.decodes)
                return super().train_epoch(epoch)

    caplog.set_level("INFO")
    run(**dense, output=str(whole), trainer_class=Counting)
    assert decodes == [False] * 4
    assert checkpoint.read_metadata(whole / "best.safetensors").quality is None
    assert "lesions are found in fewer than 20 validation rows" in caplog.text
    losses = [row["train_loss"] for row in rows(whole)]
    assert float(losses[-1]) < float(losses[0])

    class Stop(Callback):
        def on_epoch_end(self, trainer: Trainer, row: Any) -> None:
            if row["epoch"] == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(**dense, output=str(parts), callbacks=[Stop()])
    run(**dense, output=str(parts), resume=True)
    assert_same_run(parts, whole)


SHIFT: dict[str, Any] = {**DENSE, "net": "APM_IPS_dense", "epochs": 2, "shift_epochs": 2, "clip_norm": 1.0}


class LowThreshold(Callback):
    """Finds lesions on maps that are hardly trained, and keeps the learned weights after each epoch."""

    def __init__(self) -> None:
        self.learned: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Trainer) -> None:
        assert trainer.net.apm is not None
        assert trainer.net.lesions is not None
        trainer.net.apm.lesions = dataclasses.replace(trainer.net.lesions, threshold=0.3, min_probability=0.0, fuse=0.0)

    def on_epoch_end(self, trainer: Trainer, row: Any) -> None:
        self.learned.append({name: value.clone() for name, value in trainer.net.learned_state().items()})


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(prefix)}


def test_the_first_stage_trains_the_map_as_without_a_token_shift(run: Train, tmp_path: Path) -> None:
    shift, dense = tmp_path / "shift", tmp_path / "dense"
    two, one = LowThreshold(), LowThreshold()
    run(**SHIFT, output=str(shift), callbacks=[two])
    run(**{**SHIFT, "net": "APM_dense", "shift_epochs": None}, output=str(dense), callbacks=[one])
    for ours, theirs in zip(two.learned[:2], one.learned, strict=True):
        assert same(part(ours, "apm."), theirs)
        assert not ours["ips.lin2.weight"].any()
    scores = ("epoch", "lr", "train_loss", "val_dice", "val_iou")
    assert [[row[k] for k in scores] for row in rows(shift)[:2]] == [[row[k] for k in scores] for row in rows(dense)]
    assert rows(dense)[-1]["val_dice"] > 0
    assert "stage" not in rows(dense)[0]


def test_the_second_stage_trains_the_token_shift_alone_from_the_best_map(run: Train, tmp_path: Path, scores) -> None:
    scores([0.6, 0.5, 0.4, 0.7], name="dice")
    kept = LowThreshold()
    result = run(**{**SHIFT, "ema": 0.0}, callbacks=[kept])
    first, _, *second = kept.learned
    for learned in second:
        assert same(part(learned, "apm."), part(first, "apm."))  # epoch 1 was the best
        assert learned["ips.lin2.weight"].any()
    assert not same(part(second[0], "ips."), part(second[1], "ips."))
    history = result.progress.history
    assert [row["stage"] for row in history] == [1, 1, 2, 2]
    assert history[2]["lr"] == pytest.approx(history[0]["lr"])  # the schedule starts again
    assert history[3]["lr"] < history[2]["lr"]
    assert result.progress.best_epoch == 4
    assert same(weights(tmp_path / "run", "best"), second[1])
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["shift_epochs"] == 2
    record = json.loads((tmp_path / "run/environment.json").read_text())
    assert record["trainable_parameters"] == sum(value.numel() for value in first.values())


def test_without_a_better_epoch_in_the_second_stage_the_shift_of_the_best_is_zero(
    run: Train, tmp_path: Path, scores, caplog
) -> None:
    scores([0.5, 0.6, 0.6, 0.1], name="dice")
    with caplog.at_level("INFO", logger="promise"):
        assert run(**SHIFT).progress.best_epoch == 2
    assert "no trained token shift improved on epoch 2" in caplog.text
    assert "stage 2 of 2: token shift, 2 epochs" in caplog.text
    best, last = (weights(tmp_path / "run", name) for name in ("best", "last"))
    assert not best["ips.lin2.weight"].any()
    assert last["ips.lin2.weight"].any()


def test_a_first_stage_that_stops_early_is_followed_by_the_second(run: Train, scores) -> None:
    scores([0.6, 0.5, 0.4, 0.3, 0.7, 0.1], name="dice")
    progress = run(**{**SHIFT, "epochs": 9, "shift_epochs": 3, "early_stopping": 2}).progress
    assert [row["stage"] for row in progress.history] == [1, 1, 1, 2, 2, 2]
    assert (progress.best_epoch, progress.stage_start) == (5, 3)


@pytest.fixture(scope="module")
def unbroken_shift(tiny_vit: str, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken_shift")
    settings = {**SMALL, **SHIFT, "cache_dir": str(folder / "features"), "split_csv": str(phantoms)}
    train(TrainConfig(**settings, output=str(folder / "run")), callbacks=[LowThreshold()])
    return folder


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_two_stages_resume_bit_for_bit(epoch: int, run: Train, unbroken_shift: Path, tmp_path: Path) -> None:
    class Interrupt(LowThreshold):
        def on_step_end(self, trainer: Trainer, step: int, loss_terms: Any) -> None:
            if step == 3 * epoch + 2:  # the second step of the next epoch
                raise KeyboardInterrupt

    settings = {**SHIFT, "cache_dir": str(unbroken_shift / "features")}
    with pytest.raises(KeyboardInterrupt):
        run(**settings, callbacks=[Interrupt()])
    assert len(rows(tmp_path / "run")) == epoch
    run(**settings, callbacks=[LowThreshold()], resume=True)
    assert_same_run(tmp_path / "run", unbroken_shift / "run")


# Two stages, an average of the weights, accumulated gradients, warped features.
ALL = {**SHIFT, "ema": 0.9, "accumulate": 2, "batch_size": 1, "feature_augment": "affine", "cache": "all"}
ALL |= {"clip_norm": 1.0, "early_stopping": 3}


@pytest.fixture(scope="module")
def unbroken_all(tiny_vit: str, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken_all")
    settings = {**SMALL, **ALL, "cache_dir": str(folder / "features"), "split_csv": str(phantoms)}
    train(TrainConfig(**settings, output=str(folder / "run")), callbacks=[LowThreshold()])
    return folder


@pytest.mark.parametrize("step", [1, 8])
def test_all_that_a_run_has_resumes_within_an_epoch(step: int, run: Train, unbroken_all: Path, tmp_path: Path) -> None:
    settings = {**ALL, "cache_dir": str(unbroken_all / "features")}
    with pytest.raises(SystemExit):
        run(**settings, callbacks=[LowThreshold(), Send(signal.SIGTERM, step)])
    assert steps_within_epoch(tmp_path / "run") == divmod(step, 3)
    run(**settings, callbacks=[LowThreshold()], resume=True)
    assert_same_run(tmp_path / "run", unbroken_all / "run")


def test_killed_when_the_first_epoch_of_the_second_stage_is_the_best_and_resumed(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores
) -> None:
    """The file of the best epoch, from which the second stage starts, is then already that of the second stage."""
    values = [0.6, 0.5, 0.7, 0.4]
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    scores(values, name="dice")
    run(**SHIFT, output=whole)
    save = RunFolder.save_state

    def dying(self: RunFolder, progress: Progress, tensors: Any) -> None:
        if progress.epoch == 3:
            raise Killed
        save(self, progress, tensors)

    scores(values, name="dice")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_state", dying)
        with pytest.raises(Killed):
            run(**SHIFT, output=parts)
    assert weights(tmp_path / "parts", "best")["ips.lin2.weight"].any()
    scores(values[2:], name="dice")
    run(**SHIFT, output=parts, resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize(
    ("settings_", "code"),
    [
        ({"shift_epochs": 2}, "no-second-stage"),
        ({"net": "APM_dense", "shift_epochs": 1}, "no-second-stage"),
        ({"net": "APM_IPS_dense", "shift_epochs": 0}, "out-of-range"),
    ],
)
def test_epochs_of_a_second_stage_are_checked(settings_, code, run: Train, user_error) -> None:
    with user_error(code):
        run(**settings_)


def test_an_estimate_of_the_iou_is_fitted_to_the_validation_rows(
    run: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = str(make_phantoms(tmp_path / "more", count=30, size=64, seed=3, splits=(0.1, 0.8, 0.1)))
    dense = {
        **DENSE,
        "epochs": 3,
        "lr": 1e-5,
        "split_csv": split,
        "cache_dir": str(tmp_path / "features"),
        "sam_checkpoint": "random",
    }

    class SecondIsBest(Trainer):
        def validate(self) -> dict[str, float]:
            return {**super().validate(), "dice": [0.1, 0.9, 0.2][self.progress.epoch]}

    class FindMuch(Callback):
        weights: dict[str, Tensor] | None = None

        def on_train_start(self, trainer: Trainer) -> None:
            trainer.net.apm.lesions = dataclasses.replace(trainer.net.apm.lesions, fuse=0.9)
            if trainer.progress.epoch == 0:
                trainer.net.apm.head.out[-1].weight.data *= 10
                trainer.net.apm.head.out[-1].bias.data += 1

        def on_epoch_end(self, trainer: Trainer, row: Any) -> None:
            self.weights = {name: value.clone() for name, value in trainer.net.learned_state().items()}

        def on_train_end(self, trainer: Trainer) -> None:
            assert self.weights is None or same(self.weights, trainer.net.learned_state())

    class Stop(FindMuch):
        def on_epoch_end(self, trainer: Trainer, row: Any) -> None:
            if row["epoch"] == 3:
                raise KeyboardInterrupt

    caplog.set_level("INFO")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(**dense, output=str(whole), trainer_class=SecondIsBest, callbacks=[FindMuch()])
    best, last = (checkpoint.read_metadata(whole / f"{name}.safetensors") for name in ("best", "last"))
    assert (best.epoch, last.epoch) == (2, 3)
    for metadata in (best, last):
        assert metadata.quality["rows"] == 24
        assert math.isfinite(metadata.quality["error"])
    assert best.quality["weights"] != last.quality["weights"]
    assert "best.safetensors: the estimated IoU is fitted on 24 validation rows" in caplog.text

    # Each fit is that of the weights beside it: the mean of its estimates is that of the measured IoU.
    for name in ("best", "last"):
        config = EvalConfig(
            ckpt=str(whole / f"{name}.safetensors"), split_csv=(split,), split="val", output=str(tmp_path / name),
            device="cpu", precision="fp32", cache="off", workers=0, quiet=True,
        )  # fmt: skip
        calibration = evaluate(config).summary["datasets"]["split"]["estimated_calibration"]
        assert abs(calibration["bias"]) < 1e-4
        assert 0 < calibration["error"] < 0.2

    with pytest.raises(KeyboardInterrupt):
        run(**dense, output=str(parts), trainer_class=SecondIsBest, callbacks=[Stop()])
    assert checkpoint.read_metadata(parts / "best.safetensors").quality is None
    run(**dense, output=str(parts), resume=True, trainer_class=SecondIsBest, callbacks=[FindMuch()])
    assert_same_run(parts, whole)
    files = {name: (whole / f"{name}.safetensors").read_bytes() for name in ("best", "last")}
    run(**dense, output=str(whole), resume=True, trainer_class=SecondIsBest, callbacks=[FindMuch()])
    assert files == {name: (whole / f"{name}.safetensors").read_bytes() for name in files}


def test_the_average_of_the_weights_is_saved_and_the_weights_are_kept(run: Train, tmp_path: Path) -> None:
    plain, averaged = tmp_path / "plain", tmp_path / "averaged"
    run(output=str(plain))
    run(output=str(averaged), ema=0.9)
    plain_state, averaged_state = (RunFolder(folder).load_state()[1] for folder in (plain, averaged))
    assert same(plain_state["learned"], averaged_state["learned"])  # averaging does not change the training
    saved = weights(averaged)
    assert same(saved, {name: averaged_state["average"]["values"][name] for name in saved})
    assert not same(saved, weights(plain))


@pytest.mark.parametrize(
    ("settings_", "code"),
    [
        ({"ema": 1.0}, "out-of-range"),
        ({"feature_augment": "flips"}, "feature-augment-without-cache"),
        ({"feature_augment": "affine", "cache": "all"}, "feature-augment-without-map"),
        ({"net": "APM_dense", "point_labels": "1-1-1-0"}, "point-labels"),
        ({"lesion_settings": "threshold=0.4"}, "net-without-lesions"),
        ({"net": "APM_dense", "lesion_settings": "threshold=4"}, "invalid-lesion-settings"),
    ],
)
def test_settings_of_the_average_of_features_and_of_maps_are_checked(settings_, code, run: Train, user_error) -> None:
    with user_error(code):
        run(**settings_)


def test_lesion_settings_are_stored_in_the_checkpoint(run: Train, tmp_path: Path) -> None:
    run(net="APM_dense", epochs=1, lesion_settings="threshold=0.4,fuse=0,prompts=points")
    stored = checkpoint.read_metadata(tmp_path / "run" / "best.safetensors").lesions
    assert stored == dataclasses.asdict(LesionSettings(threshold=0.4, fuse=0.0, prompts="points"))


# --- files of a run folder that other programs have damaged ----------------------------------------


class FirstIsBest(Callback):
    """A score by which the first epoch is the best one."""

    score_names = ("early",)

    def on_validation_end(self, trainer: Trainer, scores: dict[str, float]) -> None:
        scores["early"] = -float(trainer.progress.epoch)


@pytest.mark.parametrize("fraction", [None, 0.6])
def test_a_damaged_checkpoint_is_written_again_or_refused(
    fraction: float | None, run: Train, user_error, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    callbacks = [FirstIsBest()]
    run(callbacks, epochs=2, select="early")
    expected = copies(folder, "last"), checkpoint.read_metadata(folder / "last.safetensors").metrics
    damage(folder / "last.safetensors", fraction)
    run(callbacks, epochs=2, select="early", resume=True)
    assert same(weights(folder), expected[0])
    assert checkpoint.read_metadata(folder / "last.safetensors").metrics == expected[1]
    damage(folder / "best.safetensors", fraction)
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    with user_error("damaged-checkpoint") as caught:
        run(callbacks, epochs=2, select="early", resume=True)
    assert all(text in str(caught.value) for text in ("best.safetensors", "epoch 1", "--overwrite"))
    after = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    assert {path.name for path in {*before, *after} if before.get(path) != after.get(path)} == set()


def copies(folder: Path, name: str) -> dict[str, Tensor]:
    """Weights that stay when their file is truncated, which is mapped into memory."""
    return {entry: value.clone() for entry, value in weights(folder, name).items()}


def damage(path: Path, fraction: float | None) -> None:
    if fraction is None:
        path.unlink()
    else:
        os.truncate(path, int(path.stat().st_size * fraction))


def test_the_best_checkpoint_is_written_again_if_it_is_of_the_last_epoch(run: Train, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(epochs=1, ema=0.5)
    expected = copies(folder, "best")
    for name in ("best", "last"):
        damage(folder / f"{name}.safetensors", 0.3)
    run(epochs=1, ema=0.5, resume=True)
    assert same(weights(folder, "best"), expected)
    assert same(weights(folder, "last"), expected)


def test_other_settings_in_the_folder_than_those_of_the_start_are_refused(
    run: Train, user_error, tmp_path: Path
) -> None:
    run(epochs=1, weight_decay=0.5)
    path = tmp_path / "run/config.yaml"
    text = path.read_text()
    resumed = TrainConfig(output=str(tmp_path / "run"), resume=True, workers=0, tensorboard=False, quiet=True)
    for changed in (text.replace("lr: 0.001", "lr: 0.00"), text[: text.index("weight_decay")]):
        assert changed != text
        path.write_text(changed)
        with user_error("changed-settings") as caught:
            train(resumed)
        assert all(words in str(caught.value) for words in ("config.yaml", " was 0.", "--overwrite"))
    path.write_text("")
    with pytest.raises(UserError, match=r"config\.yaml.*--overwrite"):
        train(resumed)
    path.write_text(text)
    train(resumed)


def test_a_damaged_environment_file_does_not_end_a_resumed_run(run: Train, tmp_path: Path) -> None:
    run(epochs=1)
    (tmp_path / "run/environment.json").write_text('{"seed": 5, "pyth')
    run(epochs=1, resume=True)
    assert json.loads((tmp_path / "run/environment.json").read_text())["sam_sha256_after"]
