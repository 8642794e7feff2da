"""The output projection up to its softmax, in Triton for Hopper (H100, H200): no pass over the logits.

The product's tiles leave their registers as exponentials relative to the target's, and their sums are taken on the way:

    E[r, v] = exp(logit[r, v] - logit[r, target[r]]),  S[r] = sum of E[r, v] over v,  loss[r] = log S[r]

The gradient of a row's logits, softmax minus one-hot, is then E / S, but (E - S) / S at the target. E reaches as far as
float32 does, and is as precise as the softmax itself would be. Divided by S are not the (R, V) numbers of E but the
(R, D) ones that its two products read and write. The target's logit is known before, from a product of single rows.

Shape letters: R rows, D d_model, V vocabulary; BN, BV, BD those of a block, P blocks of a row.
"""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from lm.model.kernels.attention import LOG2_E
from lm.model.kernels.embedding import by_rows
from lm.model.kernels.hopper import BD, BN, STAGES, blocks, halves, multiprocessors, place, tile_product

BV, WARPS = 256, 8
PART = 64  # columns that become exponentials and are written at a time
HIGHEST = tl.constexpr(80.0)  # logarithm to base 2, at most, of E; more only beside a target with a loss above 55


@triton.jit
def _target_logits(x_ptr, weight_ptr, targets_ptr, out_ptr, width, W: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    sum_W = tl.zeros((W,), tl.float32)
    for start in range(0, width, W):
        columns = start + tl.arange(0, W)
        x_W = tl.load(x_ptr + row * width + columns, mask=columns < width, other=0.0).to(tl.float32)
        weight_W = tl.load(weight_ptr + target * width + columns, mask=columns < width, other=0.0)
        sum_W += x_W * weight_W.to(tl.float32)
    tl.store(out_ptr + row, tl.sum(sum_W, 0))


@triton.jit
def _write(sums, totals, out, shifts, row, column, width, BN: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr):
    """Exponentials of a tile's columns; gives `totals` with their sums added."""
    if COLUMNS > PART:
        left, right = halves(sums, BN, COLUMNS)
        totals = _write(left, totals, out, shifts, row, column, width, BN, COLUMNS // 2, PART)
        totals = _write(right, totals, out, shifts, row, column + COLUMNS // 2, width, BN, COLUMNS // 2, PART)
    else:
        powers = tl.minimum(sums * LOG2_E - shifts[:, None], HIGHEST, propagate_nan=tl.PropagateNan.ALL)
        exponentials = tl.exp2(powers)
        if column + COLUMNS > width:
            exponentials = tl.where((column + tl.arange(0, COLUMNS) < width)[None, :], exponentials, 0.0)
        out.store([row, column], exponentials.to(out.dtype))
        totals += tl.sum(exponentials, 1)
    return totals


@triton.jit
def _exponentials(
    x, weight, out, shifts_ptr, totals_ptr, rows_of_x, width, row_length,
    D: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Tiles that lie as many apart as there are programs; the next one's blocks load while the last one is written."""
    rows, columns = tl.cdiv(rows_of_x, BN), tl.cdiv(row_length, BV)
    for tile in tl.range(tl.program_id(0), rows * columns, tl.num_programs(0), flatten=True):
        row, column = place(tile, rows, columns)
        sums = tile_product(x, weight, row, column, D, BN, BV, BD)
        at = row * BN + tl.arange(0, BN)
        shifts = tl.load(shifts_ptr + at, mask=at < rows_of_x, other=0.0) * LOG2_E
        totals = tl.zeros((BN,), tl.float32)
        totals = _write(sums, totals, out, shifts, row * BN, column * BV, width, BN, BV, PART)
        tl.store(totals_ptr + column * rows_of_x + at, totals, mask=at < rows_of_x)


@triton.jit
def _finish(
    totals_ptr, targets_ptr, exponentials_ptr, losses_ptr, factors_ptr, rows, parts, row_length, scale,
    P: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Losses and factors of rows; S is taken from the exponentials at their targets."""
    r = tl.program_id(0) * R + tl.arange(0, R)
    totals_R = tl.zeros((R,), tl.float32)
    for start in range(0, parts, P):
        part = start + tl.arange(0, P)
        there = (part < parts)[:, None] & (r < rows)[None, :]
        totals_R += tl.sum(tl.load(totals_ptr + part[:, None] * rows + r[None, :], mask=there, other=0.0), 0)
    tl.store(losses_ptr + r, tl.log(totals_R), mask=r < rows)
    tl.store(factors_ptr + r, scale / totals_R, mask=r < rows)
    target_ptr = exponentials_ptr + r.to(tl.int64) * row_length + tl.load(targets_ptr + r, mask=r < rows, other=0)
    tl.store(target_ptr, tl.load(target_ptr, mask=r < rows, other=0.0).to(tl.float32) - totals_R, mask=r < rows)


@triton.jit
def _scale(x_ptr, factors_ptr, out_ptr, width, W: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(factors_ptr + row)
    for start in range(0, width, W):
        columns = start + tl.arange(0, W)
        x_W = tl.load(x_ptr + row * width + columns, mask=columns < width).to(tl.float32)
        tl.store(out_ptr + row * width + columns, x_W * factor, mask=columns < width)


def exponentials(
    x_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, vocab_size: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the rows' losses; the gradient of the logits but for a factor a row, (R, V); and those factors, (R,).

    A logit further above its target's than 55, which is a loss of more than 55, counts as 55.

    Args:
        x_RD: in one piece; with the weight as `lm.model.kernels.hopper.fits` takes them.
        weight_VD: of the type of x, in one piece; rows from vocab_size on are left out, and get gradients of zero.
        targets_R: ids below vocab_size.
        vocab_size: ids.
        scale: what the gradient is multiplied by, as a part of the factors.
    """
    (rows, d_model), row_length = x_RD.shape, len(weight_VD)
    parts = triton.cdiv(row_length, BV)
    out_RV = x_RD.new_empty(rows, row_length)
    shifts_R, losses_R, factors_R = x_RD.new_empty(3, rows, dtype=torch.float32)
    totals_PR = x_RD.new_empty(parts, rows, dtype=torch.float32)
    _target_logits[(rows,)](x_RD, weight_VD, targets_R, shifts_R, **by_rows(d_model))
    programs = min(triton.cdiv(rows, BN) * parts, multiprocessors(x_RD.device))
    _exponentials[(programs,)](
        blocks(x_RD, BN, BD), blocks(weight_VD, BV, BD), blocks(out_RV, BN, PART), shifts_R, totals_PR, rows,
        vocab_size, row_length, D=d_model, BN=BN, BV=BV, BD=BD, PART=PART, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    _finish[(triton.cdiv(rows, 64),)](
        totals_PR, targets_R, out_RV, losses_R, factors_R, rows, parts, row_length, scale, P=16, R=64
    )
    return losses_R.sum(), out_RV, factors_R


def scaled(x_RD: Tensor, factors_R: Tensor, out_RD: Tensor | None = None) -> Tensor:
    """Rows of x, in one piece, times a factor each; in place where `out_RD` is x."""
    out_RD = torch.empty_like(x_RD) if out_RD is None else out_RD
    _scale[(len(x_RD),)](x_RD, factors_R, out_RD, **by_rows(x_RD.shape[1]))
    return out_RD
