"""Joins a frozen SAM with a prompter and a token shift; knows no net names, no masks, no configuration."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from promise.models.prompters.base import Prompter
from promise.models.sam.frozen import MULTIMASK, FrozenSam
from promise.runtime.device import PRECISIONS
from promise.runtime.errors import UserError
from promise.types import Encoded, Points, Prediction, Prompted, Prompts, to_preferred_memory_format


class Promise(nn.Module):
    """A promptable net: SAM frozen, with an Auto-Prompting Module or without, with a token shift or without."""

    def __init__(
        self,
        sam: FrozenSam,
        *,
        apm: Prompter | None = None,
        ips: nn.Module | None = None,
        precision: str = "fp32",
    ) -> None:
        """Join the parts.

        Args:
            sam: the frozen SAM.
            apm: the prompter, or ``None``: prompts must be given.
            ips: embedding (B, C, E, E) → token shift (B, 4, C), or ``None``: no shift.
            precision: ``fp32``, ``bf16`` or ``fp16``: what matrix products and convolutions run in.
        """
        super().__init__()
        self.sam = sam
        self.apm = apm
        self.ips = ips
        self.precision = precision
        if precision != "fp32":  # as promise.types.to_preferred_memory_format has it
            for part in (apm, sam.mask_decoder):
                if part is not None:
                    part.to(memory_format=torch.channels_last)
        # Entries of a loaded original state dict that this net has no use for; see promise.models.checkpoint.
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
        prompter = None if self.apm is None else self.apm.compiled_part()
        for part in (prompter, self.ips, self.sam.mask_decoder.transformer):
            if part is not None:
                part.compile()
        self.sam.compile_encoder = device.type != "cpu"

    @property
    def needs_prompts(self) -> bool:
        """Whether prompts must be given, since no part of the net makes them."""
        return self.apm is None

    @property
    def needs_taps(self) -> bool:
        """Whether the prompter reads the encoder's taps."""
        return self.apm is not None and self.apm.needs_taps

    def learned_state(self) -> dict[str, Tensor]:
        """What was learned: all of APM and IPS, and the parts of SAM that a freeze switch released."""
        trained = tuple(f"sam.{part}." for part in self.sam.trained_parts)
        return {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith("sam.") or name.startswith(trained or ("\0",))
        }

    def encode(self, image: Tensor) -> Encoded:
        """Encode (B, 3, S, S) images, with taps where the prompter reads them."""
        with self._autocast(image.device):
            return self.sam.encode(image, taps=self.needs_taps)

    def decode(self, encoded: Encoded, prompts: Prompts | None = None, *, mask_index: int = 0) -> Prediction:
        """Prompt and decode.

        Args:
            encoded: what :meth:`encode` returned.
            prompts: in input pixels; ``None`` asks the net's prompter.
            mask_index: which of SAM's three multimask masks to compute, 0 to 2.

        Raises:
            UserError: no prompts were given and the net has no prompter.
        """
        if self.precision == "fp32" and encoded.embedding.dtype != torch.float32:  # stored in 16 bits
            encoded = encoded.map(lambda x: to_preferred_memory_format(x.float()))
        with self._autocast(encoded.embedding.device):
            prompted = self.prompt(encoded) if prompts is None else Prompted(prompts)
            shift = None if self.ips is None else self.ips(encoded.embedding)
            logits, ious = self.sam.decode(
                encoded,
                prompted.prompts,
                token_shift=shift,
                channels=MULTIMASK[mask_index : mask_index + 1],
                estimates=MULTIMASK,
            )
        iou = ious[:, mask_index : mask_index + 1]
        return Prediction(logits, iou, prompted.prompts, ious, prompted.lesion_logits)

    def prompt(self, encoded: Encoded) -> Prompted:
        """The net's own prompts for encoded images.

        Raises:
            UserError: the net has no prompter.
        """
        if self.apm is None:
            raise UserError("this net has no prompter: give it prompts, such as points or boxes.")
        with self._autocast(encoded.embedding.device):
            prompted: Prompted = self.apm(encoded)
        return prompted

    def forward(
        self,
        image: Tensor | Encoded,
        prompts: Prompts | Points | None = None,
        *,
        points: Points | None = None,
        mask_index: int = 0,
    ) -> Prediction:
        """Encode (B, 3, S, S) images, unless features are given, and decode; arguments as in :meth:`decode`.

        ``points=…``, or ``Points`` in place of ``Prompts``, is short for ``Prompts(points=…)``.
        """
        if points is not None:
            prompts = points
        if isinstance(prompts, Points):
            prompts = Prompts(points=prompts)
        encoded = image if isinstance(image, Encoded) else self.encode(image)
        return self.decode(encoded, prompts, mask_index=mask_index)

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
