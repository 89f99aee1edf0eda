"""What a training run leaves, that a run killed anywhere goes on bit for bit, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor

import promise.training.trainer as training
from promise import checkpoint
from promise.runtime.errors import ExistingRunError, MissingFileError, UserError
from promise.training.config import TrainConfig
from promise.training.trainer import TrainResult, train

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
    """Trains with the small settings and others."""
    return lambda **other: train(TrainConfig(**{**settings, **other}))


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / f"{name}.safetensors")


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def rows(folder: Path) -> list[dict[str, Any]]:
    """log.jsonl without the one column that no two runs share."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


class Killed(BaseException):
    """Stands for a kill: nothing in the package can catch it."""


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
    with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler on a CPU"):
        run(compile=True)


def test_a_run_leaves_its_files(run: Train, tmp_path: Path) -> None:
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


def test_workers_change_nothing(run: Train, tmp_path: Path) -> None:
    run(output=str(tmp_path / "a"), epochs=2)
    run(output=str(tmp_path / "b"), epochs=2, workers=2)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


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
        assert (ours.epoch, ours.metrics) == (theirs.epoch, theirs.metrics)


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_killed_after_an_epoch_and_resumed(
    epoch: int, run: Train, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = training._Trainer._write

    def write_and_die(self: Any, row: Any, told: Any) -> None:
        write(self, row, told)
        if row["epoch"] == epoch:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training._Trainer, "_write", write_and_die)
        with pytest.raises(Killed):
            run(**RESUMED)
    assert len(rows(tmp_path / "run")) == epoch
    run(**RESUMED, resume=True)
    assert_same_run(tmp_path / "run", unbroken)


PLACES = [("best", 2), *((place, epoch) for place in ("before", "last", "state", "log") for epoch in (2, 4))]


