"""silu(gate) * value and its gradient, in Triton; gate and value are the halves of one tensor's rows.

The gradient is written as the two halves of one tensor, in one pass; put together from parts it would take two.

Shape letters: N tokens, F d_ff.
"""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


@triton.jit
def _forward(gate_value_ptr, out_ptr, numbers, width, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < numbers
    gates = gate_value_ptr + i + i // width * width
    gate = tl.load(gates, mask=there).to(tl.float32)
    value = tl.load(gates + width, mask=there).to(tl.float32)
    tl.store(out_ptr + i, gate * tl.sigmoid(gate) * value, mask=there)


@triton.jit
def _backward(gate_value_ptr, gradient_ptr, out_ptr, numbers, width, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < numbers
    at = i + i // width * width
    gate = tl.load(gate_value_ptr + at, mask=there).to(tl.float32)
    value = tl.load(gate_value_ptr + at + width, mask=there).to(tl.float32)
    gradient = tl.load(gradient_ptr + i, mask=there).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    tl.store(out_ptr + at, gradient * value * sigmoid * (1 + gate * (1 - sigmoid)), mask=there)
    tl.store(out_ptr + at + width, gradient * gate * sigmoid, mask=there)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_value_N2F: Tensor) -> Tensor:
        tokens, double = gate_value_N2F.shape
        out_NF = gate_value_N2F.new_empty(tokens, double // 2)
        numbers, width = out_NF.numel(), double // 2
        _forward[(triton.cdiv(numbers, BLOCK),)](gate_value_N2F, out_NF, numbers, width, BLOCK=BLOCK, num_warps=8)
        ctx.save_for_backward(gate_value_N2F)
        return out_NF

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gate_value_N2F,) = ctx.saved_tensors
        gradient_NF, out_N2F = gradients[0].contiguous(), torch.empty_like(gate_value_N2F)
        numbers, width = gradient_NF.numel(), gradient_NF.shape[1]
        _backward[(triton.cdiv(numbers, BLOCK),)](
            gate_value_N2F, gradient_NF, out_N2F, numbers, width, BLOCK=BLOCK, num_warps=8
        )
        return out_N2F


def swiglu(gate_value_N2F: Tensor) -> Tensor:
    """silu(gate) * value, (N, F), of contiguous (N, 2F)."""
    return _SwiGLU.apply(gate_value_N2F)  # pyright: ignore
