"""SAM's ViT for inference: the same numbers, less work; knows that module's insides, no APM, no IPS.

The decomposed relative position is added block by block of queries, so that no map of all pairs of tokens is ever
in memory; queries, keys and values of the zeros beyond the border are known without computing them; weights are cast
once; hidden layers pass through the cache. The residual stream stays in float32. Every step is exact; only
rounding differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from promise.models.cpu.parts import Linear, Mlp, Neck, Norm, strips

# Pairs of tokens that are in memory at once: by plain products in the cache; as the fused attention's mask on a CPU
# and on a GPU.
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
        for picture, top, bottom in strips(qkv, 3 * width * channels):
            qkv[picture, top:bottom] = self.qkv(self.norm(x[picture, top:bottom]).to(dtype))
        mixed = self._windows(qkv) if self.window else self._attend(qkv)
        out = torch.empty_like(x)
        for picture, top, bottom in strips(out, width * channels):
            out[picture, top:bottom] = x[picture, top:bottom] + self.project(mixed[picture, top:bottom])
        return out

    def _windows(self, qkv: Tensor) -> Tensor:
        batch, height, width, channels = qkv.shape
        side = self.window
        down, across = -(-height // side), -(-width // side)
        if (down * side, across * side) != (height, width):
            # Beyond the border lie zeros: what they give is the bias.
            beyond = qkv.new_zeros(channels) if self.qkv.bias is None else self.qkv.bias
            padded = beyond.repeat(batch, down * side, across * side, 1)
            padded[:, :height, :width] = qkv
            qkv = padded
        qkv = qkv.view(batch, down, side, across, side, channels).transpose(2, 3)
        mixed = self._attend(qkv.reshape(-1, side, side, channels))
        mixed = mixed.view(batch, down, across, side, side, -1).transpose(2, 3)
        return mixed.reshape(batch, down * side, across * side, -1)[:, :height, :width]

    def _attend(self, qkv: Tensor) -> Tensor:
        """(M, side, side, 3C) maps → (M, side, side, C), each token attending to all of its map."""
        maps, height, width = qkv.shape[:3]
        tokens = height * width
        qkv = qkv.view(maps, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        qkv = qkv.reshape(3, maps * self.heads, tokens, -1)
        query, key, value = qkv.unbind(0)
        by_row, by_column = self._positions(query, height, width)
        if qkv.device.type != "cpu" or qkv.dtype == torch.float32:
            mixed = self._fused(query, key, value, by_row, by_column)
        else:
            mixed = self._blocked(query, key, value, by_row, by_column)
        return mixed.view(maps, self.heads, height, width, -1).permute(0, 2, 3, 1, 4).reshape(maps, height, width, -1)

    def _positions(self, query: Tensor, height: int, width: int) -> tuple[Tensor | None, Tensor | None]:
        """What each query adds to the keys of every row (M·heads, N, height) and every column (M·heads, N, width)."""
        if self.rows is None or self.columns is None:
            return None, None
        grid = query.view(query.shape[0], height, width, -1)
        rows = grid @ self.rows.transpose(1, 2)
        columns = (grid.transpose(1, 2) @ self.columns.transpose(1, 2)).transpose(1, 2)
        return rows.reshape(*query.shape[:2], height), columns.reshape(*query.shape[:2], width)

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        """By PyTorch's fused attention, positions as its mask; some heads at a time, for the mask's memory."""
        tokens = query.shape[1]
        at_once = max(1, (MASK_PAIRS if query.device.type == "cpu" else GPU_MASK_PAIRS) // tokens**2)
        out = torch.empty_like(value)
        for first in range(0, query.shape[0], at_once):
            part = slice(first, first + at_once)
            mask = None
            if rows is not None and columns is not None:
                mask = (rows[part, :, :, None] + columns[part, :, None, :]).flatten(2)[None]
            out[part] = F.scaled_dot_product_attention(
                query[None, part], key[None, part], value[None, part], attn_mask=mask, scale=self.scale
            )[0]
        return out

    def _blocked(
        self, query: Tensor, key: Tensor, value: Tensor, rows: Tensor | None, columns: Tensor | None
    ) -> Tensor:
        """By plain products on blocks that stay in the cache: for bfloat16 on a CPU, the faster way."""
        count, tokens, _ = query.shape
        key = key.transpose(1, 2) * self.scale
        at_once, queries = max(1, BLOCK_PAIRS // tokens**2), max(1, BLOCK_PAIRS // tokens)
        out = torch.empty_like(value)
        for first in range(0, count, at_once):
            part = slice(first, first + at_once)
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
    """(2·side - 1, C) offsets → (side, side, C): [query, key]."""
    if table.shape[0] != 2 * side - 1:
        raise ValueError(f"relative positions for a side of {side} want {2 * side - 1} rows, got {table.shape[0]}.")
    at = torch.arange(side, device=table.device)
    return table[at[:, None] - at[None, :] + side - 1]


class FusedViT:
    """A ViT's weights, arranged for inference on the device they lie on; later changes of them are not seen."""

    def __init__(self, encoder: Any, dtype: torch.dtype) -> None:
        """Take over the weights of ``segment_anything``'s image encoder.

        Args:
            encoder: the module, in evaluation mode.
            dtype: what to compute in.
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
        """Encode.

        Args:
            image: (B, 3, S, S) float.
            taps: blocks whose outputs are wanted, counted from 1.

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