@pytest.mark.parametrize(("place", "epoch"), PLACES)
def test_killed_between_two_files_and_resumed(
    place: str, epoch: int, run: Train, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed just before one of an epoch's files is written; ``log``: after the state, before the log."""
    reached = {"epoch": 0}
    write = training._Trainer._write
    save, save_state, tell = checkpoint.save, training.RunFolder.save_state, training.RunLog.tell

    def counted(self: Any, row: Any, told: Any) -> None:
        reached["epoch"] = row["epoch"]
        if (place, reached["epoch"]) == ("before", epoch):
            raise Killed
        write(self, row, told)

    def dying(real: Callable[..., Any], here: Callable[..., bool]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            if reached["epoch"] == epoch and here(*args):
                raise Killed
            return real(*args, **keywords)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(training._Trainer, "_write", counted)
        patch.setattr(checkpoint, "save", dying(save, lambda _n, path, _m: path.stem == place))
        patch.setattr(training.RunFolder, "save_state", dying(save_state, lambda *_: place == "state"))
        patch.setattr(training.RunLog, "tell", dying(tell, lambda *_: place == "log"))
        with pytest.raises(Killed):
            run(**RESUMED)
    run(**RESUMED, resume=True)
    assert_same_run(tmp_path / "run", unbroken)


def test_killed_inside_an_epoch_and_resumed(
    run: Train, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"count": 0}
    set_lr = training._Trainer._set_lr

    def counted(self: Any, epoch: int, step: int) -> None:
        steps["count"] += 1
        if steps["count"] == 5:  # the second step of the second epoch
            raise KeyboardInterrupt
        set_lr(self, epoch, step)

    with monkeypatch.context() as patch:
        patch.setattr(training._Trainer, "_set_lr", counted)
        with pytest.raises(KeyboardInterrupt):
            run(**RESUMED)
    assert len(rows(tmp_path / "run")) == 1
    run(**RESUMED, resume=True)
    assert_same_run(tmp_path / "run", unbroken)


CHILD = """
import os, runpy, signal, sys, warnings
warnings.simplefilter("ignore")
runpy.run_path(sys.argv[1])["register_tiny_vit"]()
import promise.training.trainer as training
place, settings = sys.argv[2], eval(sys.argv[3])
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if place == "second epoch":
    epoch = training._Trainer._epoch
    training._Trainer._epoch = lambda self, number: die() if number == 2 else epoch(self, number)
elif place == "state":
    import torch
    real = torch.save
    def half(value, path, *rest):
        real(value, path, *rest)
        if value["progress"]["epoch"] == 3:
            os.truncate(path, os.path.getsize(path) // 2)
            die()
    torch.save = half
training.train(training.TrainConfig(**settings))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("place", ["second epoch", "state"])
def test_sigkill_and_resumed(place: str, run: Train, settings: dict[str, Any], unbroken: Path, tmp_path: Path) -> None:
    """A real kill: between epochs, and with the state file half written."""
    conftest = Path(__file__).parents[1] / "conftest.py"
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(conftest), place, repr({**settings, **RESUMED})],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert len(rows(tmp_path / "run")) == 2
    run(**RESUMED, resume=True)
    assert_same_run(tmp_path / "run", unbroken)


def test_resuming_a_finished_run_changes_nothing(run: Train, tmp_path: Path) -> None:
    run(epochs=2)
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("last.safetensors", "log.csv")}
    result = run(epochs=2, resume=True)
    assert result.progress.epoch == 2
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}


def test_resuming_needs_no_setting_but_the_folder(run: Train, unbroken: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training.RunLog, "tell", lambda *_, **__: (_ for _ in ()).throw(Killed))
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
    with pytest.raises(UserError, match=f"cannot resume .*{words}"):
        run(**{"epochs": 2, **changed}, resume=True)
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
    with pytest.raises(UserError, match="was started on another SAM"):
        run(epochs=1, sam_checkpoint=str(tmp_path / "sam.pth"), resume=True)


def test_resuming_nothing_is_refused(run: Train) -> None:
    with pytest.raises(MissingFileError, match="nothing to resume"):
        run(resume=True)


def test_resuming_a_damaged_state_is_refused(run: Train, tmp_path: Path) -> None:
    run(epochs=1)
    state = tmp_path / "run/state/resume.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"resume\.pt cannot be read.*--overwrite"):
        run(epochs=1, resume=True)


# --- an existing folder ---------------------------------------------------------------------------


def test_an_existing_run_is_refused_or_replaced(run: Train, tmp_path: Path) -> None:
    run(epochs=2)
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(ExistingRunError, match=r"already holds a run.*--resume.*--overwrite.*--output"):
        run(epochs=1)
    assert len(rows(tmp_path / "run")) == 2
    run(epochs=1, overwrite=True)
    assert len(rows(tmp_path / "run")) == 1
    assert (tmp_path / "run/notes.txt").read_text() == "mine"
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["overwrite"] is False


# --- selection ------------------------------------------------------------------------------------


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Sets what the validations say, one after another."""

    def give(ious: list[float]) -> None:
        told = iter(ious)
        monkeypatch.setattr(training, "validate", lambda *_, **__: {"loss": 1.0, "dice": 0.5, "iou": next(told)})

    return give


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
        patch.setattr(training, "train_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert (tmp_path / "run/config.yaml").is_file()
    with pytest.raises(MissingFileError, match=r"before its first epoch ended.*again without --resume"):
        run(resume=True)
    assert run().progress.epoch == 3


def test_an_interrupted_run_says_how_it_goes_on(run: Train, monkeypatch, tmp_path: Path, caplog) -> None:
    real, calls = training.train_epoch, []

    def second_stops(*args: Any, **named: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **named)

    monkeypatch.setattr(training, "train_epoch", second_stops)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert f"1 of 3 epochs are saved; go on with: promise-train --output {tmp_path / 'run'} --resume" in caplog.text


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


def test_selection_by_dice(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([(0.1, 0.9), (0.9, 0.1)])
    monkeypatch.setattr(
        training, "validate", lambda *_, **__: dict(zip(("loss", "dice", "iou"), (1.0, *next(told)), strict=True))
    )
    progress = run(epochs=2, select="dice").progress
    assert (progress.best_epoch, progress.best_score) == (2, 0.9)


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
    with pytest.raises(UserError, match="--drop-last leaves no batch: 6 rows are fewer than --batch-size 7"):
        run(batch_size=7, drop_last=True)
    assert not (tmp_path / "run").exists()


def test_the_learning_rate_follows_its_schedule(run: Train, tmp_path: Path) -> None:
    run(epochs=3, scheduler="cosine", lr=1e-3)
    # Three steps an epoch; the log shows the last: epochs 2/3, 5/3 and 8/3 of 3.
    expected = [1e-3 * (1 + torch.cos(torch.tensor(torch.pi * t / 9)).item()) / 2 for t in (2, 5, 8)]
    assert [row["lr"] for row in rows(tmp_path / "run")] == pytest.approx(expected, rel=1e-5)


def test_a_run_that_diverges_ends_with_one_error_and_keeps_what_it_had(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_lr = training._Trainer._set_lr

    def explode(self: Any, epoch: int, step: int) -> None:
        set_lr(self, epoch, step)
        if epoch == 1:
            self.optimizer.param_groups[0]["lr"] = 1e30

    with monkeypatch.context() as patch:
        patch.setattr(training._Trainer, "_set_lr", explode)
        with pytest.raises(UserError, match=r"training diverged: the loss of epoch 2 is (nan|inf).*Lower --lr"):
            run()
    assert len(rows(tmp_path / "run")) == 1
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    assert run(resume=True).progress.epoch == 3


def test_a_run_that_diverges_in_its_last_step_keeps_no_broken_weights(run: Train, tmp_path: Path) -> None:
    """One step an epoch: the loss is read before the step that breaks the weights."""
    with pytest.raises(UserError, match="training diverged"):
        run(lr=1e30, batch_size=6, net="APM_IPS_cross")
    kept = [name for name in ("best", "last") if (tmp_path / "run" / f"{name}.safetensors").exists()]
    assert all(v.isfinite().all() and v.abs().max() < 1e20 for n in kept for v in weights(tmp_path / "run", n).values())


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"net": "APM_IPS_GT_cross"}, "APM_IPS_GT_cross is for evaluation only: train APM_IPS_cross"),
        ({"net": "SAM"}, "SAM is for evaluation only: train another net"),
        ({"net": "APM_resnett"}, "unknown net 'APM_resnett'. Did you mean 'APM_resnet'"),
        ({"sam": "tiny_vitt"}, "unknown backbone 'tiny_vitt'. Did you mean 'tiny_vit'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"num_points": 3}, "--num-points must be 1 or an even number"),
        ({"point_labels": "1-0"}, "--point-labels wants 4 values"),
        ({"loss": "dise"}, "unknown loss 'dise'"),
        ({"optimizer": "adm"}, "unknown optimizer 'adm'. Did you mean 'adam'"),
        ({"scheduler": "cosin"}, "unknown scheduler 'cosin'. Did you mean 'cosine'"),
        ({"augment": "train2_colour"}, "train2_colour"),
        ({"precision": "fp16"}, "--precision fp16 needs a GPU"),
        ({"epochs": 0, "lr": 0.0, "batch_size": 0}, "--epochs must be at least 1.*--batch-size must.*--lr must be ab"),
        ({"split_csv": None}, "--split-csv is missing"),
        ({"resume": False, "sam_checkpoint": "/nowhere.pth"}, "no weight file at /nowhere.pth"),
        ({"lr": 0.0, "loss": "dise", "net": "SAMM"}, "(?s)--lr must.*unknown net.*unknown loss"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(given, words: str, run: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        run(**given)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_cuda_is_refused(run: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--device cuda: no CUDA device is usable here. Use --device cpu"):
        run(device="cuda")
    assert not (tmp_path / "run").exists()


def test_a_table_without_training_rows_is_refused(run: Train, own_phantoms: Path) -> None:
    table = own_phantoms.with_name("no_train.csv")
    table.write_text("\n".join(line for line in own_phantoms.read_text().splitlines() if ",train," not in line) + "\n")
    with pytest.raises(UserError, match=r"no_train\.csv: no row has train_type 'train'"):
        run(split_csv=str(table))


def test_overwrite_removes_earlier_tensorboard_events(run: Train, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the [logging] extra")
    run(epochs=1, tensorboard=True)
    first = list((tmp_path / "run/tensorboard").iterdir())
    assert len(first) == 1
    time.sleep(1.1)  # TensorBoard names its files by the second
    run(epochs=1, tensorboard=True, overwrite=True)
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1


def test_pictures_that_are_trained_on_and_selected_on_are_told(
    run: Train, phantoms: Path, tmp_path: Path, caplog
) -> None:
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
    expected = "1 of the 4 validation images is also trained on, by content"
    assert caplog.text.count(expected) == 1
    record = json.loads((tmp_path / "run/environment.json").read_text())
    assert [words[: len(expected)] for words in record["warnings"]] == [expected]
    caplog.clear()
    run(output=str(tmp_path / "clean"), epochs=1)
    assert "also trained on" not in caplog.text
    assert json.loads((tmp_path / "clean/environment.json").read_text())["warnings"] == []
