"""The net: a frozen SAM with an optional prompter and an optional token shift."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promise.models.prompters.base import Prompter
from promise.models.prompters.lesions import LesionSettings
from promise.models.quality import QualityEstimate
from promise.models.sam.frozen import MULTIMASK, FrozenSam
from promise.runtime.device import PRECISIONS
from promise.runtime.errors import UserError
from promise.types import Encoded, Points, Prediction, Prompted, Prompts, to_preferred_memory_format

NO_LESION = -20.0  # logits of the mask of an image without prompt sets


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
        self.quality: QualityEstimate | None = None  # estimates the IoU of automatic masks; set by checkpoint.load
        if precision != "fp32":  # see promise.types.to_preferred_memory_format
            for part in (apm, sam.mask_decoder):
                if part is not None:
                    part.to(memory_format=torch.channels_last)
        # Unused entries of a loaded state dict of the reference implementation; see promise.models.reference_files.
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

    @property
    def needs_image(self) -> bool:
        """Whether the prompter reads the image itself."""
        return self.apm is not None and self.apm.needs_image

    @property
    def tap_pooling(self) -> int:
        """Side of the squares of pixels over which the taps are averaged for the prompter."""
        return self.apm.tap_pooling if self.apm is not None else 1

    def learned_state(self) -> dict[str, Tensor]:
        """State dict of the learned parts: the prompter, the token shift, and the parts of SAM that are not frozen."""
        trained = tuple(f"sam.{part}." for part in self.sam.trained_parts)
        return {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith("sam.") or name.startswith(trained or ("\0",))
        }

    def encode(self, image: Tensor) -> Encoded:
        """Encode images (B, 3, S, S), normalised as the backbone requires.

        Taps are kept if the prompter reads them, at the resolution at which it does: (B, C_i, E / p, E / p), rounded
        up, for a prompter with ``tap_pooling`` p.
        """
        with self._autocast(image.device):
            encoded = self.sam.encode(image, taps=self.needs_taps)
        if self.tap_pooling != 1:
            pooled = pool_taps(encoded.taps, self.tap_pooling)
            encoded = replace(encoded, taps=tuple(map(to_preferred_memory_format, pooled)))
        if self.needs_image:
            encoded = replace(encoded, image=shrink_image(image, 4 * encoded.embedding.shape[-1]))
        return encoded

    @property
    def lesions(self) -> LesionSettings | None:
        """Settings of a prompter that finds lesions; ``None`` for other nets."""
        return None if self.apm is None else self.apm.lesions

    def decode(
        self,
        encoded: Encoded,
        prompts: Prompts | None = None,
        *,
        mask_index: int | None = None,
        fuse: bool | None = None,
    ) -> Prediction:
        """Decode masks from prompts.

        Args:
            encoded: what :meth:`encode` returned.
            prompts: in input pixels; ``None`` uses those of the net's prompter.
            mask_index: which of SAM's three multimask masks to compute, 0 to 2; default: the net's own output, which is
                the first of these, or as its lesion settings say.
            fuse: whether the prompter's map of lesions is added to the mask with the weight of the lesion settings;
                default: with the prompter's own prompts only. Ignored by a net without such a map.

        Raises:
            UserError: ``prompts`` is ``None`` and the net has no prompter (code ``no-prompter``).
        """
        encoded = self._in_own_precision(encoded)
        with self._autocast(encoded.embedding.device):
            prompted = self.prompt(encoded) if prompts is None else Prompted(prompts)
            shift = None if self.ips is None else self.ips(encoded.embedding)
            logits, ious = self._decode_sets(encoded, prompted.prompts, shift, self.channel(mask_index))
        found = Prediction(logits, ious[:, :1], prompted.prompts, ious[:, 1:], prompted.lesion_logits)
        if self.lesions is None or not (prompts is None if fuse is None else fuse):
            return found
        maps = self.lesion_map(encoded) if found.lesion_logits is None else found.lesion_logits
        owner = found.prompts.image
        has_lesion = None if owner is None else torch.bincount(owner, minlength=len(logits)) > 0
        fused = fuse_map(logits, maps, self.lesions.fuse, has_lesion)
        found = replace(found, mask_logits=fused, lesion_logits=maps, fused=True, sam_logits=logits)
        automatic = prompts is None and mask_index is None
        return replace(found, quality=self.quality(found)) if automatic and self.quality is not None else found

    def decode_single(self, encoded: Encoded, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """SAM's single mask of each of B prompt sets, without token shift and map of lesions.

        Args:
            encoded: the features of the image of each prompt set.
            prompts: in input pixels, with one image per prompt set.

        Returns:
            Logits (B, 1, 4E, 4E) and estimated IoUs (B, 1).
        """
        encoded = self._in_own_precision(encoded)
        with self._autocast(encoded.embedding.device):
            return self.sam.decode(encoded, prompts, channels=(0,))

    def lesion_map(self, encoded: Encoded, *, parts: bool = False) -> Tensor:
        """Logits (B, 1, h, w) of the prompter's map of lesions; with ``parts``, of the K maps (B, K, h, w) it averages.

        Raises:
            UserError: the net's prompter has no such map (code ``no-lesion-map``).
        """
        if self.apm is None or self.apm.lesions is None:
            raise UserError("this net has no map of lesions; nets such as APM_dense have one.", code="no-lesion-map")
        encoded = self._in_own_precision(encoded)
        with self._autocast(encoded.embedding.device):
            return self.apm.maps(encoded) if parts else self.apm.lesion_logits(encoded)

    def _in_own_precision(self, encoded: Encoded) -> Encoded:
        if self.precision == "fp32" and encoded.embedding.dtype != torch.float32:  # stored in 16 bits
            return encoded.map(lambda x: to_preferred_memory_format(x.float()))
        return encoded

    def channel(self, mask_index: int | None = None) -> int:
        """The channel of SAM's decoder for a ``mask_index`` of :meth:`decode`: 0: single mask, 1 to 3: multimask."""
        if mask_index is not None:
            return MULTIMASK[mask_index]
        return 0 if self.lesions is not None and self.lesions.output == "single" else MULTIMASK[0]

    def _decode_sets(
        self, encoded: Encoded, prompts: Prompts, shift: Tensor | None, channel: int
    ) -> tuple[Tensor, Tensor]:
        """Masks (B, 1, 4E, 4E), and estimates (B, 4) of the IoU of this mask and of the three multimask masks."""
        channels, estimates = (channel,), (channel, *MULTIMASK)
        owner = prompts.image
        if owner is None:
            return self.sam.decode(encoded, prompts, token_shift=shift, channels=channels, estimates=estimates)
        images, _, side, _ = encoded.embedding.shape
        if len(owner):  # one prompt set per lesion: all are decoded in one batch
            of_sets = Encoded(to_preferred_memory_format(encoded.embedding[owner]))
            shift = None if shift is None else shift[owner]
            found = self.sam.decode(of_sets, prompts, token_shift=shift, channels=channels, estimates=estimates)
        else:
            like = encoded.embedding.float()
            found = like.new_zeros(0, 1, 4 * side, 4 * side), like.new_zeros(0, len(estimates))
        return _unite(*found, owner, images)

    def prompt(self, encoded: Encoded) -> Prompted:
        """Predict prompts for encoded images with the net's prompter.

        Raises:
            UserError: the net has no prompter (code ``no-prompter``).
        """
        if self.apm is None:
            raise UserError("this net has no prompter: pass prompts, such as points or boxes.", code="no-prompter")
        encoded = self._in_own_precision(encoded)
        with self._autocast(encoded.embedding.device):
            prompted: Prompted = self.apm(encoded)
        return prompted

    def forward(
        self,
        image: Tensor | Encoded,
        prompts: Prompts | Points | None = None,
        *,
        points: Points | None = None,
        mask_index: int | None = None,
        fuse: bool | None = None,
        decode: bool = True,
    ) -> Prediction:
        """Encode and decode; the arguments are those of :meth:`decode`.

        ``image`` is a batch (B, 3, S, S) or its features, which :meth:`encode` returned. ``points=…``, or ``Points``
        instead of ``Prompts``, is short for ``Prompts(points=…)``. ``decode=False`` computes only the maps of lesions,
        to train them; the prediction has no prompts, and the maps are its mask.
        """
        encoded = image if isinstance(image, Encoded) else self.encode(image)
        if not decode:
            logits = self.lesion_map(encoded, parts=True)
            count = logits.shape[0]
            return Prediction(logits, logits.new_zeros(count, 1), Prompts.none(count), lesion_logits=logits)
        if points is not None:
            prompts = points
        if isinstance(prompts, Points):
            prompts = Prompts(points=prompts)
        return self.decode(encoded, prompts, mask_index=mask_index, fuse=fuse)

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _unite(logits: Tensor, ious: Tensor, owner: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """The union (B, 1, h, w) of masks (N, 1, h, w), and the means (B, 4) of their estimates; without a mask: 0.

    Args:
        logits: of N prompt sets.
        ious: (N, 4) estimates.
        owner: (N,) the image of each set.
        images: number of images, B.
    """
    empty = logits.new_full((images, *logits.shape[1:]), NO_LESION)
    # include_self=False: otherwise NO_LESION would be the lowest logit of every mask.
    united = empty.scatter_reduce(0, owner[:, None, None, None].expand_as(logits), logits, "amax", include_self=False)
    sums = ious.new_zeros(images, ious.shape[1]).index_add(0, owner, ious)
    counts = torch.bincount(owner, minlength=images).clamp(min=1)
    return united, sums / counts[:, None]


def fuse_map(logits: Tensor, lesion_logits: Tensor, weight: float, found: Tensor | None = None) -> Tensor:
    """Masks (B, 1, h, w) fused with maps of lesions (B, 1, h', w').

    Args:
        logits: of the masks.
        lesion_logits: of the maps.
        weight: of the maps.
        found: (B,) whether an image has a prompt set; the masks of the others stay empty. Default: all have one.
    """
    maps = F.interpolate(lesion_logits, size=logits.shape[-2:], mode="bilinear", align_corners=False)
    fused = torch.lerp(logits, maps, weight)
    return fused if found is None else torch.where(found[:, None, None, None], fused, logits)


def pool_taps(taps: Sequence[Tensor], side: int) -> tuple[Tensor, ...]:
    """Average taps (B, C_i, E, E) over squares of ``side`` pixels."""
    return tuple(F.avg_pool2d(tap, side, ceil_mode=True) for tap in taps)


def shrink_image(image: Tensor, side: int) -> Tensor:
    """Resize normalised images (B, 3, S, S) to a side that is not larger, with antialiasing."""
    if image.shape[-1] == side:
        return image
    return F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
