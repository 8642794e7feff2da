"""Causal attention and its gradient on a CPU, compiled by numba: float32, without the half that the mask leaves out.

Probabilities exist for ROWS queries of one head at a time, which stay in a core's cache; the backward pass works them
out again from the logarithms of their sums (Dao et al. 2022). Exponentials and logarithms are to base 2.

Shape letters: N heads of all sequences, T time, K head width, R rows of a block of queries, S keys that it sees.
"""
# pyright: reportCallIssue=false

import math
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from lm.threads import share_threads

ROWS = 32  # divides T
TILE = (4, 32)  # rows and columns of a product that stay in registers; they divide ROWS, T and K
LOG2_E = 1 / math.log(2)
# Sums may be taken in another order, as for vector instructions they must; infinities and NaN stay what they are.
SUMS = {"reassoc", "contract", "nsz"}
OPTIONS: dict[str, Any] = {"cache": True, "fastmath": SUMS, "nogil": True, "error_model": "numpy"}
MAXIMUM: dict[str, Any] = {**OPTIONS, "fastmath": SUMS | {"nnan"}}  # a NaN stays in the numbers looked at
ARGUMENTS = (*[types.intp] * 8, types.boolean)


@intrinsic
def _tile(typingctx, a, a_row, a_column, b, b_row, out, out_row, count, add):
    """One tile of out = a @ b, or of out += it, from addresses and distances in bytes; `count` numbers to a sum."""

    def generate(context, builder, signature, arguments):
        a, a_row, a_column, b, b_row, out, out_row, count, add = arguments
        rows, columns = TILE
        number, vector = ir.FloatType(), ir.VectorType(ir.FloatType(), columns)
        nothing, zeros = ir.Constant(vector, ir.Undefined), ir.Constant(vector, [0.0] * columns)
        first_lane = ir.Constant(ir.VectorType(ir.IntType(32), columns), [0] * columns)

        def at(start, step, index, kind):
            return builder.inttoptr(builder.add(start, builder.mul(step, index)), kind.as_pointer())

        outs = [at(out, out_row, a.type(row), vector) for row in range(rows)]
        sums = [cgutils.alloca_once_value(builder, zeros) for _ in range(rows)]
        for sum_, target in zip(sums, outs, strict=True):
            builder.store(zeros, sum_)
            with builder.if_then(add):
                builder.store(builder.load(target, align=4), sum_)
        with cgutils.for_range(builder, count) as loop:
            b_numbers = builder.load(at(b, b_row, loop.index, vector), align=4)
            for row, sum_ in enumerate(sums):
                start = builder.add(a, builder.mul(a_row, a.type(row)))
                a_number = builder.load(at(start, a_column, loop.index, number))
                lane = builder.insert_element(nothing, a_number, ir.IntType(32)(0))
                product = builder.fmul(builder.shuffle_vector(lane, nothing, first_lane), b_numbers, ("contract",))
                builder.store(builder.fadd(builder.load(sum_), product, ("contract",)), sum_)
        for sum_, target in zip(sums, outs, strict=True):
            builder.store(builder.load(sum_), target, align=4)
        return context.get_dummy_value()

    return types.void(*ARGUMENTS), generate


@njit(**OPTIONS)
def _multiply(a, b, out, add):
    """out = a @ b, or out += it; rows of b and out are contiguous, a may have any strides."""
    rows, columns = TILE
    (a_row, a_column), (b_row, number), out_row = a.strides, b.strides, out.strides[0]
    for j in range(0, out.shape[1], columns):
        for i in range(0, out.shape[0], rows):
            to = out.ctypes.data + i * out_row + j * number
            _tile(
                a.ctypes.data + i * a_row, a_row, a_column, b.ctypes.data + j * number, b_row, to, out_row,
                a.shape[1], add,
            )  # fmt: skip


@njit(**OPTIONS)
def _transposed(x_TK, factor):
    out_KT = np.empty((x_TK.shape[1], x_TK.shape[0]), np.float32)
    for t in range(x_TK.shape[0]):
        for k in range(x_TK.shape[1]):
            out_KT[k, t] = x_TK[t, k] * factor
    return out_KT


@njit(**MAXIMUM)
def _largest(x):
    largest = x[0]
    for i in range(len(x)):
        largest = max(largest, x[i])
    return largest


@njit(**OPTIONS)
def _power_of_two(x):
    """2**x for x up to 0; at least 2**-126, the smallest normal number."""
    x = np.float32(-126) if x < np.float32(-126) else x
    whole = np.int32(x - np.float32(0.5))
    rest = (x - np.float32(whole)) * np.float32(math.log(2))
    power = np.float32(1)
    for n in (6, 5, 4, 3, 2, 1):  # the exponential's series
        power = np.float32(1) + power * rest * np.float32(1 / n)
    return power * np.int32((whole + 127) << 23).view(np.float32)


@njit(**OPTIONS)
def _raise_two(x, shift):
    """2**(x - shift) in place of x, and the sum."""
    total = np.float32(0)
    for i in range(len(x)):
        power = _power_of_two(x[i] - shift)
        x[i] = power
        total += power
    return total


