"""Rotation and causal attention of narrow heads in one pass each way, in Triton: no rotated copies, no new layouts.

The forward pass is FlashAttention's (Dao et al. 2022). The backward pass gives a program a whole head, whose keys and
values it holds while it goes through the queries, so that nothing is added up in memory.

Shape letters: B batch, T time, H heads, K head width, D = H K; Q a block of queries, S the keys.
"""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LONGEST = 256  # tokens; beyond, and for wider heads, cuDNN's kernels are faster
WIDTH = 32
BLOCK = 64


def suits(qkv_BT3HK: Tensor) -> bool:
    """Whether these kernels are for such queries, keys and values."""
    _, time, _, _, width = qkv_BT3HK.shape
    return qkv_BT3HK.dtype == torch.bfloat16 and width == WIDTH and 16 <= time <= LONGEST


@triton.jit
def _turns(cos_ptr, sin_ptr, t, time, HALF: tl.constexpr):
    """For each number of rows t: the cosine, and the sine with the sign that its partner is added with."""
    k = tl.arange(0, 2 * HALF)
    at = t[:, None] * HALF + (k % HALF)[None, :]
    there = (t < time)[:, None]
    cos, sin = tl.load(cos_ptr + at, mask=there, other=0), tl.load(sin_ptr + at, mask=there, other=0)
    return cos, tl.where((k < HALF)[None, :], -sin, sin)


@triton.jit
def _rotated(x_ptr, stride, t, time, cos, sin, HALF: tl.constexpr):
    """Rows t, each number turned with its partner in the other half."""
    k = tl.arange(0, 2 * HALF)
    rows = x_ptr + t[:, None] * stride
    there = (t < time)[:, None]
    x = tl.load(rows + k[None, :], mask=there, other=0).to(tl.float32)
    partner = tl.load(rows + ((k + HALF) % (2 * HALF))[None, :], mask=there, other=0).to(tl.float32)
    return (x * cos + partner * sin).to(x_ptr.dtype.element_ty)


@triton.jit
def _store_turned_back(x_ptr, stride, t, time, x, cos_ptr, sin_ptr, HALF: tl.constexpr):
    """The gradient of rows t before they were turned."""
    halves = tl.permute(tl.reshape(x, (x.shape[0], 2, HALF)), (0, 2, 1))
    first, second = tl.split(halves)
    i = tl.arange(0, HALF)
    there = (t < time)[:, None]
    at = t[:, None] * HALF + i[None, :]
    cos, sin = tl.load(cos_ptr + at, mask=there, other=0), tl.load(sin_ptr + at, mask=there, other=0)
    outs = x_ptr + t[:, None] * stride + i[None, :]
    tl.store(outs, first * cos + second * sin, mask=there)
    tl.store(outs + HALF, second * cos - first * sin, mask=there)


@triton.jit
def _forward(qkv_ptr, cos_ptr, sin_ptr, out_ptr, sums_ptr, time, heads, scale, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """A block of one head's queries."""
    width = 2 * HALF
    row, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    model_width = heads * width
    stride = 3 * model_width
    q_ptr = qkv_ptr + row.to(tl.int64) * time * stride + head * width
    k_ptr, v_ptr = q_ptr + model_width, q_ptr + 2 * model_width
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, 2 * HALF)
    cos, sin = _turns(cos_ptr, sin_ptr, t, time, HALF)
    q = _rotated(q_ptr, stride, t, time, cos, sin, HALF)
    highest_Q = tl.full((BLOCK,), -float("inf"), tl.float32)
    sum_Q = tl.zeros((BLOCK,), tl.float32)
    out_QK = tl.zeros((BLOCK, 2 * HALF), tl.float32)
    for start in range(0, (tl.program_id(0) + 1) * BLOCK, BLOCK):
        s = start + tl.arange(0, BLOCK)
        cos, sin = _turns(cos_ptr, sin_ptr, s, time, HALF)
        key = _rotated(k_ptr, stride, s, time, cos, sin, HALF)
        v = tl.load(v_ptr + s[:, None] * stride + k[None, :], mask=(s < time)[:, None], other=0)
        scores_QS = tl.dot(q, tl.trans(key)) * scale
        scores_QS = tl.where(s[None, :] <= t[:, None], scores_QS, -float("inf"))
        new_Q = tl.maximum(highest_Q, tl.max(scores_QS, 1))
        weights_QS = tl.exp(scores_QS - new_Q[:, None])
        kept_Q = tl.exp(highest_Q - new_Q)
        sum_Q = sum_Q * kept_Q + tl.sum(weights_QS, 1)
        out_QK = tl.dot(weights_QS.to(v.dtype), v, out_QK * kept_Q[:, None])
        highest_Q = new_Q
    there = t < time
    outs = out_ptr + (row.to(tl.int64) * time + t[:, None]) * model_width + head * width + k[None, :]
    tl.store(outs, out_QK / sum_Q[:, None], mask=there[:, None])
    tl.store(sums_ptr + tl.program_id(1) * time + t, highest_Q + tl.log(sum_Q), mask=there)


