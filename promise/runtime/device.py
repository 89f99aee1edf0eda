"""Device and precision: names → what torch computes on and in."""

from __future__ import annotations

import torch

from promise.runtime.errors import UserError, unknown_name

# What matrix products and convolutions run in; None: in the tensors' own fp32.
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """``auto`` → the best device here; other names → that device.

    Raises:
        UserError: a device that is not here, or no device at all.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        if name.lower().startswith("gpu"):
            raise UserError(f"unknown device {name!r}: GPUs are called cuda, cuda:1, …, and mps on a Mac.") from None
        raise unknown_name("device", name, ("auto", "cpu", "cuda", "cuda:1", "mps")) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: no CUDA device is usable here. Use --device cpu, or check the driver and that "
            "torch is a CUDA build (python -c 'import torch; print(torch.version.cuda)')."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are only {torch.cuda.device_count()} CUDA devices, counted from 0.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: no Apple GPU is usable here. Use --device cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise unknown_name("device", name, ("auto", "cpu", "cuda", "cuda:1", "mps"))
    return device


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` → ``bf16`` where the device has instructions for it, else ``fp32``; other names are kept.

    Raises:
        UserError: unknown precision, or ``fp16`` on a CPU.
    """
    if precision == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        if device.type == "cpu":
            # Private, absent from older releases. Both double the speed of a training step.
            units = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
            return "bf16" if any(getattr(torch.cpu, name, bool)() for name in units) else "fp32"
        return "fp32"
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, ("auto", *PRECISIONS))
    if precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU; on a CPU use bf16 or fp32.")
    return precision
