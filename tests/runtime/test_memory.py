"""Allocator settings, peak memory and out-of-memory errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promise.runtime.memory import explain_out_of_memory, keep_freed_memory, peak_memory

CPU = torch.device("cpu")


def test_allocator_settings_need_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False


def test_out_of_memory_suggests_a_batch_size(user_error: Callable[..., Any]) -> None:
    advice = "; --accumulate keeps the step"
    with user_error("out-of-memory") as caught, explain_out_of_memory(8, advice=advice):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert "--batch-size 8" in str(caught.value)
    assert f"--batch-size 4{advice}" in str(caught.value)
    with user_error("out-of-memory") as caught, explain_out_of_memory(1):
        torch.empty(2**60)
    assert "smaller --sam" in str(caught.value)
    assert "--precision bf16" in str(caught.value)
    with pytest.raises(RuntimeError, match="something else"), explain_out_of_memory(1):
        raise RuntimeError("something else")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_peak_memory_excludes_the_parent_process() -> None:
    held = np.ones(2**30, np.uint8)  # 1 GiB, resident
    code = "import torch; from promise.runtime.memory import peak_memory; print(peak_memory(torch.device('cpu')))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.1 < float(printed) < 1.0 < peak_memory(CPU)
    del held


def test_peak_memory_includes_this_process() -> None:
    before = peak_memory(CPU)
    assert torch.ones(2**28).sum() > 0  # 1 GiB, written
    assert peak_memory(CPU) >= max(before, 1.0)
