"""Rotation of queries and keys in Triton, and attention of long texts by torch's kernels.

The gradients that torch's kernel gives are turned back while they are put together for the backward pass of the
product that queries, keys and values come from.

Shape letters: B batch, T time, H heads, K head width, R tokens at a time, P pairs of a token's heads at a time.
"""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 4  # of a program


@triton.jit
def turn_pairs(x, cos, sin):
    """Pairs of numbers, (..., 2), each by its angle; the other way for -sin."""
    even, odd = tl.split(x)
    return tl.join(even * cos - odd * sin, even * sin + odd * cos)


@triton.jit
def _turn(
    queries_ptr, keys_ptr, values_ptr, cos_ptr, sin_ptr, out_ptr, tokens, time, width, stride, direction,
    HALF: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Pairs of the queries (program 0 of the second axis) or keys (1) by their positions' angles; values (2) as is."""
    part = tl.program_id(1)
    rows = tl.program_id(0) * R + tl.arange(0, R)
    source_ptr = queries_ptr if part == 0 else keys_ptr if part == 1 else values_ptr
    for start in range(0, width // 2, P):
        pairs = start + tl.arange(0, P)
        there = (rows[:, None] < tokens) & (pairs[None, :] < width // 2)
        angles = (rows % time)[:, None] * HALF + (pairs % HALF)[None, :]
        cos = tl.load(cos_ptr + angles, mask=there & (part < 2), other=1.0)
        sin = tl.load(sin_ptr + angles, mask=there & (part < 2), other=0.0) * direction
        columns = 2 * start + tl.arange(0, 2 * P)
        kept = (rows[:, None] < tokens) & (columns[None, :] < width)
        at = rows[:, None].to(tl.int64) * stride + columns[None, :]
        x = tl.load(source_ptr + at, mask=kept, other=0.0).to(tl.float32)
        turned = turn_pairs(x.reshape(R, P, 2), cos, sin).reshape(R, 2 * P)
        out = rows[:, None].to(tl.int64) * 3 * width + part * width + columns[None, :]
        tl.store(out_ptr + out, turned, mask=kept)


def rotate(parts: Sequence[Tensor], out_BT3HK: Tensor, cos: Tensor, sin: Tensor, direction: int) -> None:
    """Queries and keys, (B, T, H, K) each, rotated into `out`; and values as they are, where they are given."""
    batch_size, time, _, heads, width = out_BT3HK.shape
    pairs = min(256, triton.next_power_of_2(heads * width // 2))
    _turn[(triton.cdiv(batch_size * time, TOKENS), len(parts))](
        parts[0], parts[1], parts[-1], cos, sin, out_BT3HK, batch_size * time, time, heads * width, parts[0].stride(1),
        direction, HALF=width // 2, R=TOKENS, P=pairs,
    )  # fmt: skip


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_BT3HK: Tensor, cos: Tensor | None, sin: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        return tuple(x.transpose(1, 2) for x in qkv_BT3HK.unbind(2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        parts = [gradient.transpose(1, 2).contiguous() for gradient in gradients]
        if cos is None:
            return torch.stack(parts, 2), None, None
        out_BT3HK = parts[0].new_empty(*parts[0].shape[:2], 3, *parts[0].shape[2:])
        rotate(parts, out_BT3HK, cos, sin, -1)
        return out_BT3HK, None, None


def long_attention(qkv_BT3HK: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """As `lm.model.kernels.attention.causal_attention`, for any K."""
    q, k, v = _Parts.apply(qkv_BT3HK, cos, sin)  # pyright: ignore
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
