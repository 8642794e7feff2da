"""Queries, keys and values by one product, with the rotation of queries and keys: in Triton on Hopper (H100, H200).

There a tile is rotated while its numbers are still in registers, if it is made of whole heads; all of them take the
same angles. Elsewhere the rotation follows cuBLAS's product, in place. Shape letters: B batch, T time, D d_model,
H heads, K head width, N tokens; BN, BF, BD those of a block.
"""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lm.model.kernels.hopper import BD, BN, STAGES, blocks, fits, halves, multiprocessors, place, tile_product
from lm.model.kernels.rope import rotate, turn_pairs
from lm.model.products import product_gradients, remember, wide_product

BF, WARPS = 256, 8
PART = 64  # columns that are written at a time


@triton.jit
def _store(values, out, row, column, BN: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr):
    if COLUMNS > PART:
        left, right = halves(values, BN, COLUMNS)
        _store(left, out, row, column, BN, COLUMNS // 2, PART)
        _store(right, out, row, column + COLUMNS // 2, BN, COLUMNS // 2, PART)
    else:
        out.store([row, column], values)


@triton.jit
def _project(
    x, w, out, cos_ptr, sin_ptr, tokens, time,
    D: tl.constexpr, K: tl.constexpr, BN: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Tiles that lie as many apart as there are programs; the next one's blocks load while the last one is written."""
    rows, columns = tl.cdiv(tokens, BN), tl.cdiv(3 * D, BF)
    for tile in tl.range(tl.program_id(0), rows * columns, tl.num_programs(0), flatten=True):
        row, column = place(tile, rows, columns)
        sums = tile_product(x, w, row, column, D, BN, BF, BD)
        if column * BF < 2 * D:
            angles = ((row * BN + tl.arange(0, BN)) % time)[:, None] * (K // 2) + tl.arange(0, K // 2)[None, :]
            cos = tl.load(cos_ptr + angles)[:, None, :]
            sin = tl.load(sin_ptr + angles)[:, None, :]
            if 2 * D % BF:
                is_rotated = (column * BF + K * tl.arange(0, BF // K) < 2 * D)[None, :, None]
                cos, sin = tl.where(is_rotated, cos, 1.0), tl.where(is_rotated, sin, 0.0)
            sums = turn_pairs(sums.reshape(BN, BF // K, K // 2, 2), cos, sin).reshape(BN, BF)
        _store(sums.to(out.dtype), out, row * BN, column * BF, BN, BF, PART)


def has_whole_heads(width: int) -> bool:
    """Whether a tile is made of whole heads of this width."""
    return BF % width == 0


def rotated_product(x_BTD: Tensor, w_3DD: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """x @ w.T, (B, T, 3D), rotated but for its last third.

    For arguments that `lm.model.kernels.hopper.fits` takes, and widths of heads that `has_whole_heads` does.
    """
    _, time, d_model = x_BTD.shape
    x_ND = x_BTD.reshape(-1, d_model)
    out_N3D = x_ND.new_empty(len(x_ND), 3 * d_model)
    tiles = triton.cdiv(len(x_ND), BN) * triton.cdiv(3 * d_model, BF)
    _project[(min(tiles, multiprocessors(x_ND.device)),)](
        blocks(x_ND, BN, BD), blocks(w_3DD, BF, BD), blocks(out_N3D, BN, PART), cos, sin, len(x_ND), time,
        D=d_model, K=d_model // heads, BN=BN, BF=BF, BD=BD, PART=PART, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return out_N3D.view(*x_BTD.shape[:2], -1)


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BTD: Tensor, heads: int, cos: Tensor | None, sin: Tensor | None, *weights: Tensor
    ) -> Tensor:
        w_3DD = remember(ctx, x_BTD, weights)
        if cos is not None and sin is not None and has_whole_heads(x_BTD.shape[-1] // heads) and fits(x_BTD, *weights):
            return rotated_product(x_BTD, w_3DD, heads, cos, sin).unflatten(-1, (3, heads, -1))
        qkv_BT3HK = wide_product(x_BTD, w_3DD.T, x_BTD.dtype).unflatten(-1, (3, heads, -1))
        if cos is not None and sin is not None:
            rotate(qkv_BT3HK.unbind(2)[:2], qkv_BT3HK, cos, sin, 1)
        return qkv_BT3HK

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_x, *of_weights = product_gradients(ctx, gradients[0])
        return of_x, None, None, None, *of_weights


def projection(x_BTD: Tensor, weights: Sequence[Tensor], heads: int, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """Rotated queries and keys, and values, (B, T, 3, H, K), by matrices rounded to the type of x.

    Its backward pass wants the gradients from before the rotation: `causal_attention` and `long_attention` turn them
    back while they write them.

    Args:
        x_BTD: in one piece.
        weights: of queries, keys and values, (D, D) each.
        heads: H.
        cos: (T or more, K / 2) of the angles by which pairs of neighbours are rotated, float32; None for no rotation.
        sin: likewise.
    """
    return _Projection.apply(x_BTD, heads, cos, sin, *weights)  # pyright: ignore
