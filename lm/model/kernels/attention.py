"""Causal attention of short texts, in Triton: queries, keys and values as one product leaves them.

As in FlashAttention-2 (Dao 2023), scores exist for one block of queries and one of keys at a time; the backward pass
computes them again, once for the gradients of queries and once for those of keys and values. Gradients of rotated
queries and keys are turned back while they are stored, which so takes no pass over memory of its own.

Texts are taken from the last to the first, for the sake of the cache as in `lm.model.kernels.norm`; for the gradients
of keys, which follow those of queries, from the first again.

Shape letters: B batch, T time, H heads, K head width, Q queries of a block, S keys of a block. Powers run to base 2.
"""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lm.model.kernels.rope import turn_pairs

BLOCK = 64  # queries, and keys, at a time
WARPS = 4
LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def _load(start, stride, rows, time, WIDTH: tl.constexpr, WHOLE: tl.constexpr):
    """Rows of a matrix; zeros from row `time` on, where blocks are not whole."""
    at = start + rows[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    if WHOLE:
        return tl.load(at)
    return tl.load(at, mask=rows[:, None] < time, other=0.0)


@triton.jit
def _load_numbers(start, rows, time, WHOLE: tl.constexpr):
    """One number of each row."""
    if WHOLE:
        return tl.load(start + rows)
    return tl.load(start + rows, mask=rows < time, other=0.0)


@triton.jit
def _store(start, stride, rows, time, values, WIDTH: tl.constexpr):
    at = start + rows[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    tl.store(at, values, mask=rows[:, None] < time)


@triton.jit
def _turn_back(x, cos_ptr, sin_ptr, rows, time, K: tl.constexpr, ROPE: tl.constexpr, WHOLE: tl.constexpr):
    """Each pair of neighbours by its position's angle."""
    if ROPE:
        cos = _load(cos_ptr, K // 2, rows, time, K // 2, WHOLE)
        sin = _load(sin_ptr, K // 2, rows, time, K // 2, WHOLE)
        x = turn_pairs(x.reshape(x.shape[0], K // 2, 2), cos, -sin).reshape(x.shape[0], K)
    return x


@triton.jit
def _offsets(number, time, heads, K: tl.constexpr):
    """Where a head, by its number, lies in tensors (B, T, H, K), in those of three such heads, and in (B, H, T)."""
    row = (number // heads).to(tl.int64)
    head = number % heads
    return row * time * heads * K + head * K, 3 * row * time * heads * K + head * K, (row * heads + head) * time


@triton.jit
def _attend(
    queries, q_QK, highest_Q, sum_Q, out_QK, start, qkv, time, width, factor,
    MASKED: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One block of keys for a block of queries: the new maxima, sums of exponentials and outputs."""
    keys = start + tl.arange(0, BLOCK)
    k_SK = _load(qkv + width, 3 * width, keys, time, K, WHOLE)
    v_SK = _load(qkv + 2 * width, 3 * width, keys, time, K, WHOLE)
    scores_QS = tl.dot(q_QK, k_SK.T)
    if MASKED:
        scores_QS = tl.where(queries[:, None] >= keys[None, :], scores_QS, -float("inf"))
    higher_Q = tl.maximum(highest_Q, tl.max(scores_QS, 1) * factor)
    weights_QS = tl.exp2(scores_QS * factor - higher_Q[:, None])
    shrink_Q = tl.exp2(highest_Q - higher_Q)
    out_QK = tl.dot(weights_QS.to(q_QK.dtype), v_SK, out_QK * shrink_Q[:, None])
    return higher_Q, sum_Q * shrink_Q + tl.sum(weights_QS, 1), out_QK


@triton.jit
def _forward(
    qkv_ptr, out_ptr, log_sums_ptr, time, heads, scale, K: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr
):
    """One block of queries."""
    single, triple, rows = _offsets(tl.num_programs(1) - 1 - tl.program_id(1), time, heads, K)
    width = heads * K
    qkv = qkv_ptr + triple
    first = tl.program_id(0) * BLOCK
    queries = first + tl.arange(0, BLOCK)
    q_QK = _load(qkv, 3 * width, queries, time, K, WHOLE)
    highest_Q = tl.full((BLOCK,), -float("inf"), tl.float32)
    sum_Q = tl.zeros((BLOCK,), tl.float32)
    out_QK = tl.zeros((BLOCK, K), tl.float32)
    for start in range(0, first, BLOCK):
        highest_Q, sum_Q, out_QK = _attend(
            queries, q_QK, highest_Q, sum_Q, out_QK, start, qkv, time, width, scale * LOG2_E, False, K, BLOCK, WHOLE
        )
    highest_Q, sum_Q, out_QK = _attend(
        queries, q_QK, highest_Q, sum_Q, out_QK, first, qkv, time, width, scale * LOG2_E, True, K, BLOCK, WHOLE
    )
    _store(out_ptr + single, width, queries, time, (out_QK / sum_Q[:, None]).to(q_QK.dtype), K)
    tl.store(log_sums_ptr + rows + queries, highest_Q + tl.log2(sum_Q), mask=queries < time)


@triton.jit
def _query_gradient(
    queries, q_QK, gradient_QK, log_sums_Q, dots_Q, q_gradient_QK, start, qkv, time, width, factor,
    MASKED: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Adds what one block of keys gives to the gradient of a block of queries."""
    keys = start + tl.arange(0, BLOCK)
    k_SK = _load(qkv + width, 3 * width, keys, time, K, WHOLE)
    v_SK = _load(qkv + 2 * width, 3 * width, keys, time, K, WHOLE)
    weights_QS = tl.exp2(tl.dot(q_QK, k_SK.T) * factor - log_sums_Q[:, None])
    if MASKED:
        weights_QS = tl.where(queries[:, None] >= keys[None, :], weights_QS, 0.0)
    scores_gradient_QS = weights_QS * (tl.dot(gradient_QK, v_SK.T) - dots_Q[:, None])
    return tl.dot(scores_gradient_QS.to(q_QK.dtype), k_SK, q_gradient_QK)


@triton.jit
def _backward_queries(
    qkv_ptr, cos_ptr, sin_ptr, out_ptr, log_sums_ptr, gradient_ptr, dots_ptr, qkv_gradient_ptr, time, heads, scale,
    K: tl.constexpr, ROPE: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One block of queries: their gradients, and the dots of output and gradient that the keys' need as well."""
    single, triple, rows = _offsets(tl.num_programs(1) - 1 - tl.program_id(1), time, heads, K)
    width = heads * K
    qkv = qkv_ptr + triple
    first = tl.program_id(0) * BLOCK
    queries = first + tl.arange(0, BLOCK)
    q_QK = _load(qkv, 3 * width, queries, time, K, WHOLE)
    gradient_QK = _load(gradient_ptr + single, width, queries, time, K, WHOLE)
    out_QK = _load(out_ptr + single, width, queries, time, K, WHOLE)
    dots_Q = tl.sum(out_QK.to(tl.float32) * gradient_QK.to(tl.float32), 1)
    tl.store(dots_ptr + rows + queries, dots_Q, mask=queries < time)
    log_sums_Q = _load_numbers(log_sums_ptr + rows, queries, time, WHOLE)
    q_gradient_QK = tl.zeros((BLOCK, K), tl.float32)
    for start in range(0, first, BLOCK):
        q_gradient_QK = _query_gradient(
            queries, q_QK, gradient_QK, log_sums_Q, dots_Q, q_gradient_QK, start, qkv, time, width, scale * LOG2_E,
            False, K, BLOCK, WHOLE,
        )  # fmt: skip
    q_gradient_QK = _query_gradient(
        queries, q_QK, gradient_QK, log_sums_Q, dots_Q, q_gradient_QK, first, qkv, time, width, scale * LOG2_E,
        True, K, BLOCK, WHOLE,
    )  # fmt: skip
    q_gradient_QK = _turn_back(q_gradient_QK * scale, cos_ptr, sin_ptr, queries, time, K, ROPE, WHOLE)
    _store(qkv_gradient_ptr + triple, 3 * width, queries, time, q_gradient_QK.to(q_QK.dtype), K)


@triton.jit
def _key_gradients(
    keys, k_SK, v_SK, k_gradient_SK, v_gradient_SK, start, qkv, log_sums_ptr, gradient_ptr, dots_ptr,
    time, width, factor, MASKED: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Adds what one block of queries gives to the gradients of a block of keys and of their values."""
    queries = start + tl.arange(0, BLOCK)
    q_QK = _load(qkv, 3 * width, queries, time, K, WHOLE)
    gradient_QK = _load(gradient_ptr, width, queries, time, K, WHOLE)
    log_sums_Q = _load_numbers(log_sums_ptr, queries, time, WHOLE)
    dots_Q = _load_numbers(dots_ptr, queries, time, WHOLE)
    weights_SQ = tl.exp2(tl.dot(k_SK, q_QK.T) * factor - log_sums_Q[None, :])
    if MASKED:
        weights_SQ = tl.where(queries[None, :] >= keys[:, None], weights_SQ, 0.0)
    v_gradient_SK = tl.dot(weights_SQ.to(v_SK.dtype), gradient_QK, v_gradient_SK)
    scores_gradient_SQ = weights_SQ * (tl.dot(v_SK, gradient_QK.T) - dots_Q[None, :])
    return tl.dot(scores_gradient_SQ.to(v_SK.dtype), q_QK, k_gradient_SK), v_gradient_SK


@triton.jit
def _backward_keys(
    qkv_ptr, cos_ptr, sin_ptr, log_sums_ptr, gradient_ptr, dots_ptr, qkv_gradient_ptr, time, heads, scale,
    K: tl.constexpr, ROPE: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One block of keys: the gradients of the keys and of their values."""
    single, triple, rows = _offsets(tl.program_id(1), time, heads, K)
    width = heads * K
    qkv = qkv_ptr + triple
    first = tl.program_id(0) * BLOCK
    keys = first + tl.arange(0, BLOCK)
    k_SK = _load(qkv + width, 3 * width, keys, time, K, WHOLE)
    v_SK = _load(qkv + 2 * width, 3 * width, keys, time, K, WHOLE)
    k_gradient_SK = tl.zeros((BLOCK, K), tl.float32)
    v_gradient_SK = tl.zeros((BLOCK, K), tl.float32)
    k_gradient_SK, v_gradient_SK = _key_gradients(
        keys, k_SK, v_SK, k_gradient_SK, v_gradient_SK, first, qkv, log_sums_ptr + rows,
        gradient_ptr + single, dots_ptr + rows, time, width, scale * LOG2_E, True, K, BLOCK, WHOLE,
    )  # fmt: skip
    for start in range(first + BLOCK, time, BLOCK):
        k_gradient_SK, v_gradient_SK = _key_gradients(
            keys, k_SK, v_SK, k_gradient_SK, v_gradient_SK, start, qkv, log_sums_ptr + rows,
            gradient_ptr + single, dots_ptr + rows, time, width, scale * LOG2_E, False, K, BLOCK, WHOLE,
        )  # fmt: skip
    k_gradient_SK = _turn_back(k_gradient_SK * scale, cos_ptr, sin_ptr, keys, time, K, ROPE, WHOLE)
    _store(qkv_gradient_ptr + triple + width, 3 * width, keys, time, k_gradient_SK.to(v_SK.dtype), K)
    _store(qkv_gradient_ptr + triple + 2 * width, 3 * width, keys, time, v_gradient_SK.to(v_SK.dtype), K)


def _settings(qkv_BT3HK: Tensor, registers: int, stages: int) -> tuple[tuple[int, int], dict[str, Any]]:
    batch_size, time, _, heads, width = qkv_BT3HK.shape
    settings: dict[str, Any] = {
        "time": time, "heads": heads, "scale": width**-0.5, "K": width, "BLOCK": BLOCK, "WHOLE": time % BLOCK == 0,
        "num_warps": WARPS, "num_stages": stages,
    }  # fmt: skip
    if width <= 32 and qkv_BT3HK.dtype.itemsize == 2:  # more programs at a time; wider heads would spill registers
        settings["maxnreg"] = registers
    return (triton.cdiv(time, BLOCK), batch_size * heads), settings


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_BT3HK: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        batch_size, time, _, heads, width = qkv_BT3HK.shape
        out_BTHK = qkv_BT3HK.new_empty(batch_size, time, heads, width)
        log_sums_BHT = qkv_BT3HK.new_empty(batch_size, heads, time, dtype=torch.float32)
        grid, settings = _settings(qkv_BT3HK, 96, 3)
        _forward[grid](qkv_BT3HK, out_BTHK, log_sums_BHT, **settings)
        ctx.save_for_backward(qkv_BT3HK, cos, sin, out_BTHK, log_sums_BHT)
        return out_BTHK

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        qkv_BT3HK, cos, sin, out_BTHK, log_sums_BHT = ctx.saved_tensors
        qkv_gradient_BT3HK, dots_BHT = torch.empty_like(qkv_BT3HK), torch.empty_like(log_sums_BHT)
        gradient = gradients[0].contiguous()
        grid, settings = _settings(qkv_BT3HK, 128, 1)
        settings["ROPE"] = cos is not None
        _backward_queries[grid](
            qkv_BT3HK, cos, sin, out_BTHK, log_sums_BHT, gradient, dots_BHT, qkv_gradient_BT3HK, **settings
        )
        _backward_keys[grid](qkv_BT3HK, cos, sin, log_sums_BHT, gradient, dots_BHT, qkv_gradient_BT3HK, **settings)
        return qkv_gradient_BT3HK, None, None


def causal_attention(qkv_BT3HK: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """Causal attention of queries and keys to values, (B, T, H, K), as `lm.model.kernels.projection` gives them.

    Its backward pass gives the gradients of queries and keys from before their rotation.

    Args:
        qkv_BT3HK: in one piece; K a power of two, at least 16.
        cos: (T or more, K / 2) of the angles by which pairs of neighbours were rotated, float32; None for no rotation.
        sin: likewise.
    """
    return _CausalAttention.apply(qkv_BT3HK, cos, sin)  # pyright: ignore
