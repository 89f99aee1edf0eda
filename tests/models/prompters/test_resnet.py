"""The ResNet head on maps so small that some convolutions process a single pixel."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from promise.models.prompters.resnet import ResNetHead

# malloc fills each block of memory with a pattern, so that reads of uninitialised memory change the results.
SCRIPT = """
import contextlib, torch
from promise.models.prompters.resnet import ResNetHead

torch.manual_seed(0)
head = ResNetHead(tap_channels=(48, 48, 48), num_points=4).train()
taps = [torch.randn(8, 48, 4, 4) for _ in range(3)]
norms = []
for context in (contextlib.nullcontext(), torch.autocast("cpu", torch.bfloat16)):
    head.zero_grad()
    with context:
        head(taps).square().mean().backward()
    norms.append({name: float(p.grad.norm()) for name, p in head.named_parameters()})
full, half = norms
wrong = [name for name in full if not 0.5 * full[name] < half[name] < 2 * full[name]]
assert not wrong, wrong
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's MALLOC_PERTURB_")
def test_gradients_in_bfloat16_do_not_read_uninitialised_memory() -> None:
    environment = {**os.environ, "MALLOC_PERTURB_": "128", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_convolution_runs_in_bfloat16_on_a_single_pixel() -> None:
    head = ResNetHead(tap_channels=(8, 8, 8), num_points=2)
    seen: list[tuple[tuple[int, int], torch.dtype]] = []
    for module in head.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda _m, inputs, out: seen.append((min(inputs[0].shape[-2:], out.shape[-2:]), out.dtype))
            )
    with torch.autocast("cpu", torch.bfloat16):
        head([torch.randn(2, 8, 4, 4) for _ in range(3)])
    assert {dtype for size, dtype in seen if size == (1, 1)} == {torch.float32}
    assert torch.bfloat16 in {dtype for size, dtype in seen if size != (1, 1)}
