"""Random sequences of commands, interruptions and damage in one output folder, of training and of prediction.

After each step the folder is complete, or the next command works or ends in one ``UserError``; a completed result is
bit-identical to that of an unbroken run. ``PROMISE_FUZZ_EXAMPLES`` sets the number of sequences, a hundredth of it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from promise import UserError, checkpoint
from promise.data.phantom import make_phantoms
from promise.inference.config import PredictConfig
from promise.inference.predict import predict
from promise.models.checkpoint import Metadata, read_metadata
from promise.runtime.files import LOCK
from promise.runtime.lock import exclusive
from promise.training import Callback, TrainConfig, train
from promise.training.run_folder import OURS

pytestmark = [
    pytest.mark.filterwarnings("ignore:SAM .* has random weights"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes"),
]
EXAMPLES = int(os.environ.get("PROMISE_FUZZ_EXAMPLES", "0"))
KILLED, REFUSED, FAULTY = 99, 2, 3  # exit statuses of a forked command
ADVICE = ("--overwrite", "--resume", "--output", "Free space", "again")
Stop = tuple[str, int]
STOPS = st.one_of(
    st.just(("none", 0)),
    st.tuples(st.just("kill"), st.integers(0, 110)),  # before this access to a file of the folder
    st.tuples(st.sampled_from(["interrupt", "full"]), st.integers(1, 14)),  # in this writing of a file
)
STEPS = st.tuples(st.sampled_from(["SIGTERM", "SIGINT", "error"]), st.integers(1, 5))  # after this step of a training
DAMAGE = st.one_of(st.none(), st.floats(0, 0.99))  # of a file: removed, or truncated to a fraction


def limits(sequences: int, steps: int) -> settings:
    return settings(
        max_examples=max(sequences, EXAMPLES // 100),
        stateful_step_count=max(steps, 12) if EXAMPLES else steps,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=(Phase.generate,),  # a sequence takes seconds: it is not shortened
        suppress_health_check=list(HealthCheck),
    )


class Interrupted(Exception):
    """An error of a callback, which is no fault of the package."""


class StopAt(Callback):
    """Sends a signal to this process, or raises an error, after a step."""

    def __init__(self, how: str, step: int) -> None:
        self.how, self.left = how, step

    def on_step_end(self, trainer: Any, step: int, loss_terms: Any) -> None:
        self.left -= 1
        if self.left == 0 and self.how == "error":
            raise Interrupted
        if self.left == 0:
            os.kill(os.getpid(), getattr(signal, self.how))


@contextlib.contextmanager
def failing_writes(how: str, count: int) -> Iterator[None]:
    """Writing a file for the ``count``-th time is interrupted by Ctrl+C, or finds a full disk."""
    left, fsync = count, os.fsync

    def stop(handle: int) -> None:
        nonlocal left
        left -= 1
        if left == 0 or (how == "full" and left < 0):
            raise KeyboardInterrupt if how == "interrupt" else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with pytest.MonkeyPatch.context() as patch:
        if how in ("interrupt", "full"):
            patch.setattr(os, "fsync", stop)
        yield


def run_killed(command: Callable[[], None], folder: Path, access: int) -> str:
    """Run a command in a forked process that dies before an access to a file of the folder; returns the outcome."""
    log = folder.parent / "traceback.txt"
    pid = os.fork()
    if pid == 0:
        left = access

        def die(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and str(folder) in str(arguments[0]):
                left -= 1
                if left < 0:
                    os._exit(KILLED)

        sys.addaudithook(die)
        status = FAULTY
        try:
            command()
            status = 0
        except UserError:
            status = REFUSED
        except BaseException:
            log.write_text(traceback.format_exc())
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status != FAULTY, log.read_text()
    return {0: "complete", KILLED: "stopped", REFUSED: "refused"}[status]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without its lock."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != LOCK}


def damage(path: Path, fraction: float | None) -> None:
    """Remove a file, or truncate it to a fraction of its size."""
    if fraction is None:
        path.unlink()
    else:
        os.truncate(path, int(path.stat().st_size * fraction))


class OutputFolder(RuleBasedStateMachine):
    """One output folder; ``home`` has the inputs, which no command may change."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home
        self.inputs = home / "inputs"
        shutil.rmtree(home / "work", ignore_errors=True)
        self.folder = home / "work/out"
        self.folder.mkdir(parents=True)
        (self.folder / "notes.txt").write_text("of the user")

    def run(self, command: Callable[[], None], stop: Stop) -> str:
        """Run a command; returns its outcome: complete, stopped or refused. Any other exception fails the test."""
        before, inputs = contents(self.folder), contents(self.inputs)
        how, count = stop
        outcome, message = "complete", ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if how == "kill":
                outcome = run_killed(command, self.folder, count)
            else:
                try:
                    with failing_writes(how, count):
                        command()
                except (KeyboardInterrupt, SystemExit, Interrupted):
                    assert how in ("interrupt", "SIGTERM", "SIGINT", "error")
                    outcome = "stopped"
                except UserError as error:
                    outcome, message = "refused", str(error)
        assert contents(self.inputs) == inputs
        assert (self.folder / "notes.txt").read_text() == "of the user"
        assert {path.name for path in (self.home / "work").iterdir()} <= {"out", "traceback.txt"}
        assert len(message.splitlines()) <= 1, message
        assert not message or any(advice in message for advice in ADVICE), message
        if outcome == "refused" and how == "none":
            assert contents(self.folder) == before, message
        if outcome == "complete":
            left = [path.name for path in self.folder.rglob(".*")]
            assert not left
            self.check_result()
        return outcome

    def check_result(self) -> None:
        raise NotImplementedError

    def refuse_second_writer(self, command: Callable[[], None]) -> None:
        """While another process writes into the folder, a command is refused and changes nothing."""
        ready, release = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                with exclusive(self.folder):
                    os.write(ready[1], b"x")
                    os.read(release[0], 1)
            finally:
                os._exit(0)
        assert os.read(ready[0], 1) == b"x"
        before = contents(self.folder)
        try:
            with pytest.raises(UserError) as caught:
                command()
            assert contents(self.folder) == before
        finally:
            os.write(release[1], b"x")
            os.waitpid(pid, 0)
            for handle in (*ready, *release):
                os.close(handle)
        self.refusal = caught.value.code


