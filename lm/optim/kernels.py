"""AdamW's step over any number of tensors in one launch, in Triton, and the norm of gradients in two.

Letters as in the paper: θ parameter, g gradient, m and v the two means.
"""
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # numbers a program updates


@triton.jit
def _step(
    addresses_ptr,
    sizes_ptr,
    tensor_ptr,
    start_ptr,
    factor_ptr,
    tensors,
    beta1,
    beta2,
    decay,
    rate,
    eps,
    correction,
    SCALES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one tensor; `addresses` holds those of all θ, then all g, all m, all v."""
    tensor = tl.load(tensor_ptr + tl.program_id(0))
    i = tl.load(start_ptr + tl.program_id(0)) + tl.arange(0, BLOCK)
    there = i < tl.load(sizes_ptr + tensor)
    floats = tl.pointer_type(tl.float32)
    parameters = tl.load(addresses_ptr + tensor).to(floats) + i
    gradients = tl.load(addresses_ptr + tensors + tensor).to(floats) + i
    means = tl.load(addresses_ptr + 2 * tensors + tensor).to(floats) + i
    squares = tl.load(addresses_ptr + 3 * tensors + tensor).to(floats) + i
    g = tl.load(gradients, mask=there)
    if SCALES:
        g *= tl.load(factor_ptr)
    m = tl.load(means, mask=there)
    m += (1 - beta1) * (g - m)
    v = beta2 * tl.load(squares, mask=there) + (1 - beta2) * g * g
    p = tl.load(parameters, mask=there) * decay - rate * m / (tl.sqrt_rn(v) / correction + eps)
    tl.store(means, m, mask=there)
    tl.store(squares, v, mask=there)
    tl.store(parameters, p, mask=there)


@triton.jit
def _square_sum(addresses_ptr, sizes_ptr, tensor_ptr, start_ptr, sums_ptr, BLOCK: tl.constexpr):
    """Of one block of one tensor."""
    tensor = tl.load(tensor_ptr + tl.program_id(0))
    i = tl.load(start_ptr + tl.program_id(0)) + tl.arange(0, BLOCK)
    gradients = tl.load(addresses_ptr + tensor).to(tl.pointer_type(tl.float32)) + i
    g = tl.load(gradients, mask=i < tl.load(sizes_ptr + tensor), other=0.0)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(g * g))


@triton.jit
def _norm_and_factor(sums_ptr, norm_ptr, factor_ptr, blocks, max_norm, eps, BLOCK: tl.constexpr):
    """Of all blocks' sums."""
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, blocks, BLOCK):
        i = start + tl.arange(0, BLOCK)
        sums += tl.load(sums_ptr + i, mask=i < blocks, other=0.0)
    norm = tl.sqrt_rn(tl.sum(sums))
    tl.store(norm_ptr, norm)
    tl.store(factor_ptr, tl.minimum(max_norm / (norm + eps), 1.0, propagate_nan=tl.PropagateNan.ALL))


class _Table:
    """Which program takes what, for tensors of these sizes; and where the tensors are, as of the last call."""

    def __init__(self, device: torch.device, sizes: tuple[int, ...], columns: int) -> None:
        blocks = [(index, start) for index, size in enumerate(sizes) for start in range(0, size, BLOCK)]
        self.sizes = torch.tensor(sizes, device=device)
        self.tensor, self.start = (torch.tensor(column, device=device) for column in zip(*blocks, strict=True))
        self.known: list[int] = []
        self.addresses = torch.zeros(columns * len(sizes), device=device, dtype=torch.int64)

    def renew(self, *columns: list[Tensor]) -> None:
        """Send the tensors' addresses to the device where they changed, without waiting for it."""
        addresses = [tensor.data_ptr() for column in columns for tensor in column]
        if addresses != self.known:
            self.known = addresses
            sent = torch.tensor(addresses)
            self.addresses.copy_(sent.pin_memory() if self.addresses.is_cuda else sent, non_blocking=True)


_table = lru_cache(maxsize=16)(_Table)


def clipping_factor(gradients: list[Tensor], max_l2_norm: float, eps: float) -> tuple[Tensor, Tensor]:
    """As `lm.optim.clipping_factor`, of float32 tensors, all on one device and each in one piece."""
    table = _table(gradients[0].device, tuple(gradient.numel() for gradient in gradients), 1)
    table.renew(gradients)
    blocks = len(table.tensor)
    sums, norm, factor = (gradients[0].new_empty(shape) for shape in ((blocks,), (), ()))
    _square_sum[(blocks,)](table.addresses, table.sizes, table.tensor, table.start, sums, BLOCK=BLOCK, num_warps=8)
    _norm_and_factor[(1,)](sums, norm, factor, blocks, max_l2_norm, eps, BLOCK=4096, num_warps=8)
    return norm, factor


def update(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    gradient_factor: Tensor | None,
) -> None:
    """`lm.optim.adamw_update` for each row of float32 tensors, all on one device and each in one piece."""
    table = _table(parameters[0].device, tuple(parameter.numel() for parameter in parameters), 4)
    table.renew(parameters, gradients, exp_avgs, exp_avg_sqs)
    _step[(len(table.tensor),)](
        table.addresses,
        table.sizes,
        table.tensor,
        table.start,
        gradient_factor,
        len(parameters),
        betas[0],
        betas[1],
        1 - lr * weight_decay,
        lr / (1 - betas[0] ** step),
        eps,
        math.sqrt(1 - betas[1] ** step),
        SCALES=gradient_factor is not None,
        BLOCK=BLOCK,
        num_warps=8,
    )