@njit(parallel=True, **OPTIONS)
def _attend(q_NTK, k_NTK, v_NTK, out_NTK, logs_NT):
    heads, time, width = q_NTK.shape
    scale = np.float32(LOG2_E / math.sqrt(width))
    for n in prange(heads):
        k_KT = _transposed(k_NTK[n], scale)
        p_RT = np.empty((ROWS, time), np.float32)
        sums_R = np.empty(ROWS, np.float32)
        for start in range(0, time, ROWS):
            end = start + ROWS
            p_RS, out_RK = p_RT[:, :end], out_NTK[n, start:end]
            _multiply(q_NTK[n, start:end], k_KT, p_RS, False)
            for r in range(ROWS):
                seen = p_RT[r, : start + r + 1]
                largest = _largest(seen)
                sums_R[r] = _raise_two(seen, largest)
                p_RT[r, start + r + 1 : end] = 0
                logs_NT[n, start + r] = largest + np.log2(sums_R[r])
            _multiply(p_RS, v_NTK[n], out_RK, False)
            for r in range(ROWS):
                for k in range(width):
                    out_RK[r, k] /= sums_R[r]


@njit(parallel=True, **OPTIONS)
def _attend_backward(q_NTK, k_NTK, v_NTK, out_NTK, logs_NT, dout_NTK, dq_NTK, dk_NTK, dv_NTK):
    heads, time, width = q_NTK.shape
    scale = np.float32(1 / math.sqrt(width))
    for n in prange(heads):
        k_KT, v_KT = _transposed(k_NTK[n], scale * np.float32(LOG2_E)), _transposed(v_NTK[n], np.float32(1))
        p_RT, d_RT = np.empty((ROWS, time), np.float32), np.empty((ROWS, time), np.float32)
        dk_NTK[n] = 0
        dv_NTK[n] = 0
        for start in range(0, time, ROWS):
            end = start + ROWS
            p_RS, d_RS = p_RT[:, :end], d_RT[:, :end]
            q_RK, out_RK, dout_RK = q_NTK[n, start:end], out_NTK[n, start:end], dout_NTK[n, start:end]
            _multiply(q_RK, k_KT, p_RS, False)
            _multiply(dout_RK, v_KT, d_RS, False)
            for r in range(ROWS):
                mean = np.float32(0)  # of the probabilities' gradients, weighted by the probabilities
                for k in range(width):
                    mean += dout_RK[r, k] * out_RK[r, k]
                _raise_two(p_RT[r, : start + r + 1], logs_NT[n, start + r])
                p_RT[r, start + r + 1 : end] = 0
                for s in range(end):
                    d_RT[r, s] = p_RT[r, s] * (d_RT[r, s] - mean) * scale
            _multiply(d_RS, k_NTK[n], dq_NTK[n, start:end], False)
            _multiply(d_RS.T, q_RK, dk_NTK[n, :end], True)
            _multiply(p_RS.T, dout_RK, dv_NTK[n, :end], True)


def _run(kernel: Any, *tensors: Tensor) -> None:
    """Call a kernel on tensors whose batch and heads are one dimension, with as many threads as torch has."""
    share_threads()
    kernel(*(tensor.detach().flatten(0, 1).numpy() for tensor in tensors))


@torch.library.custom_op("lm::causal_attention_on_cpu", mutates_args=())
def _causal_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
    out_BHTK, logs_BHT = torch.empty_like(q_BHTK), q_BHTK.new_empty(q_BHTK.shape[:-1])
    _run(_attend, q_BHTK, k_BHTK, v_BHTK, out_BHTK, logs_BHT)
    return out_BHTK, logs_BHT


@torch.library.custom_op("lm::causal_attention_on_cpu_backward", mutates_args=())
def _causal_attention_backward(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, out_BHTK: Tensor, logs_BHT: Tensor, dout_BHTK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x) for x in (q_BHTK, k_BHTK, v_BHTK))
    _run(_attend_backward, q_BHTK, k_BHTK, v_BHTK, out_BHTK, logs_BHT, dout_BHTK.contiguous(), dq, dk, dv)
    return dq, dk, dv


@_causal_attention.register_fake
def _(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q_BHTK), q_BHTK.new_empty(q_BHTK.shape[:-1])


@_causal_attention_backward.register_fake
def _(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q_BHTK), torch.empty_like(k_BHTK), torch.empty_like(v_BHTK)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradient(ctx: Any, dout_BHTK: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _causal_attention_backward(*ctx.saved_tensors, dout_BHTK)


_causal_attention.register_autograd(_gradient, setup_context=_keep)


def causal_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """`lm.model.scaled_dot_product_attention` under the causal mask, (B, H, T, K).

    Args:
        q_BHTK, k_BHTK, v_BHTK: float32, contiguous, on the CPU; T and K are multiples of 32.

    Source: Dao et al. 2022, algorithms 1 and 4, with whole rows of keys in one block.
    """
    return _causal_attention(q_BHTK, k_BHTK, v_BHTK)[0]
