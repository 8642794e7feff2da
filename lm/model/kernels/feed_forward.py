"""SwiGLU's two openings and its backward product, each with its pointwise part, in Triton for Hopper (H100, H200).

The numbers of a tile are still in registers when its product ends: the forward kernel writes gate, value and their
activation from there, and the backward kernel turns the activation's gradient into those of gate and value without
ever storing it. The other products are cuBLAS's.

Shape letters: N tokens, D d_model, F d_ff; BN, BF, BD those of a block.
"""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lm.model.kernels.hopper import BD, BN, STAGES, blocks, halves, multiprocessors, place
from lm.model.products import kept, stacked, wide_product

FORWARD_BF, FORWARD_WARPS = 64, 4  # the product has a column of gates and one of values for each of F
BACKWARD_BF, BACKWARD_WARPS = 128, 8
BACKWARD_REGISTERS = 128  # of a thread, at most: two programs share a multiprocessor's 65,536


@triton.jit
def _forward(
    x, w13, gates, values, acts, tokens, width,
    D: tl.constexpr, BN: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Tiles that lie as many apart as there are programs; the next one's blocks load while the last one is written."""
    rows, columns = tl.cdiv(tokens, BN), tl.cdiv(width, BF)
    for tile in tl.range(tl.program_id(0), rows * columns, tl.num_programs(0), flatten=True):
        row, column = place(tile, rows, columns)
        sums = tl.zeros((BN, 2 * BF), tl.float32)
        for d in range(0, D, BD):
            w = w13.load([0, column * BF, d]).reshape(2 * BF, BD)
            sums = tl.dot(x.load([row * BN, d]), w.T, sums)
        gate, value = halves(sums, BN, 2 * BF)
        at = [row * BN, column * BF]
        gates.store(at, gate.to(gates.dtype))
        values.store(at, value.to(values.dtype))
        acts.store(at, (gate * tl.sigmoid(gate) * value).to(acts.dtype))


@triton.jit
def _store_gradients(act_gradient, gates_values, out, row, column):
    """Gates and values come and go together, as each load and each store is waited for."""
    gate, value = gates_values.load([row, 0, column]).permute(0, 2, 1).split()
    gate = gate.to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    scaled = act_gradient * sigmoid
    gate_gradient = scaled * value.to(tl.float32) * (1 + gate * (1 - sigmoid))
    value_gradient = scaled * gate
    both = tl.join(gate_gradient.to(out.dtype), value_gradient.to(out.dtype))
    out.store([row, 0, column], both.permute(0, 2, 1))


@triton.jit
def _backward(
    gradient, w2, gates_values, out, tokens, width,
    D: tl.constexpr, BN: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One tile; its halves follow one another, which halves the registers that the pointwise part takes."""
    row, column = place(tl.program_id(0), tl.cdiv(tokens, BN), tl.cdiv(width, BF))
    sums = tl.zeros((BN, BF), tl.float32)
    for d in range(0, D, BD):
        sums = tl.dot(gradient.load([row * BN, d]), w2.load([d, column * BF]), sums)
    left, right = halves(sums, BN, BF)
    _store_gradients(left, gates_values, out, row * BN, column * BF)
    _store_gradients(right, gates_values, out, row * BN, column * BF + BF // 2)


def _settings(d_model: int, block: int, warps: int) -> dict[str, int]:
    return {"D": d_model, "BN": BN, "BF": block, "BD": BD, "num_warps": warps, "num_stages": STAGES}


def _open(x_ND: Tensor, w13: Tensor) -> tuple[Tensor, Tensor]:
    """Gates and values, (N, 2F), and silu(gate) * value, (N, F)."""
    (tokens, d_model), width, block = x_ND.shape, len(w13) // 2, FORWARD_BF
    gate_value_N2F, act_NF = x_ND.new_empty(tokens, 2 * width), x_ND.new_empty(tokens, width)
    outs = [blocks(out, BN, block) for out in (*gate_value_N2F.chunk(2, 1), act_NF)]
    tiles = triton.cdiv(tokens, BN) * triton.cdiv(width, block)
    programs = min(tiles, 2 * multiprocessors(x_ND.device))
    _forward[(programs,)](
        blocks(x_ND, BN, BD), blocks(w13.view(2, width, d_model), 2, block, BD), *outs, tokens, width,
        **_settings(d_model, block, FORWARD_WARPS),
    )  # fmt: skip
    return gate_value_N2F, act_NF


def _open_gradient(gradient_ND: Tensor, w2: Tensor, gate_value_N2F: Tensor) -> Tensor:
    """The gradient of gates and values, (N, 2F), from that of the feed-forward's output."""
    (tokens, d_model), width, block = gradient_ND.shape, w2.shape[1], BACKWARD_BF
    out_N2F = torch.empty_like(gate_value_N2F)
    pairs = [blocks(x_N2F.view(tokens, 2, width), BN, 2, block // 2) for x_N2F in (gate_value_N2F, out_N2F)]
    _backward[(triton.cdiv(tokens, BN) * triton.cdiv(width, block),)](
        blocks(gradient_ND, BN, BD), blocks(w2, BD, block), *pairs, tokens, width,
        **_settings(d_model, block, BACKWARD_WARPS), maxnreg=BACKWARD_REGISTERS,
    )  # fmt: skip
    return out_N2F


def _parted(matrices: Sequence[Tensor], x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """w1 and w3 as one, (2F, D), and w2, (D, F), in the type of x."""
    d_model, narrow = x_ND.shape[1], stacked(matrices, x_ND.dtype)
    w13, w2 = narrow.split(len(narrow) // 3 * 2)
    return w13, w2.view(d_model, -1)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, w1: Tensor, w3: Tensor, w2: Tensor) -> Tensor:
        matrices = kept((w1, w3, w2.view_as(w1)), x_ND.dtype)  # one launch for all three
        w13, w2_narrow = _parted(matrices, x_ND)
        gate_value_N2F, act_NF = _open(x_ND, w13)
        ctx.save_for_backward(x_ND, gate_value_N2F, act_NF, *matrices)
        ctx.wide = w1.dtype
        return wide_product(act_NF, w2_narrow.T, x_ND.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        x_ND, gate_value_N2F, act_NF, *matrices = ctx.saved_tensors
        w13, w2 = _parted(matrices, x_ND)
        gradient_ND = gradients[0].contiguous()
        gradient_N2F = _open_gradient(gradient_ND, w2, gate_value_N2F)
        of_w2 = wide_product(gradient_ND.T, act_NF, ctx.wide)
        of_w1, of_w3 = wide_product(gradient_N2F.T, x_ND, ctx.wide).chunk(2)
        of_x = wide_product(gradient_N2F, w13, x_ND.dtype)
        return of_x, of_w1, of_w3, of_w2


def feed_forward(x: Tensor, w1: Tensor, w3: Tensor, w2: Tensor) -> Tensor:
    """w2(silu(w1 x) * w3 x), (..., D) to (..., D), as `lm.model.SwiGLU` with the weights rounded to the type of x.

    The weights' gradients have the weights' type. For arguments that `lm.model.kernels.hopper.fits` takes.

    Args:
        x: (..., D), bfloat16, in one piece.
        w1: (F, D), of the gates; float32 or bfloat16, as all three.
        w3: (F, D), of the values.
        w2: (D, F).
    """
    return _FeedForward.apply(x.reshape(-1, x.shape[-1]), w1, w3, w2).view(x.shape)  # pyright: ignore
