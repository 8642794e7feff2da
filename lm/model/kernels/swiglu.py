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

BLOCK = 1024


@triton.jit
def _forward(gate_value_ptr, out_ptr, width, BLOCK: tl.constexpr):
    row, f = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = f < width
    gates = gate_value_ptr + row * 2 * width + f
    gate = tl.load(gates, mask=there).to(tl.float32)
    value = tl.load(gates + width, mask=there).to(tl.float32)
    tl.store(out_ptr + row * width + f, gate * tl.sigmoid(gate) * value, mask=there)


@triton.jit
def _backward(gate_value_ptr, gradient_ptr, out_ptr, width, BLOCK: tl.constexpr):
    row, f = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = f < width
    gates = gate_value_ptr + row * 2 * width + f
    gate = tl.load(gates, mask=there).to(tl.float32)
    value = tl.load(gates + width, mask=there).to(tl.float32)
    gradient = tl.load(gradient_ptr + row * width + f, mask=there).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    outs = out_ptr + row * 2 * width + f
    tl.store(outs, gradient * value * sigmoid * (1 + gate * (1 - sigmoid)), mask=there)
    tl.store(outs + width, gradient * gate * sigmoid, mask=there)


def _grid(rows: int, width: int) -> tuple[int, int]:
    return rows, triton.cdiv(width, BLOCK)


@torch.library.custom_op("lm::swiglu", mutates_args=())
def swiglu(gate_value_N2F: Tensor) -> Tensor:
    """silu(gate) * value, (N, F), of contiguous (N, 2F)."""
    rows, width = gate_value_N2F.shape[0], gate_value_N2F.shape[1] // 2
    out_NF = gate_value_N2F.new_empty(rows, width)
    _forward[_grid(rows, width)](gate_value_N2F, out_NF, width, BLOCK=BLOCK)
    return out_NF


@torch.library.custom_op("lm::swiglu_backward", mutates_args=())
def swiglu_backward(gate_value_N2F: Tensor, gradient_NF: Tensor) -> Tensor:
    """The gradient of `swiglu`'s argument."""
    rows, width = gradient_NF.shape
    out_N2F = torch.empty_like(gate_value_N2F)
    _backward[_grid(rows, width)](gate_value_N2F, gradient_NF.contiguous(), out_N2F, width, BLOCK=BLOCK)
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
