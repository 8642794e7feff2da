"""A residual addition and the RMSNorm that follows it, in Triton: one pass over memory each way.

The backward pass adds the two gradients of the residual stream, that of the sum itself and that through its norm, where
autograd would take a pass of its own. Each of its programs sums the gain's gradient over its tokens; the sums over the
programs come last, always in the same order.

Tokens are taken from the last to the first: what the product before has written last is still in the GPU's cache, and
so is what the product behind reads first.

Shape letters: N tokens, D d_model, R tokens at a time, W the power of two from D on, P programs.
"""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 1056  # of the backward pass, at most


@triton.jit
def _forward(
    x_ptr, delta_ptr, gain_ptr, total_ptr, out_ptr, scale_ptr, tokens, width, eps,
    ADDS: tl.constexpr, R: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    rows = (tl.num_programs(0) - 1 - tl.program_id(0)) * R + tl.arange(0, R)
    columns = tl.arange(0, W)
    at = rows[:, None].to(tl.int64) * width + columns[None, :]
    there = (rows[:, None] < tokens) & (columns[None, :] < width)
    x_RW = tl.load(x_ptr + at, mask=there, other=0.0)
    if ADDS:
        delta_RW = tl.load(delta_ptr + at, mask=there, other=0.0)
        x_RW = (x_RW.to(tl.float32) + delta_RW.to(tl.float32)).to(x_RW.dtype)
        tl.store(total_ptr + at, x_RW, mask=there)
    x_RW = x_RW.to(tl.float32)
    scale_R = tl.rsqrt(tl.sum(x_RW * x_RW, 1) / width + eps)
    gain_W = tl.load(gain_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, x_RW * scale_R[:, None] * gain_W[None, :], mask=there)
    tl.store(scale_ptr + rows, scale_R, mask=rows < tokens)


@triton.jit
def _backward(
    x_ptr, gain_ptr, scale_ptr, gradient_ptr, residual_ptr, out_ptr, gains_ptr, tokens, width,
    ADDS: tl.constexpr, R: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, W)
    gain_W = tl.load(gain_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
    gains_W = tl.zeros((W,), tl.float32)
    for start in range(tl.program_id(0) * R, tokens, tl.num_programs(0) * R):
        rows = (tl.cdiv(tokens, R) - 1) * R - start + tl.arange(0, R)
        at = rows[:, None].to(tl.int64) * width + columns[None, :]
        there = (rows[:, None] < tokens) & (columns[None, :] < width)
        scale_R = tl.load(scale_ptr + rows, mask=rows < tokens, other=0.0)
        x_RW = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32) * scale_R[:, None]
        gradient_RW = tl.load(gradient_ptr + at, mask=there, other=0.0).to(tl.float32)
        gains_W += tl.sum(gradient_RW * x_RW, 0)
        gradient_RW *= gain_W[None, :]
        along_R = tl.sum(gradient_RW * x_RW, 1) / width
        out_RW = (gradient_RW - x_RW * along_R[:, None]) * scale_R[:, None]
        if ADDS:
            out_RW += tl.load(residual_ptr + at, mask=there, other=0.0).to(tl.float32)
        tl.store(out_ptr + at, out_RW, mask=there)
    tl.store(gains_ptr + tl.program_id(0) * width + columns, gains_W, mask=columns < width)


@triton.jit
def _total(gains_ptr, out_ptr, programs, width, P: tl.constexpr, W: tl.constexpr):
    """The gain's gradient: the sum of what the programs have found."""
    columns = tl.program_id(0) * W + tl.arange(0, W)
    gains_PW = tl.zeros((P, W), tl.float32)
    for start in range(0, programs, P):
        rows = start + tl.arange(0, P)
        there = (rows[:, None] < programs) & (columns[None, :] < width)
        gains_PW += tl.load(gains_ptr + rows[:, None] * width + columns[None, :], mask=there, other=0.0)
    tl.store(out_ptr + columns, tl.sum(gains_PW, 0), mask=columns < width)


def _settings(x_ND: Tensor) -> dict[str, Any]:
    tokens, width = x_ND.shape
    padded = triton.next_power_of_2(width)
    rows, warps = (8, 4) if padded <= 512 else (max(1, min(2, 8192 // padded)), min(8, padded // 512))
    return {"tokens": tokens, "width": width, "R": rows, "W": padded, "num_warps": warps}


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, delta_ND: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        settings = _settings(x_ND)
        total_ND = x_ND if delta_ND is None else torch.empty_like(x_ND)
        out_ND, scale_N = torch.empty_like(x_ND), x_ND.new_empty(len(x_ND), dtype=torch.float32)
        _forward[(triton.cdiv(len(x_ND), settings["R"]),)](
            x_ND, delta_ND, gain_D, total_ND, out_ND, scale_N, eps=eps, ADDS=delta_ND is not None, **settings
        )
        ctx.save_for_backward(total_ND, gain_D, scale_N)
        ctx.set_materialize_grads(False)
        ctx.adds = delta_ND is not None
        return total_ND, out_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        total_ND, gain_D, scale_N = ctx.saved_tensors
        residual_ND, gradient_ND = gradients
        if gradient_ND is None:
            return residual_ND, residual_ND if ctx.adds else None, None, None
        settings = _settings(total_ND)
        programs = min(PROGRAMS, triton.cdiv(len(total_ND), settings["R"]))
        out_ND = torch.empty_like(total_ND)
        gains_PD = gain_D.new_empty(programs, settings["width"], dtype=torch.float32)
        residual_ND = None if residual_ND is None else residual_ND.contiguous()
        _backward[(programs,)](
            total_ND, gain_D, scale_N, gradient_ND.contiguous(), residual_ND, out_ND, gains_PD,
            ADDS=residual_ND is not None, **settings,
        )  # fmt: skip
        of_gain_D = torch.empty_like(gain_D)
        _total[(triton.cdiv(len(gain_D), 4),)](gains_PD, of_gain_D, programs, len(gain_D), P=256, W=4)
        return out_ND, out_ND if ctx.adds else None, of_gain_D, None


def add_norm(x: Tensor, delta: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum x + delta, (..., D), and `lm.model.RMSNorm` of it; without a delta x and its norm."""
    delta_ND = None if delta is None else delta.reshape(-1, delta.shape[-1])
    total_ND, out_ND = _AddNorm.apply(x.reshape(-1, x.shape[-1]), delta_ND, gain_D, eps)  # pyright: ignore
    return total_ND.view(x.shape), out_ND.view(x.shape)
