"""The batch size that fits into the memory, with a real limit of the memory of a process."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator

from promise.runtime.errors import UserError
from promise.runtime.settings import read_yaml
from promise.training import TrainConfig, train
from promise.training.batch_size import find_batch_size
from promise.training.from_config import net_of

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")

SECONDS = 100  # after which the second process is ended; it takes one or two
ONEDNN = {-signal.SIGSEGV: "crashed", -signal.SIGALRM: "hung"}  # exit status → what oneDNN did, not this package


@pytest.fixture
def settings(tiny_vit: str, phantoms: Path, tmp_path: Path) -> dict[str, Any]:
    small = {"net": "IPS_GT", "sam": tiny_vit, "num_points": 4, "epochs": 1, "workers": 0, "device": "cpu", "seed": 5}
    small |= {"precision": "fp32", "tensorboard": False, "quiet": True, "cache": "off", "augment": "none"}
    return {**small, "split_csv": str(phantoms), "output": str(tmp_path / "run")}


def with_little_memory(work: Callable[[], object], megabytes: int) -> int:
    """Run a function in a second process that can allocate so much more memory; returns its exit status.

    Where memory is full, oneDNN sometimes crashes, or waits for ever for a kernel that it failed to compile: skipped.
    """
    resource = pytest.importorskip("resource", reason="POSIX limits")
    pid = os.fork()
    if pid == 0:
        status = 1
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)  # ends the process in any state; it would keep the pipes of this one open
        try:
            now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20,) * 2)
            warnings.simplefilter("ignore")
            used = use_up_freed_memory(megabytes)
            work()
            del used
            status = 0
        except UserError as error:
            status = 2 if error.code == "out-of-memory" else 3
        except BaseException:
            traceback.print_exc()  # an assertion would not leave this process
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status in ONEDNN:
        pytest.skip(f"oneDNN {ONEDNN[status]} where memory was full")
    return status


def use_up_freed_memory(megabytes: int) -> list[bytearray]:
    """Allocate until all but so many megabytes are used, also what earlier tests have freed."""
    used: list[bytearray] = []
    while True:
        try:
            used.append(bytearray(2**20))
        except MemoryError:
            break
    del used[:megabytes]
    return used


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux")
def test_the_batch_size_is_halved_until_it_fits(settings: dict[str, Any], tmp_path: Path) -> None:
    for size in (1, 2, 4):  # compiles the kernels of oneDNN, for which the second process has no memory
        config = TrainConfig(**{**settings, "batch_size": size})
        find_batch_size(config, net_of(config), Accelerator(cpu=True))
    large = {**settings, "batch_size": 2**14, "auto_batch_size": True}
    assert with_little_memory(lambda: train(TrainConfig(**large)), 300) == 0
    found = read_yaml(tmp_path / "run/config.yaml", TrainConfig)["batch_size"]
    assert found in [2**power for power in range(14)]
    again = train(TrainConfig(**{**large, "resume": True}), explicit=("batch_size", "auto_batch_size"))
    assert again.progress.epoch == 1
    fixed = train(TrainConfig(**{**settings, "batch_size": found, "output": str(tmp_path / "fixed")}))
    ours, theirs = (safetensors.torch.load_file(f / "last.safetensors") for f in (tmp_path / "run", fixed.folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux")
def test_one_image_that_does_not_fit_is_one_error(settings: dict[str, Any]) -> None:
    config = TrainConfig(**{**settings, "net": "APM_IPS_resnet", "batch_size": 2})  # gradients of 100 MB
    net, accelerator = net_of(config), Accelerator(cpu=True)
    assert with_little_memory(lambda: find_batch_size(config, net, accelerator), 20) == 2


def test_a_size_that_fits_is_kept_and_the_net_too(settings: dict[str, Any]) -> None:
    config = TrainConfig(**{**settings, "net": "APM_IPS_dense", "shift_epochs": 1, "batch_size": 2, "freeze": "FZ0"})
    net = net_of(config)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    learning = [parameter.requires_grad for parameter in net.parameters()]
    random = torch.get_rng_state()
    assert find_batch_size(config, net, Accelerator(cpu=True)) == config
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [parameter.requires_grad for parameter in net.parameters()] == learning
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)
