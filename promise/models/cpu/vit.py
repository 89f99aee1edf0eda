"""Fused inference for SAM's ViT, with the same results up to rounding.

The decomposed relative positions are added for blocks of queries, so that the matrix of all pairs of tokens is never
in memory. Queries, keys and values of padding pixels are not computed: they equal the bias. Weights are cast once, and
hidden layers are computed strip by strip, so that they stay in the cache. The residual stream is in float32. No step
is an approximation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from promise.models.cpu.parts import Linear, Mlp, Neck, Norm, strips

# Maximum number of pairs of tokens in memory: for matrix products within the cache, and for the mask of PyTorch's
# fused attention on a CPU and on a GPU.
BLOCK_PAIRS, MASK_PAIRS, GPU_MASK_PAIRS = 2**21, 2**24, 2**28


@dataclass(frozen=True)
class _Attention:
    """Attention within windows or over the whole map, with its normalisation and residual, on (B, H, W, C)."""

    norm: Norm
    qkv: Linear
    project: Linear
    heads: int
    scale: float
    window: int  # 0: the whole map
    rows: Tensor | None  # (side, side, C / heads): [query row, key row]; None without relative positions
    columns: Tensor | None

    @staticmethod
    def of(block: Any, side: int, dtype: torch.dtype) -> _Attention:
        attention, window = block.attn, int(block.window_size)
        rows = columns = None
        if attention.use_rel_pos:
            rows, columns = (
                _relative(table, window or side).to(dtype) for table in (attention.rel_pos_h, attention.rel_pos_w)
            )
        return _Attention(
            Norm.of(block.norm1, torch.float32),
            Linear.of(attention.qkv, dtype),
            Linear.of(attention.proj, dtype),
            attention.num_heads,
            float(attention.scale),
            window,
            rows,
            columns,
        )

    def __call__(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        dtype = self.qkv.weight.dtype
        qkv = x.new_empty(batch, height, width, 3 * channels, dtype=dtype)
        for index, top, bottom in strips(qkv, 3 * width * channels):
            qkv[index, top:bottom] = self.qkv(self.norm(x[index, top:bottom]).to(dtype))
        mixed = self._windows(qkv) if self.window else self._attend(qkv)
        out = torch.empty_like(x)
        for index, top, bottom in strips(out, width * channels):
            torch.add(x[index, top:bottom], self.project(mixed[index, top:bottom]), out=out[index, top:bottom])
        return out

    def _windows(self, qkv: Tensor) -> Tensor:
        batch, height, width, channels = qkv.shape
        side = self.window
        down, across = -(-height // side), -(-width // side)
        if (down * side, across * side) != (height, width):
            # Padding pixels are zero, so their query, key and value are the bias.
            padding = qkv.new_zeros(channels) if self.qkv.bias is None else self.qkv.bias
            padded = padding.repeat(batch, down * side, across * side, 1)
            padded[:, :height, :width] = qkv
            qkv = padded
        qkv = qkv.view(batch, down, side, across, side, channels).transpose(2, 3)
        mixed = self._attend(qkv.reshape(-1, side, side, channels))
        mixed = mixed.view(batch, down, across, side, side, -1).transpose(2, 3)
        return mixed.reshape(batch, down * side, across * side, -1)[:, :height, :width]

    def _attend(self, qkv: Tensor) -> Tensor:
        """(M, side, side, 3C) maps → (M, side, side, C); each token attends to all tokens of its map."""
        maps, height, width = qkv.shape[:3]
        tokens = height * width
        qkv = qkv.view(maps, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Contiguous, so that the products of blocks do not copy their inputs again and again.
        qkv = qkv.reshape(3, maps * self.heads, tokens, -1).contiguous()
        query, key, value = qkv.unbind(0)
        by_row, by_column = self._position_logits(query, height, width)
        if qkv.device.type != "cpu" or qkv.dtype == torch.float32:
            mixed = self._attend_fused(query, key, value, by_row, by_column)
        else:
            mixed = self._attend_blocked(query, key, value, by_row, by_column)
        return mixed.view(maps, self.heads, height, width, -1).permute(0, 2, 3, 1, 4).reshape(maps, height, width, -1)

    def _position_logits(self, query: Tensor, height: int, width: int) -> tuple[Tensor | None, Tensor | None]:
        """Position logits of each query: (M·heads, N, height) by key row and (M·heads, N, width) by key column."""
        if self.rows is None or self.columns is None:
            return None, None
        grid = query.view(query.shape[0], height, width, -1)
        rows = grid @ self.rows.transpose(1, 2)
        columns = (grid.transpose(1, 2) @ self.columns.transpose(1, 2)).transpose(1, 2)
        return rows.reshape(*query.shape[:2], height), columns.reshape(*query.shape[:2], width)

    def _attend_fused(
        self, query: Tensor, key: Tensor, value: Tensor, rows: Tensor | None, columns: Tensor | None
    ) -> Tensor:
        """Use PyTorch's fused attention with positions as mask; a few heads per step, to limit memory."""
        tokens = query.shape[1]
        heads_per_step = max(1, (MASK_PAIRS if query.device.type == "cpu" else GPU_MASK_PAIRS) // tokens**2)
        out = torch.empty_like(value)
        for first in range(0, query.shape[0], heads_per_step):
            part = slice(first, first + heads_per_step)
            mask = None
            if rows is not None and columns is not None:
                mask = (rows[part, :, :, None] + columns[part, :, None, :]).flatten(2)[None]
            out[part] = F.scaled_dot_product_attention(
                query[None, part], key[None, part], value[None, part], attn_mask=mask, scale=self.scale
            )[0]
        return out

    def _attend_blocked(
        self, query: Tensor, key: Tensor, value: Tensor, rows: Tensor | None, columns: Tensor | None
    ) -> Tensor:
        """Use matrix products on blocks that fit the cache, which is faster for bfloat16 on a CPU."""
        count, tokens, _ = query.shape
        key = (key * self.scale).transpose(1, 2).contiguous()
        heads_per_step, queries = max(1, BLOCK_PAIRS // tokens**2), max(1, BLOCK_PAIRS // tokens)
        out = torch.empty_like(value)
        for first in range(0, count, heads_per_step):
            part = slice(first, first + heads_per_step)
            for start in range(0, tokens, queries):
                block = slice(start, start + queries)
                logits = query[part, block] @ key[part]
                if rows is not None and columns is not None:
                    grid = logits.view(*logits.shape[:2], rows.shape[2], columns.shape[2])
                    grid += rows[part, block, :, None]
                    grid += columns[part, block, None, :]
                out[part, block] = logits.softmax(dim=-1) @ value[part]
        return out


def _relative(table: Tensor, side: int) -> Tensor:
    """Expand a table of offsets (2·side - 1, C) to (side, side, C): [query, key]."""
    if table.shape[0] != 2 * side - 1:
        raise ValueError(f"relative positions of side {side} must have {2 * side - 1} rows, got {table.shape[0]}.")
    at = torch.arange(side, device=table.device)
    return table[at[:, None] - at[None, :] + side - 1]


class FusedViT:
    """A ViT for inference, on the device of its weights. Build it again after the weights change."""

    def __init__(self, encoder: Any, dtype: torch.dtype) -> None:
        """Build from the image encoder of ``segment_anything``.

        Args:
            encoder: the module, in evaluation mode.
            dtype: the floating-point type of the computation.
        """
        self.dtype = dtype
        self.patch = encoder.patch_embed.proj
        self.position = encoder.pos_embed
        side = encoder.img_size // self.patch.stride[0]
        self.blocks = [
            (
                _Attention.of(block, side, dtype),
                Mlp.of(block.norm2, block.mlp.lin1, block.mlp.lin2, dtype, stream=torch.float32),
            )
            for block in encoder.blocks
        ]
        self.neck = Neck.of(encoder.neck, dtype)

    def __call__(self, image: Tensor, taps: tuple[int, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode images.

        Args:
            image: (B, 3, S, S) float, normalised as the backbone requires.
            taps: blocks whose outputs are returned, counted from 1.

        Returns:
            The embedding (B, 256, E, E) and the taps (B, C, E, E), in ``dtype`` and channels-last.
        """
        x = self.patch(image.float()).permute(0, 2, 3, 1).contiguous()
        if self.position is not None:
            x = x + self.position
        kept = []
        for number, (attention, mlp) in enumerate(self.blocks, start=1):
            x = mlp(attention(x))
            if number in taps:
                kept.append(x.to(self.dtype).permute(0, 3, 1, 2))
        return self.neck(x.to(self.dtype)).permute(0, 3, 1, 2), tuple(kept)
