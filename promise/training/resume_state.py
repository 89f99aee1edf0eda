"""What a run needs to resume: learned weights, optimiser, gradient scaler, progress, states of callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promise.models.promise import Promise
from promise.runtime.errors import UserError
from promise.training.callbacks import Callback


@dataclass
class Progress:
    """Progress of a run."""

    epoch: int = 0  # completed epochs
    history: list[dict[str, float | None]] = field(default_factory=list)  # one row per epoch, as in log.csv
    best_epoch: int | None = None
    best_score: float | None = None
    stale: int = 0  # validations since the best one, or since the start of the stage
    stage: int = 0  # position of the current stage; most nets have only one
    stage_start: int = 0  # epochs that were completed before it
    skipped: int = 0  # batches whose loss was infinite or NaN


def collect_state(
    net: Promise,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    *,
    sam_sha256: str,
    callbacks: Callback,
) -> dict[str, Any]:
    """The state of a run except for its progress; the learning rate follows from the progress.

    Args:
        net: the unwrapped net.
        optimizer: of its learned parameters.
        scaler: of the gradients, in fp16.
        sam_sha256: SHA-256 of SAM's weights before training.
        callbacks: whose states are stored if they have one.
    """
    optimizer_state = optimizer.state_dict()
    for group in optimizer_state["param_groups"]:
        group.pop("initial_lr", None)  # constant, and set again by the scheduler of a resumed run
    state = {
        "learned": net.learned_state(),
        "optimizer": optimizer_state,
        "scaler": None if scaler is None else scaler.state_dict(),
        "sam_sha256": sam_sha256,
    }
    own = callbacks.state_dict()
    return {**state, "callbacks": own} if own else state


def restore_state(
    state: Mapping[str, Any],
    net: Promise,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    *,
    callbacks: Callback,
) -> None:
    """Restore what :func:`collect_state` returned; arguments as there.

    Raises:
        UserError: a callback with a state is missing, code ``missing-callback``.
    """
    callbacks.load_state_dict(state.get("callbacks", {}))
    net.load_state_dict(state["learned"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the global generators of this process: that of the CPU and, on a GPU, that of the device."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def restore_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore what :func:`generator_states` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def check_same_sam(state: Mapping[str, Any], sam_sha256: str, folder: Path) -> None:
    """Raise ``UserError`` (code ``other-sam``) if a run was started on other weights of SAM."""
    if state["sam_sha256"] != sam_sha256:
        raise UserError(
            f"cannot resume {folder}: it was started on another SAM (SHA-256 {state['sam_sha256'][:12]}…, this one "
            f"{sam_sha256[:12]}…). Check --sam-checkpoint.",
            code="other-sam",
        )
