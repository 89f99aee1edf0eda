"""Names of devices and precisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from promise.runtime.device import BF16_UNITS, cpu_has_bf16_units, resolve_device, resolve_precision

CPU = torch.device("cpu")
Expect = Callable[..., Any]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")


@without_gpu
def test_auto_selects_an_available_device() -> None:
    assert resolve_device("auto").type == ("mps" if torch.backends.mps.is_available() else "cpu")
    assert resolve_device("cpu") == CPU


@without_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_unavailable_cuda_suggests_the_cpu(name: str, user_error: Expect) -> None:
    with user_error("no-cuda-device") as caught:
        resolve_device(name)
    assert f"--device {name}" in str(caught.value)
    assert "--device cpu" in str(caught.value)


def test_cuda_index_out_of_range(monkeypatch: pytest.MonkeyPatch, user_error: Expect) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with user_error("no-such-cuda-device") as caught:
        resolve_device("cuda:2")
    assert "--device cuda:2" in str(caught.value)
    assert "2 CUDA devices" in str(caught.value)


def test_gpu_is_not_a_device_name(user_error: Expect) -> None:
    with user_error("unknown-device") as caught:
        resolve_device("gpu")
    assert "'gpu'" in str(caught.value)
    assert "cuda" in str(caught.value)


@pytest.mark.parametrize("name", ["", "cuda:x", "xla", "meta"])
def test_unknown_device_lists_known_devices(name: str, user_error: Expect) -> None:
    with user_error("unknown-device") as caught:
        resolve_device(name)
    assert "auto, cpu, cuda, cuda:1, mps" in str(caught.value)


def test_precision(user_error: Expect) -> None:
    assert resolve_precision("auto", CPU) in ("bf16", "fp32")
    assert resolve_precision("auto", torch.device("mps")) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    with user_error("fp16-on-cpu") as caught:
        resolve_precision("fp16", CPU)
    assert "--precision fp16" in str(caught.value)
    with user_error("unknown-precision") as caught:
        resolve_precision("bf61", CPU)
    assert "Did you mean 'bf16'" in str(caught.value)


@pytest.mark.parametrize("unit", BF16_UNITS)
def test_bf16_units_are_read_from_torch(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the public function of torch, with the private ones of older releases, and with neither."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", unit: True}, raising=False)
    assert cpu_has_bf16_units()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"})
    assert not cpu_has_bf16_units()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    for name in BF16_UNITS.values():
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not cpu_has_bf16_units()
    monkeypatch.setattr(torch.cpu, BF16_UNITS[unit], lambda: True)
    assert cpu_has_bf16_units()
    for name in BF16_UNITS.values():
        monkeypatch.delattr(torch.cpu, name)
    assert not cpu_has_bf16_units()


def test_torch_reports_bf16_units() -> None:
    """Without this information ``--precision auto`` would silently use fp32 on every CPU, as it does with torch 2.4."""
    if torch.__version__.startswith("2.4."):
        pytest.skip("torch 2.4 reports no units")
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        absent = [] if capabilities["architecture"] != "x86_64" else [u for u in BF16_UNITS if u not in capabilities]
    else:
        absent = [name for name in BF16_UNITS.values() if not hasattr(torch.cpu, name)]
    assert not absent, f"torch {torch.__version__} no longer reports {absent}: adapt promise.runtime.device.BF16_UNITS"
