"""Names of devices and precisions, and the ``torch`` objects that they denote."""

from __future__ import annotations

import torch

from promise.runtime.errors import UserError, unknown_name

# Data type of matrix products and convolutions; None: that of the tensors, fp32.
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICES = ("auto", "cpu", "cuda", "cuda:1", "mps")  # listed in error messages; any CUDA index is accepted

# CPU capability, and the private function of ``torch.cpu`` that reports it where ``torch.cpu.get_capabilities`` is
# missing (older releases). A CPU with either unit runs a training step twice as fast in bf16.
BF16_UNITS = {"amx_tile": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}


def resolve_device(name: str) -> torch.device:
    """Convert a device name to a ``torch.device``.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:<index>`` or ``mps``. ``auto`` selects CUDA, then MPS, then the CPU.

    Raises:
        UserError: the name is unknown, or the device is not available.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        if name.lower().startswith("gpu"):
            raise UserError(
                f"unknown device {name!r}: GPUs are called cuda, cuda:1, …, and mps on a Mac.", code="unknown-device"
            ) from None
        raise unknown_name("device", name, DEVICES) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: no CUDA device is usable here. Use --device cpu, or check the driver and that "
            "torch is a CUDA build (python -c 'import torch; print(torch.version.cuda)').",
            code="no-cuda-device",
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: only {torch.cuda.device_count()} CUDA devices are available, counted from 0.",
            code="no-such-cuda-device",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: no Apple GPU is available. Use --device cpu.", code="no-mps-device")
    if device.type not in ("cpu", "cuda", "mps"):
        raise unknown_name("device", name, DEVICES)
    return device


def resolve_precision(precision: str, device: torch.device) -> str:
    """Convert ``auto`` to the fastest precision that the device supports in hardware.

    Args:
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: device that the net runs on.

    Returns:
        For ``auto``: on CUDA ``bf16``, or ``fp16`` on GPUs without bf16; on a CPU with bf16 instructions ``bf16``;
        elsewhere ``fp32``. Other names are returned unchanged.

    Raises:
        UserError: the precision is unknown, or is ``fp16`` on a CPU.
    """
    if precision == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "bf16" if device.type == "cpu" and cpu_has_bf16_units() else "fp32"
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, ("auto", *PRECISIONS))
    if precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU. Use bf16 or fp32 on a CPU.", code="fp16-on-cpu")
    return precision


def cpu_has_bf16_units() -> bool:
    """Whether the CPU has AMX tiles or AVX-512 BF16; ``False`` if this release of torch cannot report it."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        return any(capabilities().get(unit, False) for unit in BF16_UNITS)
    return any(getattr(torch.cpu, name, bool)() for name in BF16_UNITS.values())
