"""Training in several processes, each with a part of every batch, is the same as in one process."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from promise.data.phantom import make_phantoms

CHILD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("tiny", {conftest!r})
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
tiny.register_tiny_vit()
from promise.cli.train import main
sys.exit(main(sys.argv[1:]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.timeout(240)
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    table = make_phantoms(tmp_path / "images", count=12, size=64, seed=5, splits=(8 / 12, 3 / 12, 1 / 12))
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(conftest=str(Path(__file__).parents[1] / "conftest.py")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--master_port", str(free_port())]
    common = ["--net", "IPS_GT", "--sam", "tiny_vit", "--sam-checkpoint", "random", "--split-csv", str(table)]
    common += ["--epochs", "2", "--workers", "0", "--precision", "fp32", "--device", "cpu", "--seed", "4", "--quiet"]
    common += ["--no-tensorboard", "--augment", "basic_color", "--optimizer", "sgd", "--lr", "1"]
    logs, learned = [], []
    for name, processes, batch in (("one", 1, 4), ("two", 2, 2)):
        folder = tmp_path / name
        command = [*launch, "--nproc_per_node", str(processes), str(script), *common, "--batch-size", str(batch)]
        command += ["--output", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("best epoch") == 1  # only the main process prints
        learned.append(safetensors.torch.load_file(folder / "last.safetensors"))
        logs.append((folder / "log.csv").read_text().splitlines())
    assert len(logs[0]) == len(logs[1]) == 3
    for key in ("train_loss", "val_loss", "val_dice", "val_iou"):
        at = logs[0][0].split(",").index(key)
        for one, two in zip(logs[0][1:], logs[1][1:], strict=True):
            assert float(one.split(",")[at]) == pytest.approx(float(two.split(",")[at]), abs=1e-5)
    for name, value in learned[0].items():
        torch.testing.assert_close(learned[1][name], value, rtol=1e-4, atol=1e-6)