@triton.jit
def _backward(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    sums_ptr,
    gradient_ptr,
    gradients_ptr,
    time,
    heads,
    scale,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """One head: gradients of its queries, keys and values, in the layout of `qkv`."""
    width = 2 * HALF
    row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    model_width = heads * width
    stride = 3 * model_width
    start_of_head = row.to(tl.int64) * time * stride + head * width
    q_ptr = qkv_ptr + start_of_head
    to_q_ptr = gradients_ptr + start_of_head
    s = tl.arange(0, SLOTS)
    k = tl.arange(0, 2 * HALF)
    cos, sin = _turns(cos_ptr, sin_ptr, s, time, HALF)
    key = _rotated(q_ptr + model_width, stride, s, time, cos, sin, HALF)
    v = tl.load(q_ptr + 2 * model_width + s[:, None] * stride + k[None, :], mask=(s < time)[:, None], other=0)
    to_key = tl.zeros((SLOTS, 2 * HALF), tl.float32)
    to_v = tl.zeros((SLOTS, 2 * HALF), tl.float32)
    for start in range(0, time, BLOCK):
        t = start + tl.arange(0, BLOCK)
        there = (t < time)[:, None]
        cos, sin = _turns(cos_ptr, sin_ptr, t, time, HALF)
        q = _rotated(q_ptr, stride, t, time, cos, sin, HALF)
        at = (row.to(tl.int64) * time + t[:, None]) * model_width + head * width + k[None, :]
        gradient = tl.load(gradient_ptr + at, mask=there, other=0)
        out = tl.load(out_ptr + at, mask=there, other=0)
        delta_Q = tl.sum(gradient.to(tl.float32) * out.to(tl.float32), 1)
        sum_Q = tl.load(sums_ptr + tl.program_id(0) * time + t, mask=t < time, other=0)
        scores_QS = tl.dot(q, tl.trans(key)) * scale
        weights_QS = tl.where(s[None, :] <= t[:, None], tl.exp(scores_QS - sum_Q[:, None]), 0)
        weights_QS = tl.where(there, weights_QS, 0)
        to_v = tl.dot(tl.trans(weights_QS.to(v.dtype)), gradient, to_v)
        to_weights_QS = tl.dot(gradient, tl.trans(v))
        to_scores_QS = (weights_QS * (to_weights_QS - delta_Q[:, None]) * scale).to(v.dtype)
        to_key = tl.dot(tl.trans(to_scores_QS), q, to_key)
        _store_turned_back(to_q_ptr, stride, t, time, tl.dot(to_scores_QS, key), cos_ptr, sin_ptr, HALF)
    _store_turned_back(to_q_ptr + model_width, stride, s, time, to_key, cos_ptr, sin_ptr, HALF)
    tl.store(to_q_ptr + 2 * model_width + s[:, None] * stride + k[None, :], to_v, mask=(s < time)[:, None])


@torch.library.custom_op("lm::causal_attention", mutates_args=())
def causal_attention(qkv_BT3HK: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The heads' outputs (B, T, D), and for the backward pass the logarithms of softmax's sums (B, H, T).

    Args:
        qkv_BT3HK: queries, keys and values, contiguous; pairs are numbers i and i + K/2 of a query or key.
        cos, sin: (at least T, K/2), of the angles that turn the pairs.
    """
    batch, time, _, heads, width = qkv_BT3HK.shape
    out_BTD = qkv_BT3HK.new_empty(batch, time, heads * width)
    sums_BHT = torch.empty(batch, heads, time, device=out_BTD.device, dtype=torch.float32)
    _forward[(triton.cdiv(time, BLOCK), batch * heads)](
        qkv_BT3HK,
        cos,
        sin,
        out_BTD,
        sums_BHT,
        time,
        heads,
        1 / math.sqrt(width),
        HALF=width // 2,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return out_BTD, sums_BHT


@torch.library.custom_op("lm::causal_attention_backward", mutates_args=())
def causal_attention_backward(
    qkv_BT3HK: Tensor, cos: Tensor, sin: Tensor, out_BTD: Tensor, sums_BHT: Tensor, gradient_BTD: Tensor
) -> Tensor:
    """The gradient of `causal_attention`'s queries, keys and values."""
    batch, time, _, heads, width = qkv_BT3HK.shape
    gradients_BT3HK = torch.empty_like(qkv_BT3HK)
    _backward[(batch * heads,)](
        qkv_BT3HK,
        cos,
        sin,
        out_BTD,
        sums_BHT,
        gradient_BTD.contiguous(),
        gradients_BT3HK,
        time,
        heads,
        1 / math.sqrt(width),
        HALF=width // 2,
        BLOCK=BLOCK,
        SLOTS=triton.next_power_of_2(time),
        num_warps=8,
        num_stages=1,
    )
    return gradients_BT3HK


@causal_attention.register_fake
def _(qkv_BT3HK: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    batch, time, _, heads, width = qkv_BT3HK.shape
    sums_BHT = torch.empty(batch, heads, time, device=qkv_BT3HK.device, dtype=torch.float32)
    return qkv_BT3HK.new_empty(batch, time, heads * width), sums_BHT


@causal_attention_backward.register_fake
def _(qkv_BT3HK: Tensor, cos: Tensor, sin: Tensor, out_BTD: Tensor, sums_BHT: Tensor, gradient_BTD: Tensor) -> Tensor:
    return torch.empty_like(qkv_BT3HK)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradient(ctx: Any, gradient_BTD: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    return causal_attention_backward(*ctx.saved_tensors, gradient_BTD), None, None


causal_attention.register_autograd(_gradient, setup_context=_keep)
