"""Training in several processes, each with a part of every batch, is the same as in one process.

Slow: a process that imports torch takes four seconds.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from promise.data.phantom import make_phantoms

# The encoder has a module like LiteMedSAM's attention: eval() registers a new buffer.
CHILD = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("tiny", {conftest!r})
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

class Renewed(torch.nn.Module):
    def train(self, mode=True):
        super().train(mode)
        self.register_buffer("made", torch.zeros(1) + 1, persistent=False)
        return self

build = tiny.build_tiny_vit
def build_with_buffer():
    sam = build()
    sam.image_encoder.renewed = Renewed()
    return sam.eval()
tiny.build_tiny_vit = build_with_buffer
tiny.register_tiny_vit()
from promise.cli.train import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A program like promise-train that knows tiny_vit."""
    path = tmp_path / "child.py"
    path.write_text(CHILD.format(conftest=str(Path(__file__).parents[1] / "conftest.py")))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(script: Path, processes: int, *options: str) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--master_port", str(free_port())]
    return [*run, "--nproc_per_node", str(processes), *options, str(script)]


def settings(table: Path, *more: str) -> list[str]:
    common = ["--net", "IPS_GT", "--sam", "tiny_vit", "--sam-checkpoint", "random", "--split-csv", str(table)]
    common += ["--workers", "0", "--precision", "fp32", "--device", "cpu", "--seed", "4", "--no-tensorboard"]
    return [*common, "--augment", "basic_color", "--optimizer", "sgd", "--lr", "1", *more]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_processes_train_as_one_with_twice_the_batch(script: Path, tmp_path: Path) -> None:
    table = make_phantoms(tmp_path / "images", count=12, size=64, seed=5, splits=(8 / 12, 3 / 12, 1 / 12))
    logs, learned = [], []
    for name, processes, batch in (("one", 1, 4), ("two", 2, 2)):
        folder = tmp_path / name
        command = [*launch(script, processes), *settings(table, "--epochs", "2", "--batch-size", str(batch))]
        command += ["--output", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("best epoch") == 1  # only the main process prints
        assert f", {processes} process" in done.stderr
        learned.append(safetensors.torch.load_file(folder / "last.safetensors"))
        logs.append((folder / "log.csv").read_text().splitlines())
    assert len(logs[0]) == len(logs[1]) == 3
    for key in ("train_loss", "val_loss", "val_dice", "val_iou"):
        at = logs[0][0].split(",").index(key)
        for one, two in zip(logs[0][1:], logs[1][1:], strict=True):
            assert float(one.split(",")[at]) == pytest.approx(float(two.split(",")[at]), abs=1e-5)
    for name, value in learned[0].items():
        torch.testing.assert_close(learned[1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_launch_that_starts_one_process_instead_of_two_is_reported(script: Path, phantoms: Path, tmp_path) -> None:
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    accelerate += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", str(script)]
    command = [*accelerate, *settings(phantoms, "--epochs", "1", "--output", str(tmp_path / "run"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert ", 1 process," in done.stderr
    assert "has started one process instead of several" in done.stderr
    assert "torchrun --nproc_per_node" in done.stderr


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_a_killed_process_ends_the_launch_which_resumes(script: Path, phantoms: Path, tmp_path: Path) -> None:
    folder, state = tmp_path / "run", tmp_path / "run/state/resume.pt"
    common = settings(phantoms, "--epochs", "300", "--batch-size", "1", "--output", str(folder))
    job = subprocess.Popen([*launch(script, 2), *common], stderr=subprocess.PIPE, text=True)
    try:
        while not state.exists():
            assert job.poll() is None
            time.sleep(0.2)
        ranks = children(job.pid)
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        _, errors = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode not in (0, None), errors
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    before = torch.load(state, weights_only=True)["progress"]["epoch"]
    resumed = subprocess.Popen([*launch(script, 2), "--output", str(folder), "--resume", "--quiet"])
    try:
        while torch.load(state, weights_only=True)["progress"]["epoch"] <= before:
            assert resumed.poll() is None
            time.sleep(0.5)
    finally:
        resumed.terminate()
    assert resumed.wait(timeout=60) != 0
