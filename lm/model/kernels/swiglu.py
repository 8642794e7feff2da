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


@torch.library.custom_op("lm::swiglu", mutates_args=())
def swiglu(gate_value_N2F: Tensor) -> Tensor:
    """silu(gate) * value, (N, F), of contiguous (N, 2F)."""
    width = gate_value_N2F.shape[1] // 2
    out_NF = gate_value_N2F.new_empty(gate_value_N2F.shape[0], width)
    numbers = out_NF.numel()
    _forward[(triton.cdiv(numbers, BLOCK),)](gate_value_N2F, out_NF, numbers, width, BLOCK=BLOCK, num_warps=8)
    return out_NF


@torch.library.custom_op("lm::swiglu_backward", mutates_args=())
def swiglu_backward(gate_value_N2F: Tensor, gradient_NF: Tensor) -> Tensor:
    """The gradient of `swiglu`'s argument."""
    out_N2F = torch.empty_like(gate_value_N2F)
    numbers, width = gradient_NF.numel(), gradient_NF.shape[1]
    _backward[(triton.cdiv(numbers, BLOCK),)](
        gate_value_N2F, gradient_NF.contiguous(), out_N2F, numbers, width, BLOCK=BLOCK, num_warps=8
    )
    return out_N2F


@swiglu.register_fake
def _(gate_value_N2F: Tensor) -> Tensor:
    return gate_value_N2F.new_empty(gate_value_N2F.shape[0], gate_value_N2F.shape[1] // 2)


@swiglu_backward.register_fake
def _(gate_value_N2F: Tensor, gradient_NF: Tensor) -> Tensor:
    return torch.empty_like(gate_value_N2F)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, gradient_NF: Tensor) -> Tensor:
    return swiglu_backward(*ctx.saved_tensors, gradient_NF)


swiglu.register_autograd(_gradient, setup_context=_keep)
