"""Names of devices and precisions, and the record of the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from promise.runtime.device import resolve_device, resolve_precision
from promise.runtime.environment import describe_environment
from promise.runtime.errors import UserError
from promise.runtime.memory import explain_out_of_memory, keep_freed_memory, peak_memory

CPU = torch.device("cpu")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@without_gpu
def test_auto_is_what_is_here() -> None:
    assert resolve_device("auto").type == ("mps" if torch.backends.mps.is_available() else "cpu")
    assert resolve_device("cpu") == CPU


@without_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_that_is_not_here_is_an_error_with_the_next_move(name: str) -> None:
    with pytest.raises(UserError, match=f"--device {name}: no CUDA device is usable here. Use --device cpu"):
        resolve_device(name)


def test_a_cuda_device_too_many_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="--device cuda:2: there are only 2 CUDA devices"):
        resolve_device("cuda:2")


def test_a_gpu_is_called_cuda() -> None:
    with pytest.raises(UserError, match="unknown device 'gpu': GPUs are called cuda"):
        resolve_device("gpu")


@pytest.mark.parametrize("name", ["", "cuda:x", "xla", "meta"])
def test_an_unknown_device_lists_the_known(name: str) -> None:
    with pytest.raises(UserError, match=r"unknown device.*auto, cpu, cuda, cuda:1, mps"):
        resolve_device(name)


def test_precision() -> None:
    assert resolve_precision("auto", CPU) in ("bf16", "fp32")
    assert resolve_precision("auto", torch.device("mps")) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        resolve_precision("fp16", CPU)
    with pytest.raises(UserError, match=r"unknown precision 'bf61'. Did you mean 'bf16'"):
        resolve_precision("bf61", CPU)


def test_the_record_names_versions_commit_and_device() -> None:
    record = describe_environment(CPU)
    assert record["command"] == sys.argv
    assert record["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["device"] == "cpu"
    assert record["threads"] == torch.get_num_threads()
    assert record["git_commit"] is None or len(record["git_commit"].removesuffix("-dirty")) == 40


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert describe_environment(CPU)["git_commit"] is None


def test_memory_is_kept_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False


def test_running_out_of_memory_names_a_batch_size() -> None:
    words, advice = "memory ran out with --batch-size 8: try --batch-size 4; --accu", "; --accumulate keeps the step"
    with pytest.raises(UserError, match=words), explain_out_of_memory(8, advice=advice):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(UserError, match="even one image is too much"), explain_out_of_memory(1):
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="something else"), explain_out_of_memory(1):
        raise RuntimeError("something else")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's own account")
def test_peak_memory_is_not_that_of_the_program_that_started_it() -> None:
    held = np.ones(2**30, np.uint8)  # 1 GiB, resident
    words = "import torch; from promise.runtime.device import peak_memory; print(peak_memory(torch.device('cpu')))"
    told = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True).stdout
    assert 0.1 < float(told) < 1.0 < peak_memory(CPU)
    del held


def test_peak_memory_is_that_of_this_process() -> None:
    before = peak_memory(CPU)
    assert torch.ones(2**28).sum() > 0  # a GiB, touched
    assert peak_memory(CPU) >= max(before, 1.0)
