"""MViT V2 small for clips of any even length and any size that 32 divides, in a form that runs fast everywhere.

torchvision's builder fixes 16 frames of 224 px, because the tables of relative positions depend on them. This builds
torchvision's own blocks from table 2 of the paper (Li et al., "MViTv2", CVPR 2022: MViTv2-S); at 16 frames of 224 px it
has torchvision's parameters, name for name, and its outputs.

What differs is how attention adds the relative positions. torchvision adds them to a slice of the attention matrix in
place, which ONNX can only say as ScatterND over the whole matrix. Here they ride along in the product of queries and
keys: with R the table rows for a query's own height, width and time,

    [s q | q R_h | q R_w | q R_t] [k | onehot(h) | onehot(w) | onehot(t)]^T = s q k^T + bias,

rows of zeros for the class token. The same numbers, one matrix product, and scaled_dot_product_attention applies.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.video import MViT
from torchvision.models.video.mvit import MSBlockConfig, MultiscaleAttention, MultiscaleBlock

from mvfoul.clip import ClipSpec
from mvfoul.errors import ConfigError

# Per stage: blocks, channels, and the key/value pooling stride that keeps attention affordable at that resolution.
_STAGES = ((1, 96, 8), (2, 192, 4), (11, 384, 2), (2, 768, 1))
_CHANNELS_PER_HEAD = 96
_STOCHASTIC_DEPTH = 0.2

Grid = tuple[int, int, int]
"""Tokens along time, height and width."""


class FoldedAttention(MultiscaleAttention):  # type: ignore[misc]  # torchvision has no types
    """torchvision's pooling attention with the relative positions folded into the product of queries and keys."""

    def forward(self, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
        """Attend.

        Args:
            x: `[B, 1 + T*H*W, C]`, the class token first.
            thw: The grid of the other tokens.

        Returns:
            `[B, 1 + T'*H'*W', C']` and its grid, after the queries' pooling.
        """
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        k, k_thw = self.pool_k(k, thw)
        v, _ = self.pool_v(v, thw)
        q, q_thw = self.pool_q(q, thw)

        folded_q = torch.cat((self.scaler * q, self._position_scores(q, q_thw, k_thw)), dim=-1)
        positions = _one_hot_positions(k_thw, dtype=k.dtype, device=k.device)
        folded_k = torch.cat((k, positions.expand(batch, self.num_heads, -1, -1)), dim=-1)
        out = _attend(folded_q, folded_k, v)
        # Residual pooling skips the class token.
        out = torch.cat((out[:, :, :1], out[:, :, 1:] + q[:, :, 1:]), dim=2)
        return self.project(out.transpose(1, 2).reshape(batch, -1, self.output_dim)), q_thw

    def _position_scores(self, q: Tensor, q_thw: Grid, k_thw: Grid) -> Tensor:
        """Return each query's score for every key height, width and time: `[B, heads, 1 + L, k_h + k_w + k_t]`."""
        batch, heads, _, dim = q.shape
        grid = q[:, :, 1:].reshape(batch, heads, *q_thw, dim)
        tables = (self.rel_pos_t, self.rel_pos_h, self.rel_pos_w)
        rows_t, rows_h, rows_w = (
            _table_rows(table, length, k_length) for table, length, k_length in zip(tables, q_thw, k_thw, strict=True)
        )
        # Batched products instead of einsum: two of the three then need no transposition in any engine.
        by_h = grid @ rows_h.transpose(1, 2)
        by_w = (grid.transpose(3, 4) @ rows_w.transpose(1, 2)).transpose(3, 4)
        by_t = (grid.flatten(3, 4) @ rows_t.transpose(1, 2)).unflatten(3, q_thw[1:])  # type: ignore[no-untyped-call]
        scores = torch.cat((by_h, by_w, by_t), dim=-1).flatten(2, 4)
        return nn.functional.pad(scores, (0, 0, 1, 0))


class FoldedBlock(MultiscaleBlock):  # type: ignore[misc]
    """torchvision's block around `FoldedAttention`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # The class and its parameters stay as built; only the way to compute them changes.
        self.attn.__class__ = FoldedAttention


def build_mvit_v2_s(clip: ClipSpec) -> MViT:
    """Build the network for `clip`'s frames and size, with random weights and torchvision's 400-way head.

    Raises:
        ConfigError: An odd number of frames, or a size that 32 does not divide.
    """
    if clip.num_frames % 2 or clip.size_px % 32:
        raise ConfigError(
            f"mvit_v2_s needs an even number of frames and a size that 32 divides; the clip spec has "
            f"{clip.num_frames} frames of {clip.size_px} px."
        )
    return MViT(
        spatial_size=(clip.size_px, clip.size_px),
        temporal_size=clip.num_frames,
        block_setting=_blocks(),
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        stochastic_depth_prob=_STOCHASTIC_DEPTH,
        block=FoldedBlock,
    )


def _blocks() -> list[MSBlockConfig]:
    blocks = []
    previous = _STAGES[0][1]
    for stage, (depth, channels, kv_stride) in enumerate(_STAGES):
        for block in range(depth):
            # The first block of each later stage halves the resolution and doubles the channels.
            q_stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(
                MSBlockConfig(
                    num_heads=channels // _CHANNELS_PER_HEAD,
                    input_channels=previous,
                    output_channels=channels,
                    kernel_q=[3, 3, 3],
                    kernel_kv=[3, 3, 3],
                    stride_q=[1, q_stride, q_stride],
                    stride_kv=[1, kv_stride, kv_stride],
                )
            )
            previous = channels
    return blocks


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T) v for q, k `[..., L, D]`, `[..., K, D]` and v `[..., K, E]`, E at most D: `[..., L, E]`."""
    if torch.compiler.is_exporting():
        # In float32 where the graph is float16, which holds no sum of many small exponentials.
        return torch.softmax(q @ k.transpose(-1, -2), dim=-1, dtype=torch.float32).to(v.dtype) @ v
    # The fused kernels want one width for q, k and v. measured: CPU time of the whole network 0.87 of the unfused form.
    # Those of a GPU want a multiple of 8. measured: bf16, forward and backward, on an H200: 0.96 of the time.
    width = v.shape[-1]
    wide = math.ceil(q.shape[-1] / 8) * 8 if q.is_cuda else q.shape[-1]
    q, k, v = (_widened(tensor, wide) for tensor in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :width]


def _widened(tensor: Tensor, width: int) -> Tensor:
    missing = width - tensor.shape[-1]
    return nn.functional.pad(tensor, (0, missing)) if missing else tensor  # padding by nothing copies


def _table_rows(table: Tensor, q_length: int, k_length: int) -> Tensor:
    """Return the table's rows for every pair of positions along one axis, `[q, k, D]`.

    Distances are scaled where queries and keys have different resolutions, as in the paper's section 4.1.
    """
    q_step, k_step = max(k_length // q_length, 1), max(q_length // k_length, 1)
    q_positions = torch.arange(q_length, device=table.device) * q_step
    k_positions = torch.arange(k_length, device=table.device) * k_step
    return table[q_positions[:, None] - k_positions[None, :] + (k_length - 1) * k_step]


def _one_hot_positions(k_thw: Grid, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return for each key token its height, width and time as one-hot columns, `[1 + K, k_h + k_w + k_t]`."""
    k_t, k_h, k_w = k_thw
    token = torch.arange(k_t * k_h * k_w, device=device)
    positions = (token // k_w % k_h, token % k_w, token // (k_h * k_w))
    columns = [nn.functional.one_hot(p, n) for p, n in zip(positions, (k_h, k_w, k_t), strict=True)]
    return nn.functional.pad(torch.cat(columns, dim=-1).to(dtype), (0, 0, 1, 0))