# --- training ----------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "sam": "tiny_vit",
    "num_points": 4,
    "epochs": 2,
    "batch_size": 1,
    "lr": 1e-3,
    "device": "cpu",
    "precision": "fp32",
    "seed": 5,
}
FREE: dict[str, Any] = {"workers": 0, "tensorboard": False, "quiet": True}
NETS: dict[str, dict[str, Any]] = {"IPS_GT": {"ema": 0.5}}
if EXAMPLES:
    NETS["APM_IPS_dense"] = {"shift_epochs": 1}  # two stages


def trained(folder: Path) -> dict[str, Any]:
    """What no two runs of the same training may differ in."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {"log": [{k: v for k, v in row.items() if k != "seconds"} for row in rows]}
    for name in ("best", "last"):
        path = folder / f"{name}.safetensors"
        metadata = read_metadata(path)
        found[name] = {k: v.numpy().tobytes() for k, v in safetensors.torch.load_file(path).items()}
        found[f"{name} metadata"] = (metadata.epoch, metadata.metrics, metadata.quality, metadata.seen)
    return found


class TrainingFolder(OutputFolder):
    """The folder of a training."""

    expected: dict[str, dict[str, Any]]

    @initialize(net=st.sampled_from(sorted(NETS)), stop=STOPS | STEPS)
    def begin(self, net: str, stop: Stop) -> None:
        self.net = net
        self.run(lambda: self.train(stop, save_every=1e-6), stop)

    def train(self, stop: Stop = ("none", 0), **other: Any) -> None:
        own = {} if other.get("resume") else {**SMALL, **NETS[self.net], "net": self.net}
        own |= {} if other.get("resume") else {"split_csv": str(self.inputs / "split.csv")}
        callbacks = [StopAt(*stop)] if stop[0] in ("SIGTERM", "SIGINT", "error") else []
        train(TrainConfig(output=str(self.folder), **FREE, **own, **other), callbacks=callbacks)

    def check_result(self) -> None:
        assert trained(self.folder) == self.expected[self.net]
        assert cv2.imread(str(self.folder / "curves.png")) is not None
        assert json.loads((self.folder / "environment.json").read_text())["sam_sha256_after"]

    @rule(stop=STOPS | STEPS, overwrite=st.booleans(), save_every=st.sampled_from([0.0, 1e-6]))
    def start(self, stop: Stop, overwrite: bool, save_every: float) -> None:
        held = (self.folder / "state/resume.pt").exists()
        outcome = self.run(lambda: self.train(stop, overwrite=overwrite, save_every=save_every), stop)
        assert outcome == "refused" or overwrite or not held
        assert outcome != "refused" or stop[0] in ("full", "kill") or not overwrite

    @rule(stop=STOPS | STEPS, save_every=st.sampled_from([0.0, 1e-6]))
    def resume(self, stop: Stop, save_every: float) -> None:
        self.run(lambda: self.train(stop, resume=True, save_every=save_every), stop)

    @rule(index=st.integers(0, len(OURS) - 1), fraction=DAMAGE)
    def damage(self, index: int, fraction: float | None) -> None:
        present = [self.folder / name for name in OURS if (self.folder / name).exists()]
        if present:
            damage(present[index % len(present)], fraction)

    @rule(resume=st.booleans())
    def second_writer(self, resume: bool) -> None:
        self.refuse_second_writer(lambda: self.train(overwrite=not resume, resume=resume))
        assert resume or self.refusal == "folder-in-use"

    def teardown(self) -> None:
        if not hasattr(self, "net"):
            return
        if self.run(lambda: self.train(resume=True), ("none", 0)) == "refused":
            assert self.run(lambda: self.train(overwrite=True), ("none", 0)) == "complete"


def test_folders_of_trainings(tiny_vit: str, tmp_path: Path) -> None:
    table = make_phantoms(tmp_path / "inputs", count=4, size=64, seed=3, splits=(0.5, 0.25, 0.25))
    assert table == tmp_path / "inputs/split.csv"
    torch.set_num_threads(1)
    TrainingFolder.expected = {}
    for net in NETS:
        unbroken = TrainingFolder(tmp_path)
        unbroken.net = net
        unbroken.train()
        TrainingFolder.expected[net] = trained(unbroken.folder)
    run_state_machine_as_test(lambda: TrainingFolder(tmp_path), settings=limits(2, 2))


# --- prediction --------------------------------------------------------------------------------------

NAMES = ("a", "b", "c")
VERSIONS = (0, 1, None)  # of an image; None: not an image
RECORDED = ("outputs", "size", "iou", "area", "contour", "boxes", "box", "points", "labels")


def pixels(name: str, version: int) -> np.ndarray:
    noise = np.random.default_rng((ord(name), version)).integers(0, 255, (5, 7, 3), np.uint8)
    return cv2.resize(noise, (50 + version, 40), interpolation=cv2.INTER_CUBIC)


class PredictionOutput(OutputFolder):
    """The output folder of promise-predict, whose images come, change and go."""

    checkpoint: Path
    expected: dict[tuple[str, int], tuple[bytes, dict[str, Any]]]

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        shutil.rmtree(self.inputs, ignore_errors=True)
        self.inputs.mkdir()
        self.versions: dict[str, int | None] = {}
        self.put("a", 0)

    @rule(name=st.sampled_from(NAMES), version=st.sampled_from(VERSIONS))
    def put(self, name: str, version: int | None) -> None:
        path = self.inputs / f"{name}.png"
        if version is None:
            path.write_bytes(b"not an image")
        else:
            cv2.imwrite(str(path), pixels(name, version))
        self.versions[name] = version

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        if name in self.versions and len(self.versions) > 1:
            (self.inputs / f"{name}.png").unlink()
            del self.versions[name]

    def predict(self, **other: Any) -> None:
        common = {"device": "cpu", "precision": "fp32", "quiet": True, "batch_size": 1, "workers": 1, "contour": True}
        config = PredictConfig(
            ckpt=str(self.checkpoint), images=(str(self.inputs),), output=str(self.folder), **common, **other
        )
        result = predict(config)
        failed = sorted(Path(path).stem for path, _ in result.failed)
        assert failed == sorted(name for name, version in self.versions.items() if version is None)

    def check_result(self) -> None:
        for name, version in self.versions.items():
            if version is not None:
                assert self.one_result(name) == self.expected[name, version]
        if any(version is not None for version in self.versions.values()):
            images = json.loads((self.folder / "prompts.json").read_text())["draws"][0]["images"]["images"]
            assert {name for name, version in self.versions.items() if version is not None} <= images.keys()
            outlined = json.loads((self.folder / "contours.json").read_text())["images"]
            assert {one["file_name"].removesuffix(".png") for one in outlined} == images.keys()

    def one_result(self, name: str) -> tuple[bytes, dict[str, Any]]:
        record = json.loads((self.folder / f"records/{name}.json").read_text())
        return (self.folder / f"masks/{name}.png").read_bytes(), {k: record.get(k) for k in RECORDED}

    @rule(stop=STOPS, overwrite=st.booleans())
    def start(self, stop: Stop, overwrite: bool) -> None:
        damaged = not overwrite and not self.has_settings()
        outcome = self.run(lambda: self.predict(overwrite=overwrite), stop)
        assert outcome != "refused" or stop[0] in ("full", "kill") or damaged

    def has_settings(self) -> bool:
        try:
            json.loads((self.folder / "predict.json").read_text())
        except (OSError, ValueError):
            return False
        return True

    @rule(
        name=st.sampled_from(
            [
                "predict.json",
                "prompts.json",
                "contours.json",
                *(f"records/{name}.json" for name in NAMES),
            ]
        ),
        fraction=DAMAGE,
    )
    def damage(self, name: str, fraction: float | None) -> None:
        if (self.folder / name).exists():
            damage(self.folder / name, fraction)

    @rule(name=st.sampled_from(NAMES))
    def remove_mask(self, name: str) -> None:
        (self.folder / f"masks/{name}.png").unlink(missing_ok=True)

    @rule(name=st.sampled_from(NAMES), other=st.sampled_from(NAMES))
    def copy_record(self, name: str, other: str) -> None:
        if name != other and (self.folder / f"records/{name}.json").exists():
            shutil.copy(self.folder / f"records/{name}.json", self.folder / f"records/{other}.json")

    @rule(overwrite=st.booleans())
    def second_writer(self, overwrite: bool) -> None:
        refused = self.has_settings() or overwrite
        self.refuse_second_writer(lambda: self.predict(overwrite=overwrite))
        assert not refused or self.refusal == "folder-in-use"

    def teardown(self) -> None:
        if self.run(self.predict, ("none", 0)) == "refused":
            assert self.run(lambda: self.predict(overwrite=True), ("none", 0)) == "complete"


def test_folders_of_predictions(build: Callable[..., Any], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    net = build("APM_IPS_cross", num_points=4)
    PredictionOutput.checkpoint = tmp_path / "best.safetensors"
    known = {"sam_checkpoint": "random", "seed": 5}
    checkpoint.save(
        net, PredictionOutput.checkpoint, Metadata("APM_IPS_cross", "tiny_vit", 4, net.sam.weights_sha256(), **known)
    )
    PredictionOutput.expected = {}
    for version in (0, 1):
        unbroken = PredictionOutput(tmp_path)
        for name in NAMES:
            unbroken.put(name, version)
        unbroken.predict()
        PredictionOutput.expected |= {(name, version): unbroken.one_result(name) for name in NAMES}
    run_state_machine_as_test(lambda: PredictionOutput(tmp_path), settings=limits(3, 8))
