"""The net: a frozen SAM with an optional prompter and an optional token shift."""

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
    """A frozen SAM with an optional prompter (Auto-Prompting Module) and an optional token shift."""

    def __init__(
        self,
        sam: FrozenSam,
        *,
        apm: Prompter | None = None,
        ips: nn.Module | None = None,
        precision: str = "fp32",
    ) -> None:
        """Assemble the net.

        Args:
            sam: the frozen SAM.
            apm: the prompter; ``None``: prompts must be passed to :meth:`forward` and :meth:`decode`.
            ips: embedding (B, C, E, E) → token shift (B, 4, C); ``None``: no shift.
            precision: type of matrix products and convolutions: ``fp32``, ``bf16`` or ``fp16``.
        """
        super().__init__()
        self.sam = sam
        self.apm = apm
        self.ips = ips
        self.precision = precision
        if precision != "fp32":  # see promise.types.to_preferred_memory_format
            for part in (apm, sam.mask_decoder):
                if part is not None:
                    part.to(memory_format=torch.channels_last)
        # Unused entries of a loaded state dict of the reference implementation; see promise.models.checkpoint.
        self.reference_unused: dict[str, Tensor] = {}

    def compile_parts(self) -> None:
        """Compile the parts that run at every step with ``torch.compile``; results are the same up to rounding.

        State-dict names do not change. The first step takes about a minute longer. The encoder is compiled too,
        except on a CPU, where its strips already fit the cache.

        Raises:
            UserError: no C++ compiler is installed, and the net is on a CPU (code ``no-compiler``).
        """
        device = next(self.sam.parameters()).device
        names = (os.environ.get("CXX", "g++"), "c++", "clang++", "cl")
        if device.type == "cpu" and not any(map(shutil.which, names)):
            raise UserError(
                "--compile requires a C++ compiler on a CPU, such as g++. Install one, or drop --compile.",
                code="no-compiler",
            )
        prompter = None if self.apm is None else self.apm.compiled_part()
        for part in (prompter, self.ips, self.sam.mask_decoder.transformer):
            if part is not None:
                part.compile()
        self.sam.compile_encoder = device.type != "cpu"

    @property
    def needs_prompts(self) -> bool:
        """Whether prompts must be passed, because the net has no prompter."""
        return self.apm is None

    @property
    def needs_taps(self) -> bool:
        """Whether the prompter reads the encoder's taps."""
        return self.apm is not None and self.apm.needs_taps

    def learned_state(self) -> dict[str, Tensor]:
        """State dict of the learned parts: the prompter, the token shift, and the parts of SAM that are not frozen."""
        trained = tuple(f"sam.{part}." for part in self.sam.trained_parts)
        return {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith("sam.") or name.startswith(trained or ("\0",))
        }

    def encode(self, image: Tensor) -> Encoded:
        """Encode images (B, 3, S, S), normalised as the backbone requires; taps are kept if the prompter reads them."""
        with self._autocast(image.device):
            return self.sam.encode(image, taps=self.needs_taps)

    def decode(self, encoded: Encoded, prompts: Prompts | None = None, *, mask_index: int = 0) -> Prediction:
        """Decode masks from prompts.

        Args:
            encoded: what :meth:`encode` returned.
            prompts: in input pixels; ``None`` uses those of the net's prompter.
            mask_index: which of SAM's three multimask masks to compute, 0 to 2.

        Raises:
            UserError: ``prompts`` is ``None`` and the net has no prompter (code ``no-prompter``).
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
        """Predict prompts for encoded images with the net's prompter.

        Raises:
            UserError: the net has no prompter (code ``no-prompter``).
        """
        if self.apm is None:
            raise UserError("this net has no prompter: pass prompts, such as points or boxes.", code="no-prompter")
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
        """Encode and decode; the arguments are those of :meth:`decode`.

        ``image`` is a batch (B, 3, S, S) or its features, which :meth:`encode` returned. ``points=…``, or ``Points``
        instead of ``Prompts``, is short for ``Prompts(points=…)``.
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
