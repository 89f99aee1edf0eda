"""A frozen SAM: encodes batches of images with taps, and decodes masks with a token shift.

Everything that is specific to one implementation of SAM is in the backbone's ``encode`` and ``adapter``; see
:mod:`promise.models.sam.adapter`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from promise.models.sam.adapter import POINT_LABELS, Fuse, Fused, run_block
from promise.models.sam.backbones import Backbone
from promise.models.sam.weights import state_sha256
from promise.runtime.settings import freeze_code
from promise.types import Encoded, Points, Prompts, join, to_preferred_memory_format

# The reference implementation's switches: which parts of SAM stay frozen.
FREEZE: dict[str, frozenset[str]] = {
    "FZ0": frozenset({"image_encoder", "prompt_encoder", "mask_decoder"}),
    "FZ1": frozenset({"image_encoder", "mask_decoder"}),
    "FZ2": frozenset({"image_encoder", "prompt_encoder"}),
    "FZ3": frozenset({"image_encoder"}),
    "FZ4": frozenset(),
}

MULTIMASK = (1, 2, 3)  # the decoder's channels of SAM's three multimask masks
# Reference parity: the reference implementation uses the first of the three.
FIRST_MULTIMASK = (1,)


class FrozenSam(nn.Module):
    """SAM, always in evaluation mode; frozen parts have no gradients."""

    image_encoder: Any
    prompt_encoder: Any
    mask_decoder: Any

    def __init__(self, sam: Any, backbone: Backbone, *, freeze: str = "all") -> None:
        """Use the parts of a SAM, whose ``requires_grad`` flags are changed.

        Args:
            sam: a module with ``image_encoder``, ``prompt_encoder`` and ``mask_decoder``.
            backbone: its entry in the table.
            freeze: which parts stay frozen: ``all`` (``FZ0``), ``encoder+decoder`` (``FZ1``: image encoder and mask
                decoder), ``encoders`` (``FZ2``: image and prompt encoder), ``encoder`` (``FZ3``: image encoder),
                ``none`` (``FZ4``).

        Raises:
            UserError: the switch is unknown (code ``unknown-freeze-switch``).
        """
        super().__init__()
        self.image_encoder = sam.image_encoder
        self.prompt_encoder = sam.prompt_encoder
        self.mask_decoder = sam.mask_decoder
        self.backbone = backbone
        self.freeze = freeze_code(freeze)
        # Recompute a block's activations in the backward pass instead of storing them.
        self.gradient_checkpointing = False
        self.fuse: Fuse | None = None  # builds the fused encoder; see promise.models.cpu
        self.compile_encoder = False  # compile the fused encoder with torch.compile
        # dtype → (state of the encoder when the fused encoder was built, the fused encoder)
        self._fused: dict[torch.dtype, tuple[object, Fused]] = {}
        for name, part in self.named_children():
            part.requires_grad_(name not in FREEZE[self.freeze])
        self.eval()

    def train(self, mode: bool = True) -> FrozenSam:
        """Stay in evaluation mode: the statistics of normalisation layers do not change, even in parts that train."""
        # LiteMedSAM's attention makes a buffer here; several processes cannot synchronise one made in inference mode.
        with torch.inference_mode(False):
            return super().train(False)

    @property
    def trained_parts(self) -> tuple[str, ...]:
        """Names of the parts that a freeze switch leaves trainable."""
        return tuple(name for name, _ in self.named_children() if name not in FREEZE[self.freeze])

    def weights_sha256(self) -> str:
        """SHA-256 of the current weights of SAM, as hex digits."""
        return state_sha256(self.state_dict())

    def encode(self, image: Tensor, *, taps: bool = True) -> Encoded:
        """Encode images.

        Args:
            image: (B, 3, S, S) float, normalised as the backbone requires.
            taps: also return the outputs of the tapped blocks.

        Returns:
            Features in the memory format of :func:`promise.types.to_preferred_memory_format`.

        Raises:
            ValueError: the size of the images is not that of the backbone.
        """
        side = self.backbone.image_size
        if image.ndim != 4 or image.shape[1:] != (3, side, side):
            raise ValueError(f"{self.backbone.name} requires images (B, 3, {side}, {side}), got {tuple(image.shape)}.")
        blocks = self.backbone.tap_blocks if taps else ()
        if "image_encoder" not in FREEZE[self.freeze]:
            return Encoded(*self.backbone.encode(self.image_encoder, image, blocks, self._run)).map(
                to_preferred_memory_format
            )
        with torch.no_grad():
            if self.fuse is None:
                return Encoded(*self.backbone.encode(self.image_encoder, image, blocks, run_block)).map(
                    to_preferred_memory_format
                )
            kind = image.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else image.dtype
            fused = self._fused_encoder(self.fuse, dtype)
            with _full_precision(image):
                # On a CPU images are encoded one by one: as fast, less memory, and results independent of the batch.
                parts = torch.split(image, 1) if kind == "cpu" else (image,)
                return join([Encoded(*fused(part, blocks)) for part in parts])

    def _fused_encoder(self, fuse: Fuse, dtype: torch.dtype) -> Fused:
        """The fused encoder in this dtype: built on first use, and rebuilt when weights change or move."""
        tensors = self.image_encoder.state_dict(keep_vars=True).values()
        state = [(t.data_ptr(), 0 if t.is_inference() else t._version, t.device) for t in tensors]
        if dtype not in self._fused or self._fused[dtype][0] != state:
            with torch.inference_mode(False), torch.no_grad():  # it is used inside and outside of inference mode
                fused = fuse(self.image_encoder, dtype)
                self._fused[dtype] = state, torch.compile(fused) if self.compile_encoder else fused
        return self._fused[dtype][1]

    def decode(
        self,
        encoded: Encoded,
        prompts: Prompts,
        *,
        token_shift: Tensor | None = None,
        channels: Sequence[int] = FIRST_MULTIMASK,
        estimates: Sequence[int] | None = None,
        pad: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode masks from prompts for a batch of images.

        Args:
            encoded: what :meth:`encode` returned; only the embedding (B, 256, E, E) is used.
            prompts: in input pixels. Point labels 2 and 3 are a box's corners x0, y0 and x1, y1.
            token_shift: (B, 4, 256), added to SAM's four mask tokens.
            channels: which of the decoder's four masks to compute; 0 is the single mask, 1 to 3 the multimask.
            estimates: the masks whose quality is estimated; default: those that are computed.
            pad: whether to add SAM's padding point; by default it is added if there are no boxes, as in SAM.

        Returns:
            Logits (B, len(channels), 4E, 4E) and estimated IoUs (B, len(estimates)).
        """
        embedding = encoded.embedding
        batch = embedding.shape[0]
        pad = prompts.boxes is None if pad is None else pad
        sparse, dense = self._embed_prompts(prompts, batch, pad)
        adapter, decoder = self.backbone.adapter, self.mask_decoder
        quality, masks = adapter.tokens(decoder).expand(batch, -1, -1).tensor_split((1,), dim=1)
        if token_shift is not None:
            masks = masks + token_shift
        tokens = torch.cat((quality, masks, sparse), dim=1)
        with _full_precision(embedding):
            position = adapter.dense_position(self.prompt_encoder).expand(batch, -1, -1, -1)
        out, updated = self._run(partial(adapter.transform, decoder), embedding + dense, position, tokens)
        upscaled = self._run(partial(adapter.upscale, decoder), updated)  # (B, 32, 4E, 4E)
        weights = [adapter.mask_weights(decoder, channel, out[:, 1 + channel]) for channel in channels]
        # A product of (pixels, channels), the order in memory: the gradient of the upscaling is then not transposed.
        logits = upscaled.permute(0, 2, 3, 1).flatten(1, 2) @ torch.stack(weights, dim=2)
        logits = logits.transpose(1, 2).reshape(batch, len(channels), *upscaled.shape[2:])
        iou = adapter.quality(decoder, out[:, 0])[:, list(channels if estimates is None else estimates)]
        return logits.float(), iou.float()

    def _run(self, block: Callable[..., Any], *inputs: Tensor) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _embed_prompts(self, prompts: Prompts, batch: int, pad: bool) -> tuple[Tensor, Tensor]:
        """Sparse (B, N, C) and dense (B, C, E, E) embeddings of prompts."""
        adapter, encoder = self.backbone.adapter, self.prompt_encoder
        points, boxes, mask_prompt = prompts.points, prompts.boxes, prompts.masks
        sparse = []
        if points is not None and points.xy.shape[1]:
            sparse.append(self._embed_points(points, pad=pad))
        if boxes is not None:
            sparse.append(self._embed_boxes(boxes))
        if mask_prompt is not None:
            dense = adapter.mask_embedding(encoder, mask_prompt)
        else:
            side = self.backbone.embedding_side
            dense = adapter.no_mask_embedding(encoder).reshape(1, -1, 1, 1).expand(batch, -1, side, side)
        if not sparse:
            return dense.new_zeros(batch, 0, dense.shape[1]), dense
        return torch.cat(sparse, dim=1), dense

    def _embed_points(self, points: Points, *, pad: bool) -> Tensor:
        # The same sums as in SAM's prompt encoder, but with torch.where: boolean indexing would synchronise the host
        # with the device. In full precision, because bfloat16 cannot resolve single pixels of 1024.
        adapter, encoder = self.backbone.adapter, self.prompt_encoder
        xy, label = points.xy.float() + 0.5, points.label
        if pad:
            xy = torch.cat((xy, xy.new_zeros(xy.shape[0], 1, 2)), dim=1)
            label = torch.cat((label, label.new_full((label.shape[0], 1), -1)), dim=1)
        with _full_precision(xy):
            raw = adapter.position(encoder, xy)
        label = label.unsqueeze(-1)
        embedded: Tensor = torch.where(label == -1, torch.zeros_like(raw), raw)
        for value, embedding in zip(POINT_LABELS, adapter.label_embeddings(encoder), strict=True):
            embedded = embedded + (label == value) * embedding
        return embedded

    def _embed_boxes(self, boxes: Tensor) -> Tensor:
        """Embed boxes (B, 4) as two corner points, which have labels of their own: (B, 2, C)."""
        adapter, encoder = self.backbone.adapter, self.prompt_encoder
        corners = boxes.float().reshape(-1, 2, 2) + 0.5
        with _full_precision(boxes):
            return adapter.position(encoder, corners) + torch.cat(adapter.label_embeddings(encoder)[-2:])


def _full_precision(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)
