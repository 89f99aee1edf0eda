"""Joins a frozen SAM with a prompter and a token shift; knows no net names, no masks, no configuration."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from promise.errors import UserError, unknown_name
from promise.models.sam import MULTIMASK, FrozenSam
from promise.types import Encoded, Points, Prediction, arrange

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Promise(nn.Module):
    """A promptable net: SAM frozen, with an Auto-Prompting Module or without, with a token shift or without."""

    def __init__(
        self,
        sam: FrozenSam,
        *,
        apm: nn.Module | None = None,
        ips: nn.Module | None = None,
        precision: str = "fp32",
    ) -> None:
        """Join the parts.

        Args:
            sam: the frozen SAM.
            apm: taps → :class:`~promise.types.Points`, or ``None``: prompts must be given.
            ips: embedding (B, C, E, E) → token shift (B, 4, C), or ``None``: no shift.
            precision: ``fp32``, ``bf16`` or ``fp16``: what matrix products and convolutions run in.
        """
        super().__init__()
        self.sam = sam
        self.apm = apm
        self.ips = ips
        self.precision = precision
        if precision != "fp32":  # as promise.types.arrange has it
            for part in (apm, sam.mask_decoder):
                if part is not None:
                    part.to(memory_format=torch.channels_last)
        # Entries of a loaded original state dict that this net has no use for; see promise.checkpoint.
        self.reference_unused: dict[str, Tensor] = {}

    def compile_parts(self) -> None:
        """Have ``torch.compile`` make kernels of what runs at every step; names of weights stay, values to rounding.

        The first step takes a minute or so longer. The encoder is compiled too, but not on a CPU, where its strips
        fit the cache as they are.

        Raises:
            UserError: on a CPU without a C++ compiler.
        """
        device = next(self.sam.parameters()).device
        names = (os.environ.get("CXX", "g++"), "c++", "clang++", "cl")
        if device.type == "cpu" and not any(map(shutil.which, names)):
            raise UserError("--compile needs a C++ compiler on a CPU, such as g++: install one, or drop --compile.")
        head = None if self.apm is None else getattr(self.apm, "head", self.apm)
        for part in (head, self.ips, self.sam.mask_decoder.transformer):
            if part is not None:
                part.compile()
        self.sam.compile_encoder = device.type != "cpu"

    @property
    def needs_prompts(self) -> bool:
        """Whether prompts must be given, since no part of the net makes them."""
        return self.apm is None

    def learned_state(self) -> dict[str, Tensor]:
        """What was learned: all of APM and IPS, and the parts of SAM that a freeze switch released."""
        trained = tuple(f"sam.{part}." for part in self.sam.trained_parts)
        return {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith("sam.") or name.startswith(trained or ("\0",))
        }

    def encode(self, image: Tensor) -> Encoded:
        """Encode (B, 3, S, S) images, with taps where the net has a prompter."""
        with self._autocast(image.device):
            return self.sam.encode(image, taps=self.apm is not None)

    def decode(
        self,
        encoded: Encoded,
        points: Points | None = None,
        *,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        choice: int = 0,
    ) -> Prediction:
        """Prompt and decode.

        Args:
            encoded: what :meth:`encode` gave.
            points: prompts in input pixels; ``None`` asks the prompter, unless boxes or masks are given; P = 0: no
                points.
            boxes: (B, 4) x0, y0, x1, y1 in input pixels.
            masks: (B, 1, 4E, 4E) logits of an earlier answer.
            choice: which of SAM's three multimask masks to compute, 0 to 2.

        Raises:
            UserError: no prompts were given and no part of the net makes them.
        """
        if self.precision == "fp32" and encoded.embedding.dtype != torch.float32:  # stored in 16 bits
            encoded = encoded.map(lambda x: arrange(x.float()))
        with self._autocast(encoded.embedding.device):
            if points is None and boxes is None and masks is None:
                if self.apm is None:
                    raise UserError("this net places no prompts of its own: give it points or boxes.")
                points = self.apm(encoded.taps)
            shift = None if self.ips is None else self.ips(encoded.embedding)
            logits, ious = self.sam.decode(
                encoded,
                points=points,
                boxes=boxes,
                mask_prompt=masks,
                token_shift=shift,
                channels=MULTIMASK[choice : choice + 1],
                estimates=MULTIMASK,
            )
        return Prediction(logits, ious[:, choice : choice + 1], points, boxes, ious)

    def forward(self, image: Tensor | Encoded, points: Points | None = None, **prompts: Any) -> Prediction:
        """Encode (B, 3, S, S) images, unless features are given, and decode; prompts as in :meth:`decode`."""
        encoded = image if isinstance(image, Encoded) else self.encode(image)
        return self.decode(encoded, points, **prompts)

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


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
